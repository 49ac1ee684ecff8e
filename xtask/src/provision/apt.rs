//! Debian packages without installing them: a package index of our own beside the machine's, checked with Debian's
//! keyring, from the mirror that the machine already uses.

use super::{cache_dir, run_quietly, say};
use crate::failure::Usage;
use anyhow::{Context as _, Result, bail};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The suites that carry kernels of the series list; `-security` ones lie on the security mirror.
const SUITES: [&str; 11] = [
    "bullseye",
    "bullseye-security",
    "bookworm",
    "bookworm-updates",
    "bookworm-security",
    "bookworm-backports",
    "trixie",
    "trixie-security",
    "trixie-backports",
    "forky",
    "experimental",
];

/// The package lists of one suite.
#[derive(Debug)]
pub struct SuiteIndex {
    /// Suite name, for example `trixie-backports`.
    pub suite: String,
    /// Text of its Packages file.
    pub packages: String,
}

/// An apt state of our own in the cache folder.
#[derive(Debug)]
pub struct PrivateApt {
    state: PathBuf,
}

impl PrivateApt {
    /// Opens (and creates) the state.
    pub fn open() -> Result<Self> {
        if super::find_on_path("apt-get").is_none() || super::find_on_path("dpkg-deb").is_none() {
            return Err(Usage(
                "Debian packages are read with apt-get and dpkg-deb: run this on Debian".into(),
            )
            .into());
        }
        if !Path::new(KEYRING).is_file() {
            let command = "apt-get install -y debian-archive-keyring";
            return Err(Usage(format!("no Debian keyring at {KEYRING}; type: sudo {command}")).into());
        }
        let state = cache_dir()?.join("apt");
        for dir in ["lists/partial", "archives/partial"] {
            fs::create_dir_all(state.join(dir))
                .with_context(|| format!("cannot create {}", state.join(dir).display()))?;
        }
        // An empty dpkg status: what is installed here must not matter.
        fs::write(state.join("status"), "")?;
        Ok(Self { state })
    }

    /// Whether package lists were ever fetched.
    #[must_use]
    pub fn has_lists(&self) -> bool {
        let Ok(entries) = fs::read_dir(self.state.join("lists")) else {
            return false;
        };
        entries
            .filter_map(Result::ok)
            .any(|entry| entry.file_name().to_string_lossy().contains("_Packages"))
    }

    /// Fetches the package lists. Suites that the mirror does not carry are named and left out.
    pub fn update(&self) -> Result<()> {
        let (mirror, security) = machine_mirrors()?;
        say(&format!(
            "fetching the package lists of {} suites from {mirror} (kernels, library sources)",
            SUITES.len()
        ));
        let mut lines = String::new();
        for suite in SUITES {
            let base = if suite.ends_with("-security") {
                &security
            } else {
                &mirror
            };
            // A suite whose support has ended is signed no more, but stays fetchable: its date is not checked.
            lines.push_str("deb [signed-by=");
            lines.push_str(KEYRING);
            lines.push_str(" check-valid-until=no arch=amd64] ");
            lines.push_str(&[base, suite, "main\n"].join(" "));
        }
        fs::write(self.state.join("sources.list"), lines)?;
        let output = self
            .command("apt-get")
            .arg("update")
            .stdin(Stdio::null())
            .output()
            .context("cannot start apt-get")?;
        for line in String::from_utf8_lossy(&output.stderr).lines() {
            if line.starts_with("E:") || line.starts_with("W:") {
                say(line);
            }
        }
        if !self.has_lists() {
            bail!("no package list could be fetched; is the network up, and is {mirror} reachable?");
        }
        Ok(())
    }

