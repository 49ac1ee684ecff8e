//! `sdtrace config`.

use std::ffi::OsString;
use std::fmt::Write as _;

use anyhow::Result;

use crate::cli::{self, ConfigCommand};
use crate::config::{self, Here, Settled};

/// Checks the configuration, or prints one to begin with.
pub(super) fn config(command: &ConfigCommand) -> Result<()> {
    let definition = cli::command();
    match command {
        ConfigCommand::Example => super::print(&config::example(&definition)),
        ConfigCommand::Check { file } => {
            let mut arguments = vec![OsString::from("sdtrace"), OsString::from("run")];
            if let Some(file) = file {
                arguments.push("--config".into());
                arguments.push(file.into());
            }
            let (_, settled) = cli::settled_run(&definition, &arguments, &Here)?;
            super::print(&table(&settled))
        }
    }
}

fn table(settled: &Settled) -> String {
    let mut text = match &settled.file {
        Some(file) => format!("{} is well-formed. sdtrace run would use:\n\n", file.display()),
        None => format!("There is no {}. sdtrace run would use:\n\n", config::DEFAULT_FILE),
    };
    for setting in &settled.settings {
        let values = match setting.values.as_slice() {
            [] => "none".to_owned(),
            values => values.join(", "),
        };
        let _ = writeln!(text, "{:<20} {values:<32} {}", setting.name, setting.origin);
    }
    for name in &settled.ignored {
        let _ = writeln!(
            text,
            "\n{name} is in the environment, but no setting: it is ignored."
        );
    }
    text
}
