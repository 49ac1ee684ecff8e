//! The settings of `sdtrace run` from its four sources: command line, environment, file, defaults, the first that
//! says something wins.
//!
//! There is one list of settings, the flags of clap's command: key `log-level` in the file and `SDTRACE_LOG_LEVEL` in
//! the environment are the flag `--log-level`, for every flag that there is or will be. Whatever a source says is
//! handed to clap as if it had been typed, so that the same parsers check it.

mod example;
mod file;
#[cfg(test)]
mod tests;

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::cli::{UsageError, one_line};
pub use example::example;
use file::Entry;

/// The file that is read when none is named.
pub const DEFAULT_FILE: &str = "/etc/sdtrace/sdtrace.toml";
/// The flag that names the file, and the variable for it.
const FILE_FLAG: &str = "config";
/// What the names of variables begin with.
const PREFIX: &str = "SDTRACE_";
/// Variables that are not settings of `run`: flags of other commands, and hooks of the tests.
const OTHER_VARIABLES: [&str; 3] = ["SDTRACE_URL", "SDTRACE_CACHE", "SDTRACE_TEST_"];

/// What lies outside of the process.
pub trait Outside {
    /// The value of a variable of the environment.
    fn variable(&self, name: &str) -> Option<OsString>;
    /// The names of all variables.
    fn variables(&self) -> Vec<String>;
    /// The text of a file.
    ///
    /// # Errors
    /// If it cannot be read.
    fn read(&self, path: &Path) -> io::Result<String>;
}

/// This process and its machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct Here;

impl Outside for Here {
    fn variable(&self, name: &str) -> Option<OsString> {
        std::env::var_os(name)
    }

    fn variables(&self) -> Vec<String> {
        std::env::vars_os()
            .map(|(name, _)| name.to_string_lossy().into_owned())
            .collect()
    }

    fn read(&self, path: &Path) -> io::Result<String> {
        std::fs::read_to_string(path)
    }
}

/// Where a setting was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Typed.
    CommandLine,
    /// A variable of the environment.
    Variable(String),
    /// A line of the file.
    File(PathBuf, usize),
    /// Nowhere.
    Default,
}

impl std::fmt::Display for Origin {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::CommandLine => formatter.write_str("command line"),
            Self::Variable(name) => formatter.write_str(name),
            Self::File(path, line) => write!(formatter, "{}:{line}", path.display()),
            Self::Default => formatter.write_str("default"),
        }
    }
}

/// One setting: what it is in the end, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Name of the flag without its dashes, and key in the file.
    pub name: String,
    /// Values, as one would type them.
    pub values: Vec<String>,
    /// Where they come from.
    pub origin: Origin,
}

/// Everything that was settled.
#[derive(Debug)]
pub struct Settled {
    /// The matches of the whole command line, with what the other sources add.
    pub matches: ArgMatches,
    /// Every setting.
    pub settings: Vec<Setting>,
    /// The file that was read.
    pub file: Option<PathBuf>,
    /// Variables that look like settings and are none.
    pub ignored: Vec<String>,
}

impl Settled {
    /// A mistake in a setting, with the place where it was made.
    #[must_use]
    pub fn mistake(&self, name: &str, why: &str) -> UsageError {
        let origin = self.settings.iter().find(|setting| setting.name == name);
        UsageError(match origin.map(|setting| &setting.origin) {
            Some(origin @ (Origin::File(..) | Origin::Variable(_))) => located(origin, name, why),
            _ => why.to_owned(),
        })
    }
}

/// Makes switches of `run` take an optional `=true` or `=false`: without it, the command line could not switch off
/// what the file switches on.
#[must_use]
pub fn with_switches(command: Command) -> Command {
    let switch = |arg: Arg| {
        if !matches!(arg.get_action(), ArgAction::SetTrue) {
            return arg;
        }
        arg.action(ArgAction::Set)
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true")
            .default_value("false")
            .value_name("BOOL")
            .value_parser(clap::value_parser!(bool))
            .hide_possible_values(true)
    };
    // All of them are visited, because they keep their order only so.
    command.mut_subcommands(|command| match command.get_name() {
        "run" => command.mut_args(switch),
        _ => command,
    })
}

/// The settings of `run`: every long flag but those that are no settings.
pub fn settings_of(command: &Command) -> impl Iterator<Item = (&str, &Arg)> {
    let run = command.find_subcommand("run");
    run.into_iter()
        .flat_map(Command::get_arguments)
        .filter_map(|arg| {
            let name = arg.get_long()?;
            (!["help", "version", FILE_FLAG].contains(&name)).then_some((name, arg))
        })
}

