//! The command line as a user meets it: one clear line for each mistake, and the exit code.

use std::net::TcpListener;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

fn sdtrace(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sdtrace"));
    command.args(arguments);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("SDTRACE_") {
            command.env_remove(name);
        }
    }
    command
}

/// The one line on stderr, and the exit code.
fn complaint(output: &Output) -> (i32, String) {
    let said = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(said.lines().count(), 1, "one line: {said}");
    let line = said
        .trim_end()
        .strip_prefix("sdtrace: ")
        .unwrap_or_else(|| panic!("{said}"))
        .to_owned();
    (output.status.code().unwrap(), line)
}

fn complains(arguments: &[&str]) -> (i32, String) {
    complaint(&sdtrace(arguments).output().unwrap())
}

#[test]
fn mistakes_on_the_command_line_exit_with_2() {
    for (arguments, part) in [
        (&["run", "--nonsense"][..], "unexpected argument '--nonsense'"),
        (&["run", "--listen", "nowhere"], "--listen"),
        (&["run", "--for", "0s"], "longer than 0"),
        (
            &["run", "--keep-vmas", "1"],
            "VMA states must lie between 1024 and 4194304, not 1",
        ),
        (&["nothing"], "unrecognized subcommand 'nothing'"),
        (&[], "say what to do"),
    ] {
        let (code, line) = complains(arguments);
        assert_eq!(code, 2, "{arguments:?}: {line}");
        assert!(line.contains(part), "{arguments:?}: {line}");
    }
}

/// A mistake in the file costs no more than a look at one line: nothing is bound, loaded or attached before.
#[test]
fn mistakes_in_the_configuration_exit_with_2_and_name_their_place() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("sdtrace.toml");
    let path = file.to_str().unwrap();
    for (text, part) in [
        (
            "listen = \"127.0.0.1:0\"\nlog-levle = \"warn\"\n",
            ":2: log-levle: there is no such setting; did you mean log-level?",
        ),
        (
            "keep-epochs = 1\n",
            ":1: keep-epochs: closed epochs must lie between 2 and 4096, not 1",
        ),
        (
            "[label]\ncluster = \"a\"\njob = \"b\"\n",
            ":1: label: invalid value 'job=b'",
        ),
        ("pid = [\n", ":1: this is not TOML"),
    ] {
        std::fs::write(&file, text).unwrap();
        for arguments in [&["run", "--config", path][..], &["config", "check", path]] {
            let (code, line) = complains(arguments);
            assert_eq!(code, 2, "{line}");
            assert!(line.starts_with(&format!("{path}{part}")), "{line}");
        }
    }
    let (code, line) = complains(&["config", "check", "/no/such/file"]);
    assert_eq!((code, line.contains("with --config")), (2, true), "{line}");
    std::fs::write(&file, "log-level = \"warn\"\n").unwrap();
    let output = sdtrace(&["config", "check", path])
        .env("SDTRACE_PID", "7,8")
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}");
    for expected in [
        format!("warn {path}:1"),
        "7, 8 SDTRACE_PID".to_owned(),
        "auto default".to_owned(),
    ] {
        let squeezed: Vec<_> = said.split_whitespace().collect();
        assert!(squeezed.join(" ").contains(&expected), "{said}");
    }
}

#[test]
fn help_and_version_are_no_mistakes() {
    for arguments in [["run", "--help"], ["--version", "--"]] {
        let output = sdtrace(&arguments).output().unwrap();
        assert!(output.status.success());
        assert!(output.stderr.is_empty());
    }
}

#[test]
fn no_daemon_is_one_line() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (code, line) = complains(&["dump", "--url", &format!("http://{free}")]);
    assert_eq!(code, 1);
    assert!(
        line.contains("is `sdtrace run` running") && line.contains("refused"),
        "{line}"
    );
    let (code, line) = complains(&["dump", "--url", "ftp://127.0.0.1"]);
    assert_eq!((code, line.contains("only http://")), (1, true), "{line}");
}

#[test]
fn a_cgroup_that_cannot_be_read_is_one_line() {
    let (code, line) = complains(&["run", "--cgroup", "/no/such.slice"]);
    assert_eq!(code, 1);
    assert!(
        line.contains("--cgroup /no/such.slice") && line.contains("/proc/PID/cgroup"),
        "{line}"
    );
}

/// Root without any capability left, as a container may have it; setpriv is part of util-linux.
fn without_capabilities(arguments: &[&str]) -> Output {
    let mut command = Command::new("setpriv");
    command
        .args(["--bounding-set=-all", "--inh-caps=-all"])
        .arg(env!("CARGO_BIN_EXE_sdtrace"))
        .args(arguments);
    command.output().unwrap()
}

