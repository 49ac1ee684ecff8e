//! The metrics of 500 nodes: each has the series of a real scrape under its own name, with values of its own. A real
//! Prometheus takes them in and evaluates the rules over an hour of them.

use super::server::{Prometheus, seconds};
use crate::provision::say;
use crate::suites::transport::free_port;
use crate::workspace::root;
use anyhow::{Context as _, Result, bail, ensure};
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

/// As the acceptance asks.
const NODES: usize = 500;
/// The group of the recording rules.
const RECORDED: &str = "softdirty-recorded";
/// What the recording rules may take, by Prometheus' own measure, without the time in which its threads waited for a
/// processor that other work had.
const MOST: Duration = Duration::from_secs(1);
/// Evaluations of which the best counts: other work on the machine makes one slow, and none fast.
const EVALUATIONS: usize = 3;
/// How long all of it may take.
const PATIENCE: Duration = Duration::from_mins(8);
/// Between two scrapes of a node.
const SCRAPES: Duration = Duration::from_secs(10);

/// What an evaluation took, in seconds.
struct Times {
    /// The recording rules.
    recorded: f64,
    /// The same as a clock on the wall shows it.
    recorded_with_waiting: f64,
    /// All rules.
    all: f64,
}

/// A line of a scrape.
enum Line {
    /// A comment.
    Comment(String),
    /// A sample that only grows, and its value.
    Grows(String, f64),
    /// Any other sample.
    Stands(String, f64),
}

/// A scrape, taken apart.
struct Scrape(Vec<Line>);

impl Scrape {
    fn parse(text: &str) -> Result<Self> {
        let mut counts = false;
        let mut lines = Vec::new();
        for line in text.lines().filter(|line| !line.is_empty()) {
            if line.starts_with('#') {
                if line.starts_with("# TYPE ") {
                    counts = line.ends_with(" counter") || line.ends_with(" histogram");
                }
                lines.push(Line::Comment(line.to_owned()));
                continue;
            }
            let (name, value) = line.rsplit_once(' ').context("a sample has a value")?;
            let value: f64 = value.parse()?;
            lines.push(if counts {
                Line::Grows(name.to_owned(), value)
            } else {
                Line::Stands(name.to_owned(), value)
            });
        }
        ensure!(lines.len() > 100, "the scrape has {} lines", lines.len());
        Ok(Self(lines))
    }

    fn samples(&self) -> usize {
        let samples = self.0.iter().filter(|line| !matches!(line, Line::Comment(_)));
        samples.count()
    }

    /// What a node says after so many seconds: no two nodes say the same, and what grows goes on growing.
    fn of_node(&self, node: usize, elapsed: f64) -> String {
        let factor = number(node % 7 + 1) * (1.0 + elapsed / 100.0);
        let mut text = String::new();
        for line in &self.0 {
            // To a string nothing can be written that fails.
            let _ = match line {
                Line::Comment(comment) => writeln!(text, "{comment}"),
                Line::Grows(name, value) => writeln!(text, "{name} {}", (value * factor).floor()),
                Line::Stands(name, value) => writeln!(text, "{name} {value}"),
            };
        }
        text
    }
}

#[allow(clippy::cast_precision_loss, reason = "a handful")]
fn number(count: usize) -> f64 {
    count as f64
}

/// A server that answers for every node, each under a path of its own.
struct Nodes {
    address: SocketAddr,
    answered: Arc<AtomicUsize>,
    ended: Arc<AtomicBool>,
}

impl Nodes {
    fn start(scrape: Scrape) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let nodes = Self {
            address: listener.local_addr()?,
            answered: Arc::default(),
            ended: Arc::default(),
        };
        let (answered, ended) = (Arc::clone(&nodes.answered), Arc::clone(&nodes.ended));
        let (scrape, start) = (Arc::new(scrape), Instant::now());
        thread::spawn(move || {
            for stream in listener.incoming() {
                if ended.load(Ordering::SeqCst) {
                    break;
                }
                let (scrape, answered) = (Arc::clone(&scrape), Arc::clone(&answered));
                // A connection that breaks is a failed scrape, which the test counts.
                thread::spawn(move || stream.map(|stream| serve(&stream, &scrape, start, &answered)));
            }
        });
        Ok(nodes)
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        // Wakes the listener, which then ends; if it has ended, there is nothing to wake.
        drop(TcpStream::connect(self.address));
    }
}