/// The variable of a setting.
#[must_use]
pub fn variable_of(name: &str) -> String {
    format!("{PREFIX}{}", name.replace('-', "_").to_ascii_uppercase())
}

/// Whether a setting may have several values.
fn is_list(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::Append)
}

fn is_switch(arg: &Arg) -> bool {
    arg.get_num_args().is_some_and(|number| number.min_values() == 0)
}

/// Settles `run`. `arguments` is a command line that clap has understood as that of `run`; `command` has been through
/// [`with_switches`].
///
/// # Errors
/// Names the place of the first mistake, and what to do.
///
/// # Panics
/// If the arguments are not those of `run`.
pub fn settle(
    command: &Command,
    arguments: &[OsString],
    outside: &impl Outside,
) -> Result<Settled, UsageError> {
    let typed = matches_of(command, arguments.iter().cloned())?;
    let run = typed.subcommand_matches("run").expect("a command line of run");
    let file = file_named(run, outside)?;
    let entries = match &file {
        Some(path) => file::entries(path, &read(path, outside)?)?,
        None => Vec::new(),
    };
    for entry in &entries {
        if !settings_of(command).any(|(name, _)| name == entry.key) {
            return Err(unknown_key(command, entry));
        }
    }
    let mut added: Vec<OsString> = Vec::new();
    let mut origins = Vec::new();
    for (name, arg) in settings_of(command) {
        let (origin, values) = if run.value_source(arg.get_id().as_str()) == Some(ValueSource::CommandLine) {
            (Origin::CommandLine, Vec::new())
        } else if let Some(values) = of_variable(name, arg, outside)? {
            (Origin::Variable(variable_of(name)), values)
        } else if let Some(entry) = entries.iter().find(|entry| entry.key == name) {
            (
                Origin::File(entry.path.clone(), entry.line),
                of_entry(entry, arg)?,
            )
        } else {
            (Origin::Default, Vec::new())
        };
        for value in values {
            let argument = joined(name, &value);
            try_alone(command, &argument).map_err(|why| UsageError(located(&origin, name, &why)))?;
            added.push(argument);
        }
        origins.push((name.to_owned(), arg.get_id().to_string(), origin));
    }
    let matches = matches_of(command, with_added(arguments, added))?;
    let run = matches
        .subcommand_matches("run")
        .expect("arguments were added to run");
    let settings = origins.into_iter().map(|(name, id, origin)| Setting {
        values: run
            .get_raw(&id)
            .into_iter()
            .flatten()
            .map(|value| value.to_string_lossy().into_owned())
            .collect(),
        name,
        origin,
    });
    Ok(Settled {
        settings: settings.collect(),
        matches,
        file,
        ignored: ignored(command, outside),
    })
}

fn matches_of(
    command: &Command,
    arguments: impl IntoIterator<Item = OsString>,
) -> Result<ArgMatches, UsageError> {
    command
        .clone()
        .try_get_matches_from(arguments)
        .map_err(|error| UsageError(one_line(&error.render().to_string())))
}

/// The arguments with others put in right behind `run`.
fn with_added(arguments: &[OsString], added: Vec<OsString>) -> Vec<OsString> {
    let at = arguments
        .iter()
        .position(|argument| argument == "run")
        .map_or(arguments.len(), |at| at + 1);
    let mut all = arguments.to_vec();
    all.splice(at..at, added);
    all
}

/// The file to read, if any.
fn file_named(run: &ArgMatches, outside: &impl Outside) -> Result<Option<PathBuf>, UsageError> {
    if let Some(path) = run.get_one::<PathBuf>(FILE_FLAG) {
        return Ok(Some(path.clone()));
    }
    if let Some(path) = set(&variable_of(FILE_FLAG), outside) {
        return Ok(Some(PathBuf::from(path)));
    }
    let usual = PathBuf::from(DEFAULT_FILE);
    match outside.read(&usual) {
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(None)
        }
        Ok(_) => Ok(Some(usual)),
        Err(error) => Err(unreadable(&usual, &error)),
    }
}

fn read(path: &Path, outside: &impl Outside) -> Result<String, UsageError> {
    outside.read(path).map_err(|error| unreadable(path, &error))
}

