//! A program that does known things to known memory and counts them itself: the truth that tests and the demo
//! hold sdtrace's numbers against.
//!
//! `workload SCENE` sets its memory up and then takes one command a line: `clear` (it clears its own soft-dirty
//! bits), `cleared` (somebody else did), `act`. It answers each with one line of JSON, see [`report::Answer`], and
//! stays until its input ends.

pub mod area;
pub mod proc;
pub mod process;
pub mod report;
mod scenes;

use std::io::{self, BufRead, Write as _};

use anyhow::{Context as _, Result, bail};

use area::Area;
use report::{Answer, Report};

/// Something that the workload can do.
pub trait Scene {
    /// The memory it writes to.
    fn areas(&mut self) -> Vec<&mut Area>;

    /// Does it once, counting into the areas, and returns what children did.
    ///
    /// # Errors
    /// What the kernel refuses.
    fn act(&mut self) -> Result<Vec<Report>>;
}

/// Names of all scenes.
#[must_use]
pub fn names() -> Vec<&'static str> {
    scenes::SCENES.iter().map(|(name, _)| *name).collect()
}

/// Plays a scene to the end of the input.
///
/// # Errors
/// What went wrong; it has been told on standard output too.
pub fn play(name: &str) -> Result<()> {
    let outcome = perform(name);
    if let Err(error) = &outcome {
        answer(&Answer::Failed(format!("{error:#}")))?;
    }
    outcome
}

fn perform(name: &str) -> Result<()> {
    let Some((_, set_up)) = scenes::SCENES.iter().find(|(known, _)| *known == name) else {
        bail!("no scene is called {name}; there are: {}", names().join(", "));
    };
    let mut scene = set_up().with_context(|| format!("setting up {name}"))?;
    answer(&Answer::Ready {
        pid: std::process::id(),
    })?;
    for line in io::stdin().lock().lines() {
        let line = line?;
        match line.trim() {
            "clear" => {
                area::clear(&mut scene.areas())?;
                answer(&Answer::Cleared)?;
            }
            "cleared" => {
                for area in scene.areas() {
                    area.reset();
                }
                answer(&Answer::Cleared)?;
            }
            "act" => {
                let children = scene.act().with_context(|| format!("acting in {name}"))?;
                answer(&Answer::Acted(report_of(scene.areas(), children)?))?;
            }
            other => bail!("`{other}` is no command; there are: clear, cleared, act"),
        }
    }
    Ok(())
}

/// The report of the present process.
///
/// # Errors
/// If the kernel's own view of the memory contradicts what the scene thinks.
pub fn report_of(areas: Vec<&mut Area>, children: Vec<Report>) -> Result<Report> {
    Ok(Report {
        pid: std::process::id(),
        areas: areas
            .into_iter()
            .map(|area| area.report())
            .collect::<Result<_>>()?,
        children,
    })
}

/// Prints one answer.
///
/// # Errors
/// If standard output is gone.
pub fn answer(answer: &Answer) -> Result<()> {
    let mut output = io::stdout().lock();
    serde_json::to_writer(&mut output, answer)?;
    output.write_all(b"\n")?;
    output.flush()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scenes_have_names_of_their_own() {
        let mut sorted = names();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(sorted.len(), names().len());
    }

    #[test]
    fn an_unknown_scene_names_the_known_ones() {
        let error = perform("nonsense").unwrap_err().to_string();
        assert!(error.contains("no scene is called nonsense") && error.contains("seed"));
    }
}