/// Answers the requests of one connection.
fn serve(stream: &TcpStream, scrape: &Scrape, start: Instant, answered: &AtomicUsize) -> Result<()> {
    let mut lines = BufReader::new(stream).lines();
    loop {
        let Some(request) = lines.next().transpose()? else {
            return Ok(());
        };
        while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
        let node = request.split(['/', ' ']).nth(2).context("no path")?.parse()?;
        let body = scrape.of_node(node, start.elapsed().as_secs_f64());
        let mut out = stream;
        write!(
            out,
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
        answered.fetch_add(1, Ordering::SeqCst);
    }
}

/// Runs it on a scrape of a real sdtrace.
pub fn run(metrics: &str) -> Result<()> {
    let scrape = Scrape::parse(metrics)?;
    let samples = scrape.samples();
    let nodes = Nodes::start(scrape)?;
    let mut targets = String::new();
    for node in 0..NODES {
        let cluster = node % 5;
        writeln!(
            targets,
            "      - {{targets: ['{}'], labels: {{__metrics_path__: /{node}, instance: node-{node}, cluster: cluster-{cluster}}}}}",
            nodes.address
        )?;
    }
    let configuration = format!(
        "global: {{scrape_interval: {0}s, scrape_timeout: {0}s, evaluation_interval: {0}s}}\nrule_files: [{1}]\n\
         scrape_configs:\n  - job_name: sdtrace\n    static_configs:\n{targets}",
        SCRAPES.as_secs(),
        root().join("dashboards/rules.yml").display()
    );
    let (began, start) = (SystemTime::now(), Instant::now());
    let prometheus = Prometheus::start(&configuration, free_port()?)?;
    let mut times = Vec::new();
    let mut seen = String::new();
    let mut before = prometheus.run_and_wait()?;
    while times.len() < EVALUATIONS {
        if start.elapsed() > PATIENCE {
            bail!("only {} evaluations with all nodes in {PATIENCE:?}", times.len());
        }
        thread::sleep(Duration::from_secs(1));
        // Only what was evaluated over several scrapes of every node counts.
        if nodes.answered.load(Ordering::SeqCst) < 4 * NODES {
            continue;
        }
        let evaluated = prometheus.own("prometheus_rule_group_last_evaluation_timestamp_seconds")?;
        let evaluated = format!("{evaluated:?}");
        if evaluated != seen {
            let groups = prometheus.own("prometheus_rule_group_last_duration_seconds")?;
            ensure!(
                !groups.is_empty(),
                "Prometheus tells no time of any group of rules"
            );
            let recorded = groups
                .iter()
                .find(|(labels, _)| labels.contains(&format!(";{RECORDED}\"")));
            let (_, recorded) = recorded.context("Prometheus tells no time of the recording rules")?;
            let now = prometheus.run_and_wait()?;
            let (run, wait) = (now.0.saturating_sub(before.0), now.1.saturating_sub(before.1));
            let share = if (run + wait).is_zero() {
                1.0
            } else {
                run.div_duration_f64(run + wait)
            };
            times.push(Times {
                recorded: recorded * share,
                recorded_with_waiting: *recorded,
                all: groups.iter().map(|(_, seconds)| seconds * share).sum(),
            });
            before = now;
            seen = evaluated;
        }
    }
    let up = prometheus.ask("query", &[("query", "sum(up)")])?;
    let up = up["result"][0]["value"][1]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    ensure!(up == NODES.to_string(), "{up} of {NODES} nodes are up");
    let recorded = prometheus.series("instance:softdirty_epochs:increase1h", None)?;
    ensure!(recorded >= NODES, "{recorded} series were recorded");
    let least = |of: fn(&Times) -> f64| times.iter().map(of).fold(f64::INFINITY, f64::min);
    let best = least(|times| times.recorded);
    let head = prometheus.own("prometheus_tsdb_head_series")?;
    let head = head.first().map_or(0.0, |(_, series)| *series);
    say(&format!(
        "{NODES} nodes: {:.0} s of scrapes",
        seconds(SystemTime::now()) - seconds(began)
    ));
    println!(
        "{NODES} nodes, {samples} samples a scrape, {head} series, best of {} evaluations: recording rules {:.0} ms \
         ({:.0} ms with waiting for a processor), all rules {:.0} ms; the slowest: {}",
        times.len(),
        best * 1000.0,
        least(|times| times.recorded_with_waiting) * 1000.0,
        least(|times| times.all) * 1000.0,
        slowest(&prometheus)?
    );
    ensure!(
        best < MOST.as_secs_f64(),
        "the recording rules take {best:.2} s, more than {MOST:?}"
    );
    Ok(())
}

/// The three rules that took longest.
fn slowest(prometheus: &Prometheus) -> Result<String> {
    let data = prometheus.ask("rules", &[])?;
    let groups = data["groups"].as_array().context("no groups of rules")?;
    let rules = groups
        .iter()
        .flat_map(|group| group["rules"].as_array().into_iter().flatten());
    let mut times: Vec<_> = rules
        .filter_map(|rule| Some((rule["evaluationTime"].as_f64()?, rule["name"].as_str()?)))
        .collect();
    times.sort_by(|a, b| b.0.total_cmp(&a.0));
    let said = times.iter().take(3);
    let said = said.map(|(seconds, name)| format!("{name} {:.0} ms", seconds * 1000.0));
    Ok(said.collect::<Vec<_>>().join(", "))
}
