//! How long answers take with 5,000 tracked address spaces, from a simulated kernel on this machine.

use crate::provision::run_quietly;
use crate::workspace::build_static_example_with;
use anyhow::{Context as _, Result, ensure};
use std::process::Command;

const ADDRESS_SPACES: &str = "5000";
/// The longest that the quickest answer may take, in milliseconds; a scrape, which looks at all 100,000 rows, too. A busy
/// machine delays single answers, not all.
const BOUND: f64 = 50.0;

/// Measures, prints the table of docs/performance.md, and holds it to the bound.
pub fn run() -> Result<()> {
    let program = build_static_example_with("tracer-user", "simulated", &["simulation"])?;
    let output = run_quietly(Command::new(program).args(["measure", ADDRESS_SPACES]))?;
    let rows = read(&String::from_utf8(output)?)?;
    println!("| path | quickest | median | answer |");
    println!("|---|---:|---:|---:|");
    for row in &rows {
        println!(
            "| `{}` | {:.1} ms | {:.1} ms | {} KiB |",
            row.path,
            row.quickest,
            row.median,
            row.bytes.div_ceil(1024)
        );
    }
    for row in rows {
        ensure!(
            row.quickest <= BOUND,
            "{} takes {:.1} ms with {ADDRESS_SPACES} address spaces, more than {BOUND} ms",
            row.path,
            row.quickest
        );
    }
    Ok(())
}

struct Row {
    path: String,
    quickest: f64,
    median: f64,
    bytes: u64,
}

/// Reads what the example prints.
fn read(text: &str) -> Result<Vec<Row>> {
    let rows: Vec<Row> = text
        .lines()
        .skip(1)
        .map(|line| {
            let [path, quickest, median, bytes, _] = line.split(',').collect::<Vec<_>>()[..] else {
                anyhow::bail!("`{line}` is no row");
            };
            Ok(Row {
                path: path.to_owned(),
                quickest: quickest.parse()?,
                median: median.parse()?,
                bytes: bytes.parse()?,
            })
        })
        .collect::<Result<_>>()
        .context("what the simulation measures")?;
    ensure!(!rows.is_empty(), "the simulation measured nothing");
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_read_and_nothing_is_no_measurement() {
        let rows = read("path,quickest_ms,median_ms,bytes,lines\n/metrics,3.10,4.00,2048,99\n").unwrap();
        assert_eq!((rows[0].path.as_str(), rows[0].bytes), ("/metrics", 2048));
        assert!(read("path,quickest_ms,median_ms,bytes,lines\n").is_err());
        assert!(read("head\nsomething else\n").is_err());
    }
}