#[test]
fn missing_capabilities_are_named() {
    let (code, line) = complaint(&without_capabilities(&["run", "--listen", "127.0.0.1:0"]));
    assert_eq!(code, 1);
    for name in ["CAP_BPF", "CAP_PERFMON", "CAP_SYS_PTRACE", "run as root"] {
        assert!(line.contains(name), "{line}");
    }
    let output = without_capabilities(&["check", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["works"], false);
    assert_eq!(report["missing_capabilities"][0]["capability"], "CAP_BPF");
}

/// What `check` says about this machine agrees with what `run` does, whatever this machine is.
#[test]
fn check_and_run_agree() {
    let check = sdtrace(&["check", "--json"]).output().unwrap();
    let report: serde_json::Value = serde_json::from_slice(&check.stdout).unwrap();
    assert_eq!(check.status.success(), report["works"].as_bool().unwrap());
    let proved = report["round_trip"].as_array().unwrap();
    assert_eq!(proved.len(), 3);
    let run = sdtrace(&["run", "--listen", "127.0.0.1:0", "--for", "1s"])
        .output()
        .unwrap();
    if report["works"] == true {
        assert!(run.status.success(), "{run:?}");
    } else {
        let (code, line) = complaint(&run);
        let what = report["problems"][0]["what"].as_str().unwrap();
        assert_eq!(code, 1);
        assert!(line.contains(what), "{line}");
    }
}

#[test]
fn a_table_says_in_plain_words_what_is_missing() {
    let output = sdtrace(&["check"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let verdict = if output.status.success() {
        "sdtrace run would work here."
    } else {
        "sdtrace run would not work here:\n- "
    };
    assert!(text.contains(verdict), "{text}");
    for row in [
        "CONFIG_MEM_SOFT_DIRTY",
        "CONFIG_KPROBES",
        "capabilities",
        "soft-dirty in",
    ] {
        assert!(text.contains(row), "{row} is not in\n{text}");
    }
}

#[test]
fn a_reader_that_went_away_is_one_line() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = sdtrace(&["metrics-docs"]).stdout(writer).output().unwrap();
    let (code, line) = complaint(&output);
    assert_eq!(
        (code, line.contains("cannot write to standard output")),
        (1, true),
        "{line}"
    );
}

/// Whoever gates a checkpoint on the exit code must never read trust out of silence.
#[test]
fn a_verdict_that_cannot_be_had_is_unknown() {
    // A port that nobody listens on: bound, and given back.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("http://{port}");
    let own = std::process::id().to_string();
    let output = sdtrace(&["verdict", &own, "--url", &url]).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(5), "{said}");
    assert!(said.contains("is `sdtrace run` running"), "{said}");
    let output = sdtrace(&["verdict", &own, "--url", &url, "--json"])
        .output()
        .unwrap();
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (output.status.code(), &answer["verdict"]),
        (Some(5), &"unknown".into())
    );
    let output = sdtrace(&["verdict", "4194304", "--url", &url]).output().unwrap();
    assert_eq!(output.status.code(), Some(5));
    for (arguments, part) in [
        (&["verdict"][..], "PID"),
        (&["verdict", "0"], "0 is not in 1..=4194304"),
        (&["verdict", "1", "--epoch", "newest"], "last or open"),
    ] {
        let (code, line) = complains(arguments);
        assert_eq!((code, line.contains(part)), (2, true), "{line}");
    }
}

/// `clear_refs=4` succeeds on every kernel; only a page that was written after it tells whether bits are kept at all.
#[test]
fn the_battery_runs_nothing_where_the_kernel_keeps_no_bits() {
    let start = Instant::now();
    let output = sdtrace(&["battery", "--json", "--only", "control-private-anon"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0));
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let results = said["results"].as_array().unwrap();
    if said["soft_dirty"] == true {
        assert_eq!(results[0]["result"], "tracked", "{said}");
        return;
    }
    assert!(results.is_empty(), "{said}");
    let why = said["why"].as_str().unwrap();
    assert!(why.contains("this kernel has no soft-dirty tracking"), "{why}");
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "it says so after {:?}",
        start.elapsed()
    );
    // Nothing was compared, so nothing can be as expected.
    let compared = sdtrace(&["battery", "--expect", "--only", "control-private-anon"])
        .output()
        .unwrap();
    assert_ne!(compared.status.code(), Some(0));
}