    /// The package lists fetched last.
    pub fn indexes(&self) -> Result<Vec<SuiteIndex>> {
        let listing = run_quietly(self.command("apt-get").args([
            "indextargets",
            "--format",
            "$(RELEASE)|$(FILENAME)",
            "Created-By: Packages",
        ]))?;
        let mut indexes = Vec::new();
        for line in String::from_utf8_lossy(&listing).lines() {
            let Some((suite, file)) = line.split_once('|') else {
                continue;
            };
            // apt keeps lists compressed; its helper reads whatever compression it chose.
            let packages = run_quietly(Command::new("/usr/lib/apt/apt-helper").args(["cat-file", file]))?;
            let packages = String::from_utf8(packages).with_context(|| format!("{file} is not UTF-8"))?;
            indexes.push(SuiteIndex {
                suite: suite.to_owned(),
                packages,
            });
        }
        if indexes.is_empty() {
            bail!("apt knows no package lists in {}", self.state.display());
        }
        Ok(indexes)
    }

    /// Downloads one package of one version (its checksum is verified through the signed index) and unpacks it into
    /// `destination`, without installing anything.
    pub fn unpack(&self, name: &str, version: &str, destination: &Path) -> Result<()> {
        self.with_download(&format!("{name}={version}"), |deb| {
            unpack_deb(deb, destination, &[])
        })
    }

    /// Like [`Self::unpack`], the version that one suite offers.
    pub fn unpack_from(&self, name: &str, suite: &str, destination: &Path) -> Result<()> {
        self.with_download(&format!("{name}/{suite}"), |deb| {
            unpack_deb(deb, destination, &[])
        })
    }

    /// Like [`Self::unpack`], the newest version that any suite offers.
    pub fn unpack_newest(&self, name: &str, destination: &Path) -> Result<()> {
        self.with_download(name, |deb| unpack_deb(deb, destination, &[]))
    }

    /// Downloads the version of a package that one suite offers and everything that it depends on, as apt would install
    /// it on an empty system, and unpacks all of it into `destination`.
    pub fn unpack_with_dependencies(&self, name: &str, suite: &str, destination: &Path) -> Result<()> {
        let folder = tempfile::Builder::new()
            .prefix("download-")
            .tempdir_in(&self.state)?;
        fs::create_dir(folder.path().join("partial"))?;
        run_quietly(
            self.command("apt-get")
                .args(["-o", &format!("Dir::Cache::archives={}", folder.path().display())])
                .args(["-o", &format!("APT::Default-Release={suite}")])
                // Nothing is installed, so nothing needs to be locked.
                .args(["-o", "Debug::NoLocking=true"])
                .args(["install", "--download-only", "--no-install-recommends", "-y"])
                .arg(name),
        )
        .with_context(|| format!("cannot download {name} of {suite} with its dependencies"))?;
        let mut count = 0;
        for entry in fs::read_dir(folder.path())? {
            let deb = entry?.path();
            if deb.extension().is_some_and(|extension| extension == "deb") {
                unpack_deb(&deb, destination, &[])?;
                count += 1;
            }
        }
        if count == 0 {
            bail!("apt-get downloaded no file for {name} of {suite}");
        }
        Ok(())
    }

