//! The scenarios: each does one thing that might make soft-dirty miss a write, and has the oracle judge it.

mod collapse;
mod controls;
mod discard;
mod disk;
mod huge;
mod kernel_writes;
mod merge;
mod migrate;
mod misuse;
mod move_grow;
mod offline;
mod prelude;
mod protect;
mod shared;
mod swap;
mod userfault;
mod watched;

pub use prelude::{Bench, Scenario};

/// All scenarios, in the order in which they run.
pub fn all() -> impl Iterator<Item = &'static Scenario> {
    [
        controls::ALL,
        watched::ALL,
        disk::ALL,
        protect::ALL,
        merge::ALL,
        migrate::ALL,
        offline::ALL,
        huge::ALL,
        collapse::ALL,
        move_grow::ALL,
        shared::ALL,
        discard::ALL,
        kernel_writes::ALL,
        userfault::ALL,
        swap::ALL,
        misuse::ALL,
    ]
    .into_iter()
    .flatten()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::prelude::Class;
    use super::*;

    #[test]
    fn names_are_unique_and_kebab_case() {
        let mut seen = BTreeSet::new();
        for scenario in all() {
            assert!(seen.insert(scenario.name), "{} stands twice", scenario.name);
            let kebab = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            assert!(scenario.name.chars().all(kebab), "{}", scenario.name);
        }
    }

    #[test]
    fn controls_have_no_cause_and_all_others_have() {
        for scenario in all() {
            assert_eq!(
                scenario.class == Class::Control,
                scenario.cause == "none",
                "{}",
                scenario.name
            );
        }
    }

    #[test]
    fn every_cause_is_described() {
        let causes = include_str!("../../../../docs/causes.md");
        for scenario in all().filter(|scenario| scenario.class != Class::Control) {
            let heading = format!("\n### {}\n", scenario.cause);
            assert!(
                causes.contains(&heading),
                "docs/causes.md has no section '{}'",
                scenario.cause
            );
        }
    }

    #[test]
    fn what_a_scenario_does_is_one_sentence() {
        for scenario in all() {
            assert!(scenario.about.ends_with('.'), "{}", scenario.name);
            assert_eq!(scenario.about.matches(". ").count(), 0, "{}", scenario.name);
        }
    }
}
