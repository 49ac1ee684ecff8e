//! `docs/runbook.md`: each alert has a page there, and each page an alert.

use super::rules::File;
use crate::workspace::root;
use anyhow::{Context as _, Result, ensure};
use std::collections::BTreeSet;
use std::fs;

/// What each page says, in this order.
const PARTS: [&str; 4] = ["**Meaning.**", "**Impact.**", "**Look at.**", "**Do.**"];

/// Checks the committed runbook.
pub fn check(rules: &File) -> Result<()> {
    let path = root().join("docs/runbook.md");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    compare(&text, rules).context("docs/runbook.md")
}

fn compare(text: &str, rules: &File) -> Result<()> {
    let mut pages = BTreeSet::new();
    for page in text.split("\n### ").skip(1) {
        let page = page.split("\n## ").next().unwrap_or_default();
        let name = page.lines().next().unwrap_or_default().trim();
        // Not every renderer makes an anchor of a heading, and some write it in small letters.
        ensure!(
            text.contains(&format!("<a id=\"{name}\"></a>\n\n### {name}\n")),
            "{name} has no anchor before its heading"
        );
        let mut rest = page;
        for part in PARTS {
            let (_, after) = rest
                .split_once(part)
                .with_context(|| format!("{name} does not say {part} in its place"))?;
            rest = after;
        }
        let (_, rule) = rules
            .alerts()
            .find(|(alert, _)| *alert == name)
            .with_context(|| format!("there is no alert {name}"))?;
        let severity = &rule.labels["severity"];
        ensure!(
            page.contains(&format!("\n*{severity}*")),
            "{name} does not say that it is {severity}"
        );
        ensure!(pages.insert(name), "{name} is there twice");
    }
    for (alert, _) in rules.alerts() {
        ensure!(pages.contains(alert), "{alert} has no page");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dashboards::rules::committed;

    #[test]
    fn the_committed_runbook_and_the_rules_agree() {
        check(&committed().unwrap()).unwrap();
    }

    #[test]
    fn a_page_too_few_or_too_many_is_found() {
        let rules = committed().unwrap();
        let text = fs::read_to_string(root().join("docs/runbook.md")).unwrap();
        for (change, said) in [
            (
                text.replace("SdtraceNotReady", "SdtraceNotRedy"),
                "SdtraceNotRedy",
            ),
            (
                text.replacen("<a id=\"SdtraceDown\"", "<a id=\"down\"", 1),
                "anchor",
            ),
            (text.replacen("**Impact.**", "", 1), "Impact"),
            (text.replacen("*critical*", "*info*", 1), "critical"),
        ] {
            let error = format!("{:#}", compare(&change, &rules).unwrap_err());
            assert!(error.contains(said), "{error}");
        }
        let mut fewer = rules.clone();
        fewer.groups[1].rules.clear();
        assert!(compare(&text, &fewer).is_err());
        let mut more = rules;
        more.groups[1].rules[0].alert = Some("SdtraceOther".to_owned());
        assert!(compare(&text, &more).is_err());
    }
}
