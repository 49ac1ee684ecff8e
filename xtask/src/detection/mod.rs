//! The cross-check: the battery makes the kernel miss writes, and sdtrace, which traces meanwhile, must say so.
//!
//! The way of the data: [`guest`] plays each scenario in a guest while sdtrace runs → [`said`] what sdtrace said of its
//! processes → [`rules`] what it must say, by the class of the cause and the battery's own result of the same run →
//! [`expected`] what is committed for this kernel, exact counts and known gaps included. [`cases`] are what the battery
//! does not have, played by the processes of [`scenes`]; [`verify`] are those of
//! content verification.

pub mod cases;
pub mod expected;
pub mod file_writes;
pub mod guest;
pub mod rules;
pub mod said;
pub mod scenes;
pub mod verify;
pub mod verify_scenes;

use serde::{Deserialize, Serialize};

/// One guest's run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Run {
    /// The scenarios, in the order in which they were played.
    pub played: Vec<Played>,
    /// Contradictions between the dump, the incident log and the metrics.
    pub contradictions: Vec<String>,
}

/// A scenario, what the battery found and what sdtrace said.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Played {
    /// The battery's result.
    pub battery: Battery,
    /// Whether it is a race: run for several rounds.
    pub race: bool,
    /// What sdtrace said of the scenario's processes.
    pub said: said::Said,
    /// What it said of the battery itself, which only makes a round trip through soft-dirty.
    pub said_of_battery: said::Said,
}

/// One result of `sdtrace battery --json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Battery {
    /// Name.
    pub scenario: String,
    /// `control`, `A`, `B`, `C` or `D`.
    pub class: String,
    /// The cause; `none` for controls.
    pub cause: String,
    /// `tracked`, `missed`, `dropped`, `not supported`, `inconclusive` or `failed`.
    pub result: String,
    /// Why, where that is said.
    pub why: Option<String>,
    /// Its counts.
    pub pages: Pages,
}

/// Counts of pages.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Pages {
    /// Missed.
    pub missed: u64,
    /// Thrown away by the target.
    pub dropped: u64,
}

impl Battery {
    /// The result as the battery's own table of expected results has it.
    #[must_use]
    pub fn cell(&self) -> String {
        match self.result.as_str() {
            "missed" => format!("missed={}", self.pages.missed),
            "dropped" => format!("dropped={}", self.pages.dropped),
            "not supported" => "none".to_owned(),
            other => other.to_owned(),
        }
    }
}
