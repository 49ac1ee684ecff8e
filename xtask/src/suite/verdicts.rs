//! The committed expectation of what becomes of each probe.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use super::exposition::Scrape;

const EXPECTED: &str = include_str!("../../expected/verdicts.toml");

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Expected {
    probes: Vec<String>,
    #[serde(default)]
    fentry: Exceptions,
    #[serde(default)]
    kprobe: Exceptions,
}

/// Mechanism by probe, by kernel series.
type Exceptions = BTreeMap<String, BTreeMap<String, String>>;

/// Mechanism by probe.
type Verdicts = BTreeMap<String, String>;

fn expected(text: &str, mode: &str, series: &str) -> Result<Verdicts> {
    let expected: Expected = toml::from_str(text).context("expected/verdicts.toml")?;
    let exceptions = if mode == "kprobe" {
        &expected.kprobe
    } else {
        &expected.fentry
    };
    let mut verdicts: Verdicts = expected
        .probes
        .into_iter()
        .map(|probe| (probe, mode.to_owned()))
        .collect();
    for (probe, mechanism) in exceptions.get(series).into_iter().flatten() {
        let old = verdicts.insert(probe.clone(), mechanism.clone());
        ensure!(
            old.is_some(),
            "expected/verdicts.toml: {probe} is not among the probes"
        );
    }
    Ok(verdicts)
}

fn shown(scrape: &Scrape) -> Result<Verdicts> {
    let mut verdicts = Verdicts::new();
    for (labels, value) in scrape.all("sdtrace_probe_verdict", &[]) {
        let label = |name: &str| {
            labels
                .get(name)
                .with_context(|| format!("a verdict has no {name}"))
        };
        ensure!(value > 0.0, "the verdict {labels:?} has the value {value}");
        let (verdict, mode) = (label("verdict")?, label("mode")?);
        let text = if verdict == "attached" { mode } else { verdict };
        let old = verdicts.insert(label("probe")?.clone(), text.clone());
        ensure!(old.is_none(), "two verdicts for {labels:?}");
    }
    Ok(verdicts)
}

/// Compares the verdicts that `/metrics` shows with what is expected of this kernel series in this mode.
///
/// # Errors
/// Names every difference.
pub fn check(scrape: &Scrape, mode: &str, series: &str) -> Result<()> {
    let (expected, shown) = (expected(EXPECTED, mode, series)?, shown(scrape)?);
    let probes = expected
        .keys()
        .chain(shown.keys().filter(|probe| !expected.contains_key(*probe)));
    let differences: Vec<_> = probes
        .filter(|probe| expected.get(*probe) != shown.get(*probe))
        .map(|probe| {
            let or_none = |verdicts: &Verdicts| verdicts.get(probe).map_or("none", String::as_str).to_owned();
            format!("{probe}: {}, expected {}", or_none(&shown), or_none(&expected))
        })
        .collect();
    ensure!(differences.is_empty(), "{}", differences.join("; "));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "probes = [\"a\", \"b\"]\n[fentry.\"5.10\"]\nb = \"kprobe\"\n";

    #[test]
    fn exceptions_hold_for_their_mode_and_series_only() {
        let of = |mode, series| {
            expected(TEXT, mode, series)
                .unwrap()
                .into_values()
                .collect::<Vec<_>>()
        };
        assert_eq!(of("fentry", "5.10"), ["fentry", "kprobe"]);
        assert_eq!(of("fentry", "6.1"), ["fentry", "fentry"]);
        assert_eq!(of("kprobe", "5.10"), ["kprobe", "kprobe"]);
        assert!(expected("probes = []\n[kprobe.\"6.1\"]\nx = \"none\"", "kprobe", "6.1").is_err());
    }

    #[test]
    fn every_difference_from_the_committed_expectation_is_found() {
        let text = |mode: &str, leave_out: &str| -> String {
            let verdicts = expected(EXPECTED, "fentry", "99.9").unwrap();
            let lines = verdicts.keys().filter(|probe| *probe != leave_out).map(|probe| {
                format!("sdtrace_probe_verdict{{probe=\"{probe}\",mode=\"{mode}\",verdict=\"attached\"}} 1\n")
            });
            lines.collect()
        };
        let check = |text: String| check(&Scrape::parse(&text).unwrap(), "fentry", "99.9");
        check(text("fentry", "")).unwrap();
        assert!(check(text("kprobe", "")).is_err());
        let error = check(text("fentry", "do_wp_page")).unwrap_err().to_string();
        assert_eq!(error, "do_wp_page: none, expected fentry");
        let broken = text("fentry", "do_wp_page")
            + "sdtrace_probe_verdict{probe=\"do_wp_page\",mode=\"none\",verdict=\"broken\"} 1\n";
        assert_eq!(
            check(broken).unwrap_err().to_string(),
            "do_wp_page: broken, expected fentry"
        );
    }
}
