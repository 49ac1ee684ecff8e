//! The API over HTTP, with a simulated kernel behind it.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use serde_json::Value;

use super::model::{CauseInfo, Epoch, EpochDetail, Incidents, Kernel, List, Process, ProcessDetail, Ranges};
use super::*;
use crate::detectors::Verdict as Trust;
use crate::export::client;
use crate::export::http::{bind, serve};
use crate::export::metrics::{Facts, Metrics};
use crate::export::simulation::{Simulation, Size};
use crate::export::source::{Owner, channel};

async fn server() -> (String, Owner) {
    let (source, owner) = channel();
    let metrics = Metrics::new(&Facts {
        kernel: "test".to_owned(),
        started: UNIX_EPOCH,
    });
    let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let url = format!("http://{}/api/v1", listener.local_addr().unwrap());
    let exporter = Exporter {
        source,
        metrics: Arc::new(metrics.unwrap()),
    };
    tokio::spawn(serve(listener, exporter, std::future::pending()));
    (url, owner)
}

async fn simulated(address_spaces: usize) -> String {
    let (url, owner) = server().await;
    let size = Size {
        address_spaces,
        vmas: 4,
        epochs: 4,
    };
    tokio::task::spawn_blocking(move || Simulation::own_on_a_thread(size, owner, |_| ()))
        .await
        .unwrap();
    url
}

async fn get(url: &str, path: &str) -> (u16, Value) {
    let answer = client::get(&format!("{url}{path}"), Duration::from_secs(20))
        .await
        .unwrap();
    let body = serde_json::from_slice(&answer.body);
    (
        answer.status,
        body.unwrap_or_else(|error| panic!("{path}: {error}")),
    )
}

async fn ok<T: serde::de::DeserializeOwned>(url: &str, path: &str) -> T {
    let (status, body) = get(url, path).await;
    assert_eq!(status, 200, "{path}: {body}");
    serde_json::from_value(body).unwrap()
}

async fn refused(url: &str, path: &str, status: u16, words: &str) {
    let (code, body) = get(url, path).await;
    let message = body["error"]["message"].as_str().unwrap_or_default();
    assert_eq!((code, message.contains(words)), (status, true), "{path}: {body}");
    assert!(!message.contains('\n'), "{message}");
}

#[test]
fn the_committed_description_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/openapi.json");
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    // Not `assert_eq!`, which would print both.
    assert!(
        committed == description().unwrap(),
        "docs/openapi.json is not what the code makes; run `cargo xtask generate`"
    );
}

