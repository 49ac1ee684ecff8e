use std::collections::BTreeMap;

use super::*;
use crate::cli;

/// An environment and files of our own.
#[derive(Default)]
struct Around {
    variables: BTreeMap<String, String>,
    files: BTreeMap<String, String>,
}

impl Around {
    fn variable(mut self, name: &str, value: &str) -> Self {
        self.variables.insert(name.to_owned(), value.to_owned());
        self
    }

    fn file(mut self, path: &str, text: &str) -> Self {
        self.files.insert(path.to_owned(), text.to_owned());
        self
    }
}

impl Outside for Around {
    fn variable(&self, name: &str) -> Option<OsString> {
        self.variables.get(name).map(OsString::from)
    }

    fn variables(&self) -> Vec<String> {
        self.variables.keys().cloned().collect()
    }

    fn read(&self, path: &Path) -> io::Result<String> {
        self.files
            .get(path.to_str().unwrap())
            .cloned()
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

fn settled(line: &str, around: &Around) -> Result<Settled, String> {
    let arguments: Vec<_> = line.split(' ').map(OsString::from).collect();
    settle(&cli::command(), &arguments, around).map_err(|error| error.0)
}

fn setting(settled: &Settled, name: &str) -> Setting {
    let found = settled.settings.iter().find(|setting| setting.name == name);
    found
        .unwrap_or_else(|| panic!("no setting {name} in {settled:?}"))
        .clone()
}

/// A value of this flag that is not its default, found by trying.
fn sample(command: &Command, name: &str, arg: &Arg) -> String {
    let default = arg
        .get_default_values()
        .first()
        .map(|value| value.to_string_lossy().into_owned());
    let possible = arg.get_possible_values();
    possible
        .iter()
        .map(|value| value.get_name().to_owned())
        .chain(
            [
                "7m",
                "2048",
                "40",
                "127.0.0.1:7",
                "debug",
                "rack=7",
                "/a/b",
                "0123abcd",
            ]
            .map(str::to_owned),
        )
        .find(|value| {
            default.as_ref() != Some(value) && try_alone(command, &joined(name, OsStr::new(value))).is_ok()
        })
        .unwrap_or_else(|| panic!("add a sample that --{name} takes"))
}

/// Every flag of `run` there is: none can be forgotten, because the list is that of clap.
#[test]
fn every_setting_can_be_made_in_each_way_and_the_nearest_wins() {
    let command = cli::command();
    let mut met = 0;
    for (name, arg) in settings_of(&command) {
        let value = sample(&command, name, arg);
        let in_toml = if is_switch(arg) {
            value.clone()
        } else {
            quoted(&value)
        };
        let file = format!("# comment\n{name} = {in_toml}\n");
        let none = Around::default();
        let default = setting(&settled("sdtrace run", &none).unwrap(), name);
        assert_eq!(default.origin, Origin::Default, "{name}");
        assert!(!default.values.contains(&value), "{name}");

        let by_file = Around::default().file("/f", &file);
        let from_file = setting(&settled("sdtrace run --config /f", &by_file).unwrap(), name);
        assert_eq!(
            (&from_file.values, from_file.origin.to_string()),
            (&vec![value.clone()], "/f:2".to_owned())
        );

        let by_default_file = Around::default().file(DEFAULT_FILE, &file);
        let from_default_file = setting(&settled("sdtrace run", &by_default_file).unwrap(), name);
        assert_eq!(from_default_file.values, from_file.values, "{name}");

        // The file says something wrong by now, and nobody asks it.
        let variable = variable_of(name);
        let by_variable = Around::default()
            .file("/f", "")
            .variable(&variable, &value)
            .variable("SDTRACE_CONFIG", "/f");
        let from_variable = setting(&settled("sdtrace run", &by_variable).unwrap(), name);
        assert_eq!(from_variable.values, from_file.values, "{name}");
        assert_eq!(from_variable.origin, Origin::Variable(variable.clone()));

        let typed = format!("sdtrace run --{name}={value}");
        let all = by_file
            .variable(&variable, "not asked")
            .variable("SDTRACE_CONFIG", "/f");
        let from_flag = setting(&settled(&typed, &all).unwrap(), name);
        assert_eq!(
            (from_flag.values, from_flag.origin),
            (from_file.values, Origin::CommandLine),
            "{name}"
        );
        met += 1;
    }
    assert!(met >= 16, "{met}");
}

fn quoted(value: &str) -> String {
    format!("{value:?}")
}

#[test]
fn a_variable_wins_over_the_file_and_a_flag_over_both() {
    let around = Around::default()
        .file(
            "/f",
            "log-level = \"warn\"\npid = [1]\nfault-return = true\ntrace-faults = true\n",
        )
        .variable("SDTRACE_LOG_LEVEL", "debug")
        .variable("SDTRACE_PID", "2, 3")
        .variable("SDTRACE_TRACE_FAULTS", "false");
    let settled = settled(
        "sdtrace run --config=/f --fault-return=false --comm a --comm b",
        &around,
    )
    .unwrap();
    let values = |name| setting(&settled, name).values;
    assert_eq!(values("log-level"), ["debug"]);
    assert_eq!(values("pid"), ["2", "3"]);
    assert_eq!(values("comm"), ["a", "b"]);
    assert_eq!(values("fault-return"), ["false"]);
    assert_eq!(values("trace-faults"), ["false"]);
    assert_eq!(settled.file.as_deref(), Some(Path::new("/f")));
}

#[test]
fn a_mistake_names_its_place_and_the_remedy() {
    for (file, expected) in [
        (
            "\nlistne = \"a\"",
            "/f:2: listne: there is no such setting; did you mean listen? `sdtrace config example`",
        ),
        ("config = \"/g\"", "/f:1: config: there is no such setting"),
        ("\"a b\" = 1", "/f:1: a b: there is no such setting"),
        ("attach = \"magic\"", "/f:1: attach: invalid value 'magic'"),
        ("\n\npid = [1, 0]", "/f:3: pid: invalid value '0'"),
        ("for = 30", "write it as 30s"),
        (
            "listen = [\"127.0.0.1:1\"]",
            "/f:1: listen: it takes one value, not several",
        ),
        (
            "listen = true",
            "/f:1: listen: true and false are no values of it",
        ),
        (
            "fault-return = \"true\"",
            "/f:1: fault-return: write true or false, without quotes",
        ),
        (
            "max-vmas = 1",
            "/f:1: max-vmas: invalid value '1' for '--max-vmas <COUNT>': 1 is not in 256..=1048576",
        ),
        ("attach = kprobe", "/f:1: this is not TOML"),
    ] {
        let around = Around::default().file("/f", file);
        let error = settled("sdtrace run --config /f", &around).unwrap_err();
        assert!(error.contains(expected), "{file}: {error}");
        assert!(!error.contains('\n'), "{error}");
    }
    for (variable, value, expected) in [
        ("SDTRACE_ATTACH", "magic", "SDTRACE_ATTACH: invalid value 'magic'"),
        ("SDTRACE_PID", "1,x", "SDTRACE_PID: invalid value 'x'"),
        (
            "SDTRACE_FAULT_RETURN",
            "yes",
            "SDTRACE_FAULT_RETURN: invalid value 'yes'",
        ),
        ("SDTRACE_CONFIG", "/g", "the configuration file /g cannot be read"),
    ] {
        let error = settled("sdtrace run", &Around::default().variable(variable, value)).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn an_empty_variable_says_nothing_and_a_misspelt_one_is_named() {
    let around = Around::default()
        .variable("SDTRACE_LISTEN", "")
        .variable("SDTRACE_LISTN", "127.0.0.1:1")
        .variable("SDTRACE_URL", "http://a")
        .variable("SDTRACE_TEST_LAYOUT_OVERRIDE", "a=1")
        .variable("PATH", "/bin");
    let settled = settled("sdtrace run", &around).unwrap();
    assert_eq!(setting(&settled, "listen").origin, Origin::Default);
    assert_eq!(settled.ignored, ["SDTRACE_LISTN"]);
}

/// What Kubernetes puts into the environment for a service called sdtrace must never be a setting.
#[test]
fn no_setting_takes_a_variable_of_kubernetes() {
    for (name, _) in settings_of(&cli::command()) {
        let variable = variable_of(name);
        assert!(
            variable != "SDTRACE_PORT"
                && !variable.starts_with("SDTRACE_PORT_")
                && !variable.starts_with("SDTRACE_SERVICE_"),
            "{variable}"
        );
    }
}

/// The example says what is true: with every default uncommented nothing changes.
#[test]
fn the_example_holds_every_setting_and_its_default() {
    let command = cli::command();
    let example = example(&command);
    for (name, arg) in settings_of(&command) {
        let line = example
            .lines()
            .find(|line| line.starts_with(&format!("#{name} = ")))
            .unwrap_or_else(|| panic!("{name} is not in\n{example}"));
        if arg.get_default_values().is_empty() {
            continue;
        }
        let around = Around::default().file("/f", line.trim_start_matches('#'));
        let with = settled("sdtrace run --config /f", &around).unwrap();
        let without = settled("sdtrace run", &Around::default()).unwrap();
        assert_eq!(setting(&with, name).values, setting(&without, name).values);
        assert_ne!(setting(&with, name).origin, Origin::Default);
    }
    assert!(
        example
            .lines()
            .all(|line| line.is_empty() || line.starts_with('#'))
    );
}
