use super::*;

/// A machine without any setting.
struct Nothing;

impl Outside for Nothing {
    fn variable(&self, _name: &str) -> Option<OsString> {
        None
    }

    fn variables(&self) -> Vec<String> {
        Vec::new()
    }

    fn read(&self, _path: &std::path::Path) -> std::io::Result<String> {
        Err(std::io::ErrorKind::NotFound.into())
    }
}

fn read(line: &str) -> Result<Parsed, UsageError> {
    let arguments: Vec<_> = line.split(' ').map(OsString::from).collect();
    parse_in(&arguments, &Nothing)
}

fn run(line: &str) -> RunArgs {
    match read(line) {
        Ok(Parsed::Command(Command::Run(arguments))) => *arguments,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_definition_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn run_has_defaults_and_takes_filters() {
    let defaults = run("sdtrace run");
    assert_eq!(defaults.listen.to_string(), DEFAULT_LISTEN);
    assert_eq!(defaults.checked_limits(), Ok(Limits::default()));
    let filtered = run("sdtrace run --pid 7 --pid 8 --comm redis --for 1m30s --attach kprobe");
    assert_eq!(
        (filtered.pids, filtered.comms),
        (vec![7, 8], vec!["redis".to_owned()])
    );
    assert_eq!(filtered.duration, Some(Duration::from_secs(90)));
    assert_eq!(filtered.attach, AttachMode::Kprobe);
}

#[test]
fn every_mistake_is_one_line() {
    for (line, expected) in [
        (
            "sdtrace run --nonsense",
            "unexpected argument '--nonsense' found; try --help",
        ),
        ("sdtrace run --for 0s", "it must be longer than 0"),
        ("sdtrace run --for soon", "write it as 30s"),
        ("sdtrace run --comm aaaaaaaaaaaaaaaa", "1 to 15 bytes"),
        ("sdtrace run --listen 9955", "--listen"),
        (
            "sdtrace run --attach magic",
            "possible values: auto, fentry, kprobe",
        ),
        ("sdtrace run --pid 0", "--pid"),
        ("sdtrace run --max-vmas 1", "1 is not in 256..=1048576"),
        ("sdtrace", "say what to do: run, check, dump"),
        ("sdtrace rum", "unrecognized subcommand 'rum'"),
    ] {
        let error = read(line).unwrap_err().0;
        assert!(error.contains(expected), "{line}: {error}");
        assert!(!error.contains('\n'), "{line}: {error}");
    }
}

#[test]
fn limits_are_checked() {
    let error = read("sdtrace run --keep-epochs 1").unwrap_err();
    assert_eq!(error.0, "closed epochs must lie between 2 and 4096, not 1");
    let error = read("sdtrace run --label a=1 --label a=2").unwrap_err().0;
    assert_eq!(error, "the label 'a' is given twice; give it once");
    let many = format!("sdtrace run{}", " --comm a".repeat(9));
    let error = read(&many).unwrap_err().0;
    assert!(
        error.starts_with("--comm can be given at most 8 times, not 9"),
        "{error}"
    );
}
