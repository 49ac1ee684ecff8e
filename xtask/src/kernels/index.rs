//! Reading Debian's package lists: which cloud kernels there are, and which one to take of each series.

use super::Series;
use std::cmp::{Ordering, Reverse};
use std::collections::BTreeMap;

/// A kernel that a suite offers.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Candidate {
    /// Series, from the version.
    pub series: Series,
    /// Debian version, for example `6.1.176-1`.
    pub version: String,
    /// Suite whose index names it.
    pub suite: String,
    /// Package with the bootable image.
    pub image: String,
    /// Package with the modules: the same one up to 6.18, one of its own from 6.19 on; none where the suite dropped it.
    pub modules: Option<String>,
}

/// One package of a Packages file; only what is needed here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Package<'a> {
    name: &'a str,
    version: &'a str,
    size: u64,
}

const FLAVOUR: &str = "-cloud-amd64";
/// A metapackage weighs 2 KB, the smallest image 13 MB.
const SMALLEST_IMAGE: u64 = 1 << 20;

/// The kernels named in one suite's Packages file.
#[must_use]
pub fn candidates(suite: &str, packages: &str) -> Vec<Candidate> {
    let packages: Vec<_> = packages
        .split("\n\n")
        .map(parse_stanza)
        .filter(|package| package.name.starts_with("linux-") && package.name.ends_with(FLAVOUR))
        .collect();
    let modules: Vec<_> = packages
        .iter()
        .filter(|package| package.name.starts_with("linux-modules-"))
        .collect();
    packages
        .iter()
        .filter(|package| package.size >= SMALLEST_IMAGE)
        .filter_map(|package| {
            let modules = if package.name.starts_with("linux-image-") {
                Some(package.name.to_owned())
            } else {
                let abi = package
                    .name
                    .strip_prefix("linux-binary-")?
                    .strip_suffix(FLAVOUR)?;
                let wanted = format!("linux-modules-{abi}{FLAVOUR}");
                modules
                    .iter()
                    .find(|modules| modules.name == wanted && modules.version == package.version)
                    .map(|modules| modules.name.to_owned())
            };
            Some(Candidate {
                series: series_of(package.version)?,
                version: package.version.to_owned(),
                suite: suite.to_owned(),
                image: package.name.to_owned(),
                modules,
            })
        })
        .collect()
}

fn parse_stanza(stanza: &str) -> Package<'_> {
    let mut package = Package::default();
    for line in stanza.lines() {
        match line.split_once(": ") {
            Some(("Package", value)) => package.name = value,
            Some(("Version", value)) => package.version = value,
            Some(("Size", value)) => package.size = value.parse().unwrap_or(0),
            _ => {}
        }
    }
    package
}

/// The series of a Debian version: `7.3~rc7-1~exp1` is 7.3.
fn series_of(version: &str) -> Option<Series> {
    let digits = |text: &str| text.chars().take_while(char::is_ascii_digit).collect::<String>();
    let (major, rest) = version.split_once('.')?;
    Some(Series {
        major: major.parse().ok()?,
        minor: digits(rest).parse().ok()?,
    })
}

/// All candidates by series, the one to take first at the front. With modules before without; then a kernel built for
/// the release that it is the kernel of, before its rebuild for an older release (`~deb11u1`); then the newest.
#[must_use]
pub fn by_preference(mut all: Vec<Candidate>) -> BTreeMap<Series, Vec<Candidate>> {
    all.sort_by(|left, right| {
        let rank = |candidate: &Candidate| {
            (
                Reverse(candidate.modules.is_some()),
                candidate.version.contains("~deb"),
            )
        };
        rank(left)
            .cmp(&rank(right))
            .then_with(|| compare_versions(&right.version, &left.version))
    });
    let mut grouped: BTreeMap<Series, Vec<Candidate>> = BTreeMap::new();
    for candidate in all {
        let group = grouped.entry(candidate.series).or_default();
        if !group
            .iter()
            .any(|known| known.image == candidate.image && known.version == candidate.version)
        {
            group.push(candidate);
        }
    }
    grouped
}

/// Compares two Debian versions by the rules of deb-version(7).
#[must_use]
pub fn compare_versions(left: &str, right: &str) -> Ordering {
    let split = |version: &str| {
        let (epoch, rest) = version.split_once(':').unwrap_or(("0", version));
        let (upstream, revision) = rest.rsplit_once('-').unwrap_or((rest, ""));
        (
            epoch.parse::<u64>().unwrap_or(0),
            upstream.to_owned(),
            revision.to_owned(),
        )
    };
    let (left_epoch, left_upstream, left_revision) = split(left);
    let (right_epoch, right_upstream, right_revision) = split(right);
    left_epoch
        .cmp(&right_epoch)
        .then_with(|| compare_parts(&left_upstream, &right_upstream))
        .then_with(|| compare_parts(&left_revision, &right_revision))
}

/// Alternately compares the longest runs of non-digits and of digits.
fn compare_parts(left: &str, right: &str) -> Ordering {
    let (mut left, mut right) = (left, right);
    while !left.is_empty() || !right.is_empty() {
        let (left_text, left_rest) = split_run(left, |byte| !byte.is_ascii_digit());
        let (right_text, right_rest) = split_run(right, |byte| !byte.is_ascii_digit());
        let by_text = compare_text(left_text, right_text);
        if by_text.is_ne() {
            return by_text;
        }
        let (left_number, left_rest) = split_run(left_rest, |byte| byte.is_ascii_digit());
        let (right_number, right_rest) = split_run(right_rest, |byte| byte.is_ascii_digit());
        let number = |text: &str| text.parse::<u64>().unwrap_or(0);
        let by_number = number(left_number).cmp(&number(right_number));
        if by_number.is_ne() {
            return by_number;
        }
        (left, right) = (left_rest, right_rest);
    }
    Ordering::Equal
}

