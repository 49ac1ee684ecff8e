//! A configuration file to begin with: every setting with its help and its default, made from the flags themselves.

use std::fmt::Write as _;

use clap::{Arg, Command};

use super::{DEFAULT_FILE, is_list, is_switch, settings_of};

/// Width of the comments.
const WIDTH: usize = 100;

/// The file, with every setting commented out. `command` has been through [`super::with_switches`].
#[must_use]
pub fn example(command: &Command) -> String {
    let mut text = format!(
        "# Settings of `sdtrace run`; read from {DEFAULT_FILE}, or from where --config says.\n\
         # Each is also a flag (--log-level) and a variable (SDTRACE_LOG_LEVEL, lists with commas); flags win over\n\
         # variables, those over this file. `sdtrace config check` tells what is in force and why.\n"
    );
    for (name, arg) in settings_of(command) {
        text.push('\n');
        let help = arg.get_long_help().or_else(|| arg.get_help());
        for line in wrapped(&help.map(ToString::to_string).unwrap_or_default()) {
            let _ = writeln!(text, "# {line}");
        }
        let values: Vec<_> = if is_switch(arg) {
            Vec::new()
        } else {
            arg.get_possible_values()
                .iter()
                .map(|value| value.get_name().to_owned())
                .collect()
        };
        if !values.is_empty() {
            let _ = writeln!(text, "# One of {}.", values.join(", "));
        }
        let _ = writeln!(text, "#{name} = {}", value_of(arg));
    }
    text
}

/// The default; where there is none, what a value looks like.
fn value_of(arg: &Arg) -> String {
    let default = arg.get_default_values().first().and_then(|value| value.to_str());
    match default {
        Some(default) if is_switch(arg) || default.parse::<u64>().is_ok() => default.to_owned(),
        Some(default) => quoted(default),
        None => {
            let name = arg.get_value_names().and_then(<[_]>::first);
            let shown = quoted(name.map_or("VALUE", |name| name.as_str()));
            if is_list(arg) { format!("[{shown}]") } else { shown }
        }
    }
}

/// A basic string of TOML; JSON escapes the same.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// The text in lines of at most [`WIDTH`] bytes, where its words allow.
fn wrapped(text: &str) -> Vec<String> {
    let mut lines = Vec::new();
    for paragraph in text.lines() {
        let mut line = String::new();
        for word in paragraph.split_whitespace() {
            if !line.is_empty() && line.len() + 1 + word.len() > WIDTH {
                lines.push(std::mem::take(&mut line));
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
        lines.push(line);
    }
    lines
}