    /// Downloads one package (`NAME` or `NAME=VERSION`), hands the .deb to `use_it`, and removes it.
    pub fn with_download<T>(&self, package: &str, use_it: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
        let folder = tempfile::Builder::new()
            .prefix("download-")
            .tempdir_in(&self.state)?;
        run_quietly(
            self.command("apt-get")
                .arg("download")
                .arg(package)
                .current_dir(folder.path()),
        )
        .with_context(|| format!("cannot download {package}"))?;
        let deb = fs::read_dir(folder.path())?
            .filter_map(Result::ok)
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .with_context(|| format!("apt-get downloaded no file for {package}"))?;
        use_it(&deb)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let state = self.state.display();
        for option in [
            format!("Dir::State={state}"),
            format!("Dir::State::lists={state}/lists"),
            format!("Dir::State::status={state}/status"),
            format!("Dir::Cache={state}"),
            format!("Dir::Cache::archives={state}/archives"),
            format!("Dir::Etc::sourcelist={state}/sources.list"),
            "Dir::Etc::sourceparts=/dev/null".into(),
            // Preferences of this machine must not hide a suite.
            "Dir::Etc::preferences=/dev/null".into(),
            "Dir::Etc::preferencesparts=/dev/null".into(),
            "Acquire::Languages=none".into(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".into(),
            // The cache folder may lie where the user _apt cannot reach; what is fetched is verified all the same.
            "APT::Sandbox::User=root".into(),
            "Acquire::Retries=2".into(),
        ] {
            command.arg("-o").arg(option);
        }
        command.env("LC_ALL", "C.UTF-8");
        command
    }
}

/// Unpacks the members of a .deb below `paths` (all of them when empty).
pub(super) fn unpack_deb(deb: &Path, destination: &Path, paths: &[&str]) -> Result<()> {
    let mut dpkg = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(deb)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start dpkg-deb")?;
    let stream = dpkg.stdout.take().context("dpkg-deb has an output")?;
    let mut tar = Command::new("tar");
    tar.arg("-x")
        .arg("--no-same-owner")
        .arg("-C")
        .arg(destination)
        .args(paths);
    let untarred = tar
        .stdin(Stdio::from(stream))
        .status()
        .context("cannot start tar")?;
    // It still holds the pipe; a tar that ended early would leave dpkg-deb writing into it for ever.
    drop(tar);
    let unpacked = dpkg.wait()?;
    if !untarred.success() || !unpacked.success() {
        bail!("cannot unpack {}", deb.display());
    }
    Ok(())
}

/// The Debian mirror and security mirror of the machine's own apt configuration.
fn machine_mirrors() -> Result<(String, String)> {
    let targets = Command::new("apt-get")
        .args([
            "indextargets",
            // Answers from the configured sources alone, so before the first apt-get update too.
            "--no-release-info",
            "--format",
            "$(REPO_URI)|$(RELEASE)",
            "Created-By: Packages",
        ])
        .output()
        .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
        .unwrap_or_default();
    choose_mirrors(&targets)
}

/// Chooses (mirror, security mirror) from lines of `URI|release`.
fn choose_mirrors(targets: &str) -> Result<(String, String)> {
    let releases: BTreeSet<&str> = SUITES
        .iter()
        .copied()
        .chain([
            "stable",
            "oldstable",
            "oldoldstable",
            "testing",
            "unstable",
            "sid",
            "stable-security",
        ])
        .collect();
    let mut mirror = None;
    let mut security = None;
    for (uri, release) in targets.lines().filter_map(|line| line.split_once('|')) {
        let uri = uri.trim_end_matches('/');
        if !releases.contains(release) {
            continue;
        }
        let place = if release.ends_with("-security") {
            &mut security
        } else {
            &mut mirror
        };
        place.get_or_insert_with(|| uri.to_owned());
    }
    match (mirror, security) {
        (Some(mirror), Some(security)) => Ok((mirror, security)),
        (Some(_), None) => Err(no_mirror("bookworm-security")),
        (None, _) => Err(no_mirror("bookworm")),
    }
}

fn no_mirror(release: &str) -> anyhow::Error {
    Usage(format!(
        "apt's sources on this machine name no Debian mirror with {release}, where kernels and tools come from; add one \
         (see sources.list(5)) and run apt-get update"
    ))
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machines_mirror_is_taken_and_foreign_repositories_are_not() {
        let targets = "https://packages.example.com/node/|nodistro\n\
                       http://mirror.example.org/debian/|bookworm\n\
                       http://mirror.example.org/debian/|bookworm-updates\n\
                       http://mirror.example.org/debian-security/|bookworm-security\n";
        assert_eq!(
            choose_mirrors(targets).unwrap(),
            (
                "http://mirror.example.org/debian".to_owned(),
                "http://mirror.example.org/debian-security".to_owned()
            )
        );
    }

    #[test]
    fn a_machine_without_debian_sources_is_told_to_add_one() {
        let error = choose_mirrors("http://archive.example.com/ubuntu/|noble\n").unwrap_err();
        assert!(
            error.to_string().contains("no Debian mirror with bookworm,"),
            "{error}"
        );
        let error = choose_mirrors("http://mirror.example.org/debian/|bookworm\n").unwrap_err();
        assert!(error.to_string().contains("bookworm-security"), "{error}");
    }
}
