//! A Prometheus of our own: Debian's server on the loopback interface, and its HTTP API.

use crate::provision::promtool;
use crate::suite::daemon::get;
use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tempfile::TempDir;

/// It starts within a second; a busy host takes its time.
const START: Duration = Duration::from_mins(2);

/// A running server; it and what it stored are gone when dropped.
pub struct Prometheus {
    child: Child,
    address: SocketAddr,
    folder: TempDir,
}

impl Prometheus {
    /// Starts it with this configuration and waits until it is ready.
    pub fn start(configuration: &str, port: u16) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("prometheus.yml");
        fs::write(&file, configuration)?;
        let log = File::create(folder.path().join("log"))?;
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        // Its times are measured; root gives it the processor before other work, anybody else gets a warning in the log.
        let child = Command::new("nice")
            .args(["-n", "-10"])
            .arg(promtool::server()?)
            .arg(format!("--config.file={}", file.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                folder.path().join("data").display()
            ))
            .arg(format!("--web.listen-address={address}"))
            .arg("--web.enable-remote-write-receiver")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start prometheus")?;
        let mut server = Self {
            child,
            address,
            folder,
        };
        let start = Instant::now();
        loop {
            if let Some(status) = server.child.try_wait()? {
                bail!("prometheus ended with {status}: {}", server.said());
            }
            if get(address, "/-/ready").is_ok_and(|answer| answer.status == 200) {
                return Ok(server);
            }
            ensure!(
                start.elapsed() < START,
                "prometheus is not ready: {}",
                server.said()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The end of its log.
    fn said(&self) -> String {
        let text = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(5)..].join(" | ")
    }

    /// Asks its API, below /api/v1.
    pub fn ask(&self, path: &str, parameters: &[(&str, &str)]) -> Result<Value> {
        let mut url = format!("/api/v1/{path}");
        for (at, (name, value)) in parameters.iter().enumerate() {
            let _ = write!(
                url,
                "{}{name}={}",
                if at == 0 { '?' } else { '&' },
                escaped(value)
            );
        }
        let answer = get(self.address, &url)?;
        let json: Value = serde_json::from_str(&answer.body).with_context(|| answer.body.clone())?;
        ensure!(
            json["status"] == "success",
            "Prometheus answers {}",
            json["error"]
        );
        Ok(json["data"].clone())
    }

    /// How many series an expression gives, at the present moment or, with `since`, at any since then. Only series with a
    /// number in them count; what was divided by zero is none.
    pub fn series(&self, expression: &str, since: Option<SystemTime>) -> Result<usize> {
        let now = seconds(SystemTime::now()).to_string();
        let data = match since {
            None => self.ask("query", &[("query", expression), ("time", &now)]),
            Some(since) => {
                let start = seconds(since).to_string();
                let range = [
                    ("query", expression),
                    ("start", &start),
                    ("end", &now),
                    ("step", "2"),
                ];
                self.ask("query_range", &range)
            }
        }
        .with_context(|| expression.to_owned())?;
        if data["resultType"] == "scalar" {
            return Ok(1);
        }
        let result = data["result"].as_array().context("no result")?;
        let with_number = result.iter().filter(|series| {
            let over_time = series["values"].as_array().into_iter().flatten();
            over_time.chain([&series["value"]]).any(is_number)
        });
        Ok(with_number.count())
    }

    /// How long its threads have run, and how long they have waited for a processor, as the kernel accounts for it; nothing
    /// where it does not.
    pub fn run_and_wait(&self) -> Result<(Duration, Duration)> {
        let (mut run, mut wait) = (0, 0);
        for task in fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            // A thread may end meanwhile; a kernel without CONFIG_SCHED_INFO has no such file.
            let text = fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
            let mut numbers = text.split_whitespace().map(str::parse::<u64>);
            if let (Some(Ok(of_run)), Some(Ok(of_wait))) = (numbers.next(), numbers.next()) {
                (run, wait) = (run + of_run, wait + of_wait);
            }
        }
        Ok((Duration::from_nanos(run), Duration::from_nanos(wait)))
    }

    /// The numbers that it tells of itself under a name, with their labels.
    pub fn own(&self, name: &str) -> Result<Vec<(String, f64)>> {
        let answer = get(self.address, "/metrics")?;
        let lines = answer.body.lines().filter(|line| {
            line.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with(['{', ' ']))
        });
        lines
            .map(|line| {
                let (labels, value) = line.rsplit_once(' ').context("a sample has a value")?;
                Ok((labels.to_owned(), value.parse()?))
            })
            .collect()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // It may have ended by itself, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether a pair of time and value has a number.
fn is_number(pair: &Value) -> bool {
    let value = pair[1].as_str().and_then(|value| value.parse::<f64>().ok());
    value.is_some_and(f64::is_finite)
}

/// Seconds since 1970.
pub fn seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// A value in a URL.
fn escaped(value: &str) -> String {
    let mut text = String::new();
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_escaped_and_numbers_told_from_none() {
        assert_eq!(escaped("a{b=~\"c\"} > 0"), "a%7Bb%3D~%22c%22%7D%20%3E%200");
        let pair = |value: &str| serde_json::json!([1.0, value]);
        assert!(is_number(&pair("0")));
        for none in ["NaN", "+Inf", "-Inf", ""] {
            assert!(!is_number(&pair(none)), "{none}");
        }
    }
}
