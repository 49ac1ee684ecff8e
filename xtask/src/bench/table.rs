//! The figures of one kernel, and the table made of them.

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;
use std::fmt::Write as _;

/// What one set of probes costs; several rounds.
#[derive(Debug, Deserialize)]
struct Cost {
    setup: String,
    write_ns_per_page: Vec<f64>,
    touch_ns_per_page: Vec<f64>,
    clear_ns_per_page: Vec<f64>,
    idle_clear_ns_per_page: Vec<f64>,
    file_write_ns_per_page: Vec<f64>,
}

/// Instructions: medians of one [`Cost`].
#[derive(Clone, Copy, Debug, Default)]
struct Medians {
    fault: f64,
    touch: f64,
    clear: f64,
    idle_clear: f64,
    file_write: f64,
}

impl Cost {
    fn rounds(&self) -> [&[f64]; 5] {
        [
            &self.write_ns_per_page,
            &self.touch_ns_per_page,
            &self.clear_ns_per_page,
            &self.idle_clear_ns_per_page,
            &self.file_write_ns_per_page,
        ]
    }

    fn medians(&self) -> Medians {
        let [fault, touch, clear, idle_clear, file_write] = self.rounds().map(median);
        Medians {
            fault,
            touch,
            clear,
            idle_clear,
            file_write,
        }
    }
}

/// A clear with the whole audit costs at most this many times the bare clear, where nothing is wrong.
const DEAREST_AUDIT: f64 = 1.5;

/// What the program `measure cost` said on one kernel.
#[derive(Debug)]
pub(super) struct Costs(Vec<Cost>);

