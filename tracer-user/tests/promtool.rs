//! The metrics against `promtool check metrics`, the linter of Prometheus (Debian package prometheus).

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::UNIX_EPOCH;

use sdtrace::export::metrics::reading::Reading;
use sdtrace::export::metrics::{Facts, Metrics};

#[test]
fn promtool_has_nothing_to_say() {
    let metrics = Metrics::new(&Facts {
        kernel: "6.1.0-test".to_owned(),
        started: UNIX_EPOCH,
    })
    .unwrap();
    let text = metrics.render(Reading::example()).unwrap();
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool is not there: apt-get install prometheus");
    promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success() && said.trim().is_empty(), "{said}");
}