#[tokio::test]
async fn pages_of_processes_have_each_once() {
    let url = simulated(25).await;
    let (mut cursor, mut seen) = (String::new(), Vec::new());
    loop {
        let page: List<Process> = ok(&url, &format!("/processes?limit=10{cursor}")).await;
        assert!(page.items.len() <= 10);
        seen.extend(page.items.iter().map(|process| process.id));
        match page.next_cursor {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(seen, (1..=25).collect::<Vec<_>>());
    let whole: List<Process> = ok(&url, "/processes?limit=25").await;
    assert_eq!((whole.items.len(), whole.next_cursor), (25, None));
}

#[tokio::test]
async fn a_process_is_found_by_what_is_known_of_it() {
    let url = simulated(25).await;
    let suspect: List<Process> = ok(&url, "/processes?verdict=suspect").await;
    // Every tenth has exposed pages.
    let ids: Vec<_> = suspect.items.iter().map(|process| process.id).collect();
    assert_eq!(ids, [4, 14, 24]);
    let one = &suspect.items[1];
    assert_eq!((one.exposed_pages, one.verdict), (14, Some(Trust::Suspect)));
    assert_eq!((one.epochs.suspect, one.epochs.trusted), (3, 0));
    assert_eq!(one.last_verdict, Some(Trust::Suspect));
    let pid = one.pid.unwrap();
    let by_pid: List<Process> = ok(&url, &format!("/processes?pid={pid}&initial_pid={pid}")).await;
    assert_eq!(by_pid.items, std::slice::from_ref(one));
    let none: List<Process> = ok(&url, "/processes?state=ended").await;
    assert!(none.items.is_empty());
    let none: List<Process> = ok(&url, "/processes?comm=nobody").await;
    assert!(none.items.is_empty());
    let detail: ProcessDetail = ok(&url, "/processes/14").await;
    assert_eq!(detail.process, *one);
    assert_eq!(detail.detection.unwrap().reasons[0].count, 14);
}

#[tokio::test]
async fn epochs_come_newest_first_and_say_where_to_look() {
    let url = simulated(5).await;
    let page: List<Epoch> = ok(&url, "/processes/4/epochs?limit=3").await;
    let numbers: Vec<_> = page.items.iter().map(|epoch| epoch.number).collect();
    assert_eq!(numbers, [4, 3, 2]);
    let next = page.next_cursor.unwrap();
    let rest: List<Epoch> = ok(&url, &format!("/processes/4/epochs?limit=3&cursor={next}")).await;
    assert_eq!((rest.items.len(), rest.items[0].number), (1, 1));
    let last: EpochDetail = ok(&url, "/processes/4/epochs/last").await;
    let third: EpochDetail = ok(&url, "/processes/4/epochs/3").await;
    assert_eq!((&last, last.epoch.number), (&third, 3));
    assert!(last.epoch.is_final && last.detection.is_some_and(|detection| detection.finished));
    assert_eq!(last.epoch.write_notify_faults, 3);
    let open: EpochDetail = ok(&url, "/processes/4/epochs/open").await;
    assert_eq!((open.epoch.number, open.epoch.is_final), (4, false));
    let ranges: Ranges = ok(&url, "/processes/4/epochs/last/ranges").await;
    assert_eq!(
        (ranges.items.len(), ranges.dump_everything),
        (1, false),
        "{ranges:?}"
    );
    assert_eq!(ranges.items[0].start.0, 0x1000);
    assert_eq!(ranges.items[0].cause.as_deref(), Some("unknown_cause"));
    let nothing: Ranges = ok(&url, "/processes/1/epochs/last/ranges").await;
    assert_eq!((nothing.items.len(), nothing.dump_everything), (0, false));
}

#[tokio::test]
async fn incidents_come_newest_first_and_can_be_filtered() {
    let url = simulated(25).await;
    let all: Incidents = ok(&url, "/incidents").await;
    // Three processes with exposed pages in four epochs, and one that another tracker cleared in one epoch.
    let exposed: Incidents = ok(&url, "/incidents?evidence=exposed&cause=unknown_cause").await;
    assert_eq!((exposed.items.len(), exposed.forgotten), (12, 0));
    let foreign: Incidents = ok(&url, "/incidents?cause=foreign-clear").await;
    assert!(!foreign.items.is_empty());
    assert_eq!(all.items.len(), exposed.items.len() + foreign.items.len());
    let open: Incidents = ok(&url, "/incidents?state=open&process=14").await;
    assert_eq!((open.items.len(), open.items[0].epoch), (1, 4));
    let page: Incidents = ok(&url, "/incidents?limit=5").await;
    let next = page.next_cursor.unwrap();
    let second: Incidents = ok(&url, &format!("/incidents?limit=5&cursor={next}")).await;
    assert_eq!(second.items[..], all.items[5..10]);
}

/// What Prometheus keeps does not grow with what is tracked.
#[tokio::test]
async fn series_do_not_grow_with_address_spaces() {
    let mut counts = Vec::new();
    for address_spaces in [3, 300] {
        let url = simulated(address_spaces).await;
        let url = url.replace("/api/v1", "/metrics");
        let answer = client::get(&url, Duration::from_secs(20)).await.unwrap();
        let text = String::from_utf8(answer.body).unwrap();
        counts.push(text.lines().filter(|line| !line.starts_with('#')).count());
    }
    assert_eq!(counts[0], counts[1]);
}

#[tokio::test]
async fn the_kernel_and_the_causes_are_told() {
    let url = simulated(1).await;
    let kernel: Kernel = ok(&url, "/kernel").await;
    assert!(kernel.ready && kernel.complete && !kernel.release.is_empty());
    assert!(kernel.losses.iter().any(|loss| loss.stage == "ring_full"));
    let causes: List<CauseInfo> = ok(&url, "/causes").await;
    assert_eq!((causes.items.len(), causes.next_cursor), (26, None));
    let (_, served) = get(&url, "/openapi.json").await;
    assert_eq!(
        served,
        serde_json::from_str::<Value>(&description().unwrap()).unwrap()
    );
}

#[tokio::test]
async fn what_cannot_be_answered_is_said_with_a_remedy() {
    let url = simulated(2).await;
    refused(&url, "/processes?limit=0", 400, "from 1 to 1000").await;
    refused(&url, "/processes?limit=5&limit=6", 400, "duplicate").await;
    refused(&url, "/processes?verdict=fine", 400, "`broken`").await;
    refused(
        &url,
        "/processes?pit=5",
        400,
        "unknown field `pit`, expected one of",
    )
    .await;
    refused(&url, "/processes?cursor=last", 400, "the page before").await;
    refused(&url, "/incidents?cause=bad-luck", 400, "/api/v1/causes").await;
    refused(&url, "/processes/x", 400, "a whole number from 1").await;
    refused(&url, "/processes/1/epochs/newest", 400, "last or open").await;
    refused(&url, "/processes/99", 404, "/api/v1/processes?state=all").await;
    refused(
        &url,
        "/processes/99/epochs/last",
        404,
        "/api/v1/processes?state=all",
    )
    .await;
    refused(&url, "/processes/1/epochs/99", 404, "/api/v1/processes/1/epochs").await;
    refused(&url, "/nothing", 404, "/api/v1/openapi.json").await;
    refused(&url, "/causes?limit=5", 400, "unknown field").await;
}

#[tokio::test]
async fn a_daemon_that_starts_or_ends_says_so() {
    let (url, owner) = server().await;
    refused(&url, "/processes", 503, "is starting").await;
    refused(&url, "/kernel", 503, "is starting").await;
    // What is written down needs nobody.
    let causes: List<CauseInfo> = ok(&url, "/causes").await;
    assert_eq!(causes.items.len(), 26);
    owner
        .readiness
        .send(crate::export::source::Readiness::of(Vec::new()))
        .unwrap();
    drop(owner);
    refused(&url, "/incidents", 503, "is ending").await;
}