impl Costs {
    /// Reads one JSON object a line.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let costs: Vec<Cost> = text
            .lines()
            .filter(|line| line.starts_with('{'))
            .map(serde_json::from_str)
            .collect::<Result<_, _>>()
            .with_context(|| format!("not what `measure cost` prints: {text}"))?;
        ensure!(
            costs
                .iter()
                .all(|cost| cost.rounds().iter().all(|rounds| !rounds.is_empty())),
            "a set of probes without a round"
        );
        let costs = Self(costs);
        costs.get("nothing")?;
        Ok(costs)
    }

    fn get(&self, setup: &str) -> Result<Medians> {
        let Some(cost) = self.0.iter().find(|cost| cost.setup == setup) else {
            bail!("nothing was measured for {setup:?}");
        };
        Ok(cost.medians())
    }

    /// What the audit may cost, see [`DEAREST_AUDIT`]: with the mechanism that a kernel offers first.
    pub(super) fn audit_is_cheap(&self) -> Result<(), String> {
        let of = |setup| self.get(setup).map_err(|error| error.to_string());
        let (bare, audited) = (of("nothing")?, of("fentry, tracked")?);
        for (what, audited, bare) in [
            ("written", audited.clear, bare.clear),
            ("not written", audited.idle_clear, bare.idle_clear),
        ] {
            if audited > bare * DEAREST_AUDIT {
                return Err(format!(
                    "a page of an audited clear, {what}: {audited:.1} instructions, of a bare one {bare:.1}"
                ));
            }
        }
        Ok(())
    }

    /// A write-notify fault passes two functions with probes, `handle_mm_fault` and `do_wp_page`. If its process is not
    /// tracked, they must cost it less than two kprobes that only count.
    pub(super) fn cheaper_than_bare_kprobes(&self) -> Result<(), String> {
        let of = |setup| {
            self.get(setup)
                .map(|cost| cost.fault)
                .map_err(|error| error.to_string())
        };
        let nothing = of("nothing")?;
        let bare = nothing + 2.0 * (of("bare kprobe")? - nothing);
        for setup in ["fentry, nothing tracked", "fentry, untracked"] {
            let cost = of(setup)?;
            if cost >= bare {
                return Err(format!(
                    "{setup}: {cost:.0} instructions, with two bare kprobes {bare:.0}"
                ));
            }
        }
        Ok(())
    }

    /// The table in Markdown.
    pub(super) fn table(&self, series: &str, release: &str) -> String {
        let base = self.get("nothing").unwrap_or_default();
        let mut text = format!(
            "### {series} ({release})\n\n\
             | probes attached | write-notify fault | more | first touch | more | page of a clear, written | times | \
             page of a clear, not written | times | write(2) of a page | more |\n\
             |---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n"
        );
        for cost in self.0.iter().filter(|cost| cost.setup != "nothing again") {
            let now = cost.medians();
            // Writing to a String does not fail.
            let _ = writeln!(
                text,
                "| {} | {:.0} | {:+.0} | {:.0} | {:+.0} | {:.1} | {:.2} | {:.1} | {:.2} | {:.0} | {:+.0} |",
                cost.setup,
                now.fault,
                now.fault - base.fault,
                now.touch,
                now.touch - base.touch,
                now.clear,
                now.clear / base.clear,
                now.idle_clear,
                now.idle_clear / base.idle_clear,
                now.file_write,
                now.file_write - base.file_write,
            );
        }
        text
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

const BEGIN: &str = "<!-- begin of the tables of cargo xtask bench -->";
const END: &str = "<!-- end of the tables of cargo xtask bench -->";

/// Puts `tables` between the marks of the document.
pub(super) fn replace(document: &str, tables: &str) -> Result<String> {
    let (head, rest) = document
        .split_once(BEGIN)
        .with_context(|| format!("no line {BEGIN}"))?;
    let (_, tail) = rest.split_once(END).with_context(|| format!("no line {END}"))?;
    Ok(format!("{head}{BEGIN}\n\n{tables}{END}{tail}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(setup: &str, fault: f64) -> String {
        format!(
            r#"{{"setup":"{setup}","write_ns_per_page":[{fault},1.0,9000.0],"touch_ns_per_page":[800.0],
                "clear_ns_per_page":[50.0],"idle_clear_ns_per_page":[40.0],"file_write_ns_per_page":[3000.0]}}"#
        )
        .replace('\n', "")
    }

    fn costs(untracked: f64) -> Costs {
        let lines = [
            line("nothing", 1000.0),
            line("bare kprobe", 1300.0),
            line("fentry, nothing tracked", 1200.0),
            line("fentry, untracked", untracked),
        ];
        Costs::parse(&lines.join("\n")).unwrap()
    }

    #[test]
    fn the_table_shows_medians_and_differences() {
        let table = costs(1250.0).table("6.1", "6.1.0-56");
        assert!(
            table.contains(
                "| fentry, untracked | 1250 | +250 | 800 | +0 | 50.0 | 1.00 | 40.0 | 1.00 | 3000 | +0 |"
            ),
            "{table}"
        );
    }

    #[test]
    fn a_fault_that_costs_more_than_bare_kprobes_is_a_failure() {
        assert!(costs(1599.0).cheaper_than_bare_kprobes().is_ok());
        let why = costs(1600.0).cheaper_than_bare_kprobes().unwrap_err();
        assert!(why.contains("fentry, untracked: 1600"), "{why}");
    }

    #[test]
    fn an_audit_that_costs_too_much_is_a_failure() {
        let audited = |clear: f64| {
            let tracked = line("fentry, tracked", 1.0).replace("[40.0]", &format!("[{clear}]"));
            Costs::parse(&format!("{}\n{tracked}", line("nothing", 1.0))).unwrap()
        };
        assert_eq!(audited(60.0).audit_is_cheap(), Ok(()));
        let why = audited(60.1).audit_is_cheap().unwrap_err();
        assert!(why.contains("not written: 60.1"), "{why}");
    }

    #[test]
    fn what_was_not_measured_is_no_success() {
        assert!(Costs::parse("").is_err());
        let only = Costs::parse(&line("nothing", 1.0)).unwrap();
        assert!(only.cheaper_than_bare_kprobes().is_err());
    }

    #[test]
    fn the_tables_go_between_the_marks() {
        let document = format!("a\n{BEGIN}\nold\n{END}\nb\n");
        assert_eq!(
            replace(&document, "new\n").unwrap(),
            format!("a\n{BEGIN}\n\nnew\n{END}\nb\n")
        );
        assert!(replace("a", "new").is_err());
    }
}