fn unreadable(path: &Path, error: &io::Error) -> UsageError {
    let remedy = match error.kind() {
        io::ErrorKind::NotFound => {
            "name one that exists with --config; `sdtrace config example` prints one to begin with"
        }
        io::ErrorKind::PermissionDenied => "let the user that runs sdtrace read it",
        io::ErrorKind::InvalidData => "write it in UTF-8",
        _ => "name a TOML file with --config",
    };
    UsageError(format!(
        "the configuration file {} cannot be read: {error}; {remedy}",
        path.display()
    ))
}

/// A variable that says something; an empty one is as good as none.
fn set(name: &str, outside: &impl Outside) -> Option<OsString> {
    outside.variable(name).filter(|value| !value.is_empty())
}

/// What the environment says. The values of a list are separated by commas.
fn of_variable(name: &str, arg: &Arg, outside: &impl Outside) -> Result<Option<Vec<OsString>>, UsageError> {
    let variable = variable_of(name);
    let Some(value) = set(&variable, outside) else {
        return Ok(None);
    };
    if !is_list(arg) {
        return Ok(Some(vec![value]));
    }
    let text = value.to_str().ok_or_else(|| {
        UsageError(located(
            &Origin::Variable(variable),
            name,
            "it is not UTF-8; put the values into the configuration file",
        ))
    })?;
    Ok(Some(
        text.split(',')
            .map(|value| OsString::from(value.trim()))
            .collect(),
    ))
}

/// What the file says.
fn of_entry(entry: &Entry, arg: &Arg) -> Result<Vec<OsString>, UsageError> {
    let wrong = |why: &str| Err(UsageError(format!("{}: {}: {why}", entry.place(), entry.key)));
    if entry.list && !is_list(arg) {
        return wrong("it takes one value, not several; write it without [ ]");
    }
    if entry.boolean && !is_switch(arg) {
        return wrong("true and false are no values of it; `sdtrace run --help` tells what it takes");
    }
    if is_switch(arg) && !entry.boolean {
        return wrong("write true or false, without quotes");
    }
    Ok(entry.values.iter().map(OsString::from).collect())
}

fn joined(name: &str, value: &OsStr) -> OsString {
    let mut argument = OsString::from(format!("--{name}="));
    argument.push(value);
    argument
}

/// Whether clap takes this argument; what it needs or excludes besides is a matter of the whole line.
fn try_alone(command: &Command, argument: &OsStr) -> Result<(), String> {
    let line = [OsStr::new("sdtrace"), OsStr::new("run"), argument].map(OsStr::to_owned);
    match command.clone().try_get_matches_from(line) {
        Err(error)
            if !matches!(
                error.kind(),
                ErrorKind::MissingRequiredArgument | ErrorKind::ArgumentConflict
            ) =>
        {
            Err(one_line(&error.render().to_string()).replace("; try --help", "; see `sdtrace run --help`"))
        }
        _ => Ok(()),
    }
}

fn unknown_key(command: &Command, entry: &Entry) -> UsageError {
    let line = [
        "sdtrace".to_owned(),
        "run".to_owned(),
        format!("--{}=", entry.key),
    ];
    let alike = command
        .clone()
        .try_get_matches_from(line)
        .err()
        .and_then(|error| {
            // clap suggests what it thinks is meant.
            match error.get(ContextKind::SuggestedArg) {
                Some(ContextValue::String(flag)) => Some(flag.trim_start_matches('-').to_owned()),
                _ => None,
            }
        });
    let hint = alike
        .filter(|name| settings_of(command).any(|(known, _)| known == name))
        .map_or_else(String::new, |name| format!("did you mean {name}? "));
    UsageError(format!(
        "{}: {}: there is no such setting; {hint}`sdtrace config example` lists them all",
        entry.place(),
        entry.key
    ))
}

fn located(origin: &Origin, name: &str, why: &str) -> String {
    match origin {
        Origin::Variable(variable) => format!("{variable}: {why}"),
        Origin::File(..) => format!("{origin}: {name}: {why}"),
        Origin::CommandLine | Origin::Default => why.to_owned(),
    }
}

/// Variables with our prefix that nobody reads: most likely misspelt. Kubernetes makes some of its own for a service
/// of our name.
fn ignored(command: &Command, outside: &impl Outside) -> Vec<String> {
    let known: Vec<_> = settings_of(command)
        .map(|(name, _)| variable_of(name))
        .chain([variable_of(FILE_FLAG)])
        .collect();
    let mut ignored: Vec<_> = outside
        .variables()
        .into_iter()
        .filter(|name| name.starts_with(PREFIX) && !known.contains(name))
        .filter(|name| !OTHER_VARIABLES.iter().any(|other| name.starts_with(other)))
        .collect();
    ignored.sort();
    ignored
}