fn split_run(text: &str, belongs: impl Fn(u8) -> bool) -> (&str, &str) {
    text.split_at(text.bytes().position(|byte| !belongs(byte)).unwrap_or(text.len()))
}

/// `~` sorts before the end, letters before everything else.
fn compare_text(left: &str, right: &str) -> Ordering {
    let weight = |byte: Option<u8>| match byte {
        Some(b'~') => -1,
        None => 0,
        Some(letter) if letter.is_ascii_alphabetic() => i32::from(letter),
        Some(other) => i32::from(other) + 256,
    };
    let longest = left.len().max(right.len());
    (0..longest)
        .map(|at| weight(left.as_bytes().get(at).copied()).cmp(&weight(right.as_bytes().get(at).copied())))
        .find(|ordering| ordering.is_ne())
        .unwrap_or(Ordering::Equal)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACKPORTS: &str = "\
Package: linux-image-6.18.15+deb13-cloud-amd64
Version: 6.18.15-1~bpo13+1
Size: 49146196

Package: linux-image-7.3.4+deb13-cloud-amd64
Version: 7.3.4-1~bpo13+1
Size: 1928

Package: linux-binary-7.3.4+deb13-cloud-amd64
Version: 7.3.4-1~bpo13+1
Size: 13604064

Package: linux-binary-unsigned-7.3.4+deb13-cloud-amd64
Version: 7.3.4-1~bpo13+1
Size: 13602692

Package: linux-modules-7.3.4+deb13-cloud-amd64
Version: 7.3.4-1~bpo13+1
Size: 22918420

Package: linux-binary-7.1.13+deb13-cloud-amd64
Version: 7.1.13-1~bpo13+1
Size: 13297444

Package: linux-image-cloud-amd64
Version: 7.3.4-1~bpo13+1
Size: 1524

Package: linux-image-6.18.15+deb13-amd64
Version: 6.18.15-1~bpo13+1
Size: 99146196
";
    const LTS: &str = "\
Package: linux-image-6.1.0-0.deb11.52-cloud-amd64
Version: 6.1.180-1~deb11u1
Size: 28080000
";
    const STABLE: &str = "\
Package: linux-image-6.1.0-47-cloud-amd64
Version: 6.1.170-3
Size: 26429640

Package: linux-image-6.1.0-50-cloud-amd64
Version: 6.1.176-1
Size: 26484304
";
    const EXPERIMENTAL: &str = "\
Package: linux-binary-7.3-cloud-amd64
Version: 7.3~rc7-1~exp1
Size: 13885624

Package: linux-modules-7.3-cloud-amd64
Version: 7.3~rc7-1~exp1
Size: 21397624
";

    fn grouped() -> BTreeMap<Series, Vec<Candidate>> {
        let all = [
            ("trixie-backports", BACKPORTS),
            ("bullseye-security", LTS),
            ("bookworm", STABLE),
            ("experimental", EXPERIMENTAL),
        ];
        by_preference(
            all.into_iter()
                .flat_map(|(suite, text)| candidates(suite, text))
                .collect(),
        )
    }

    fn series(text: &str) -> Series {
        text.parse().unwrap()
    }

    #[test]
    fn split_and_whole_packages_are_both_found() {
        let grouped = grouped();
        assert_eq!(
            grouped.keys().copied().collect::<Vec<_>>(),
            ["6.1", "6.18", "7.1", "7.3"].map(series)
        );
        let whole = &grouped[&series("6.18")][0];
        assert_eq!(whole.modules.as_deref(), Some(whole.image.as_str()));
        let split = &grouped[&series("7.3")][0];
        assert_eq!(
            split.modules.as_deref(),
            Some("linux-modules-7.3.4+deb13-cloud-amd64")
        );
    }

    #[test]
    fn a_series_without_modules_is_still_offered() {
        assert_eq!(grouped()[&series("7.1")][0].modules, None);
    }

    #[test]
    fn the_release_beats_its_candidate_and_the_home_suite_a_rebuild() {
        let grouped = grouped();
        assert_eq!(grouped[&series("7.3")][0].version, "7.3.4-1~bpo13+1");
        let versions: Vec<_> = grouped[&series("6.1")]
            .iter()
            .map(|kernel| kernel.version.as_str())
            .collect();
        assert_eq!(versions, ["6.1.176-1", "6.1.170-3", "6.1.180-1~deb11u1"]);
    }

    #[test]
    fn versions_compare_as_dpkg_does() {
        for (older, newer) in [
            ("7.3~rc7-1~exp1", "7.3-1"),
            ("6.9-1", "6.12-1"),
            ("6.12.90-1~bpo12+1", "6.12.90-1"),
            ("6.12.90-1", "6.12.90-1+b1"),
            ("6.12.90-1", "6.12.90-2"),
            ("9.0-1", "1:1.0-1"),
            ("1.0a", "1.0+"),
        ] {
            assert_eq!(
                compare_versions(older, newer),
                Ordering::Less,
                "{older} < {newer}"
            );
            assert_eq!(
                compare_versions(newer, older),
                Ordering::Greater,
                "{newer} > {older}"
            );
        }
        assert_eq!(compare_versions("0:6.1-1", "6.1-1"), Ordering::Equal);
        assert_eq!(compare_versions("6.01-1", "6.1-1"), Ordering::Equal);
    }
}
