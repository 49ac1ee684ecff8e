use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::*;
use crate::export::client;
use crate::export::http::{bind, serve};
use crate::export::metrics::{Facts, Metrics};
use crate::export::source::{Owner, Readiness, channel};

const PATIENCE: Duration = Duration::from_secs(20);

async fn served() -> (String, Owner) {
    let (source, owner) = channel();
    let facts = Facts {
        kernel: "test".to_owned(),
        started: UNIX_EPOCH,
    };
    let metrics = Arc::new(Metrics::new(&facts).unwrap());
    let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let exporter = Exporter { source, metrics };
    tokio::spawn(serve(listener, exporter, std::future::pending()));
    (address, owner)
}

/// A connection that has asked for a path; what comes is read as it comes.
struct Asking(TcpStream);

impl Asking {
    async fn start(address: &str, path: &str) -> Self {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let question = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
        stream.write_all(question.as_bytes()).await.unwrap();
        Self(stream)
    }

    /// Reads until `word` has come; what was read.
    async fn until(&mut self, word: &str) -> String {
        let mut heard = String::new();
        let reading = async {
            let mut buffer = [0; 4096];
            while !heard.contains(word) {
                let length = self.0.read(&mut buffer).await.unwrap();
                assert_ne!(length, 0, "the answer ended before {word}: {heard}");
                heard.push_str(std::str::from_utf8(&buffer[..length]).unwrap());
            }
        };
        timeout(PATIENCE, reading)
            .await
            .unwrap_or_else(|_| panic!("no {word} came"));
        heard
    }

    /// Whether the answer ends.
    async fn ends(&mut self) -> bool {
        let reading = async {
            let mut buffer = [0; 4096];
            while self.0.read(&mut buffer).await.is_ok_and(|length| length > 0) {}
        };
        timeout(PATIENCE, reading).await.is_ok()
    }
}

#[tokio::test]
async fn every_file_of_the_page_is_served_and_may_load_nothing_from_elsewhere() {
    let (address, _owner) = served().await;
    let document = std::str::from_utf8(DOCUMENT.content).unwrap();
    for path in
        std::iter::once("/".to_owned()).chain(ASSETS.iter().map(|asset| format!("/page/{}", asset.name)))
    {
        let heard = Asking::start(&address, &path)
            .await
            .until("\r\n\r\n")
            .await
            .to_lowercase();
        assert!(heard.starts_with("http/1.1 200"), "{path}: {heard}");
        assert!(
            heard.contains("content-security-policy: default-src 'none';"),
            "{path}: {heard}"
        );
        assert!(
            heard.contains("x-content-type-options: nosniff"),
            "{path}: {heard}"
        );
    }
    for asset in &ASSETS {
        let text = std::str::from_utf8(asset.content).unwrap();
        // The name of SVG's namespace is no address.
        let text = text.replace("http://www.w3.org/2000/svg", "");
        assert!(
            !text.contains("http://") && !text.contains("url("),
            "{}",
            asset.name
        );
    }
    assert!(!document.contains("http"), "the document names another origin");
    // Each is asked for by the document or by another one.
    let all: String = ASSETS
        .iter()
        .map(|asset| String::from_utf8_lossy(asset.content))
        .collect();
    for asset in &ASSETS {
        let named = document.contains(&format!("/page/{}", asset.name))
            || all.contains(&format!("\"./{}\"", asset.name));
        assert!(named, "nobody asks for {}", asset.name);
    }
    let answer = client::get(&format!("http://{address}/page/nothing.js"), PATIENCE)
        .await
        .unwrap();
    assert_eq!(answer.status, 404);
}

#[tokio::test]
async fn a_page_that_is_known_is_not_sent_again() {
    let (address, _owner) = served().await;
    let mut stream = TcpStream::connect(&address).await.unwrap();
    let question = format!(
        "GET / HTTP/1.1\r\nHost: test\r\nIf-None-Match: {}\r\n\r\n",
        tag(DOCUMENT.content)
    );
    stream.write_all(question.as_bytes()).await.unwrap();
    let heard = Asking(stream).until("\r\n\r\n").await;
    assert!(heard.starts_with("HTTP/1.1 304"), "{heard}");
    assert_ne!(tag(b"one"), tag(b"two"));
}

#[tokio::test]
async fn a_page_hears_of_the_start_of_changes_and_of_the_end() {
    let (address, owner) = served().await;
    let mut page = Asking::start(&address, "/api/v1/events").await;
    let heard = page.until("\"starting\":true").await;
    assert!(heard.contains("event: health"), "{heard}");
    owner.readiness.send(Readiness::of(Vec::new())).unwrap();
    page.until("\"ready\":true").await;
    assert_eq!(owner.feed.counts().clients, 1);
    owner
        .feed
        .publish("incident", &serde_json::json!({"cause": "ksm-merge"}));
    let heard = page.until("ksm-merge").await;
    assert!(heard.contains("event: incident"), "{heard}");
    drop(owner);
    assert!(page.ends().await, "the end of sdtrace waits for an open page");
}

#[tokio::test]
async fn more_pages_than_are_served_are_told_so() {
    let (address, owner) = served().await;
    let mut pages = Vec::new();
    for _ in 0..feed::CLIENTS {
        let mut page = Asking::start(&address, "/api/v1/events").await;
        page.until("event: health").await;
        pages.push(page);
    }
    let answer = client::get(&format!("http://{address}/api/v1/events"), PATIENCE)
        .await
        .unwrap();
    let body = String::from_utf8(answer.body).unwrap();
    assert_eq!(
        (answer.status, body.contains("too_many_clients")),
        (503, true),
        "{body}"
    );
    assert_eq!(owner.feed.counts().refused, 1);
    // A page that was closed makes room, as soon as the next beat finds nobody there.
    drop(pages);
    let start = tokio::time::Instant::now();
    while owner.feed.counts().clients > 0 {
        assert!(start.elapsed() < PATIENCE, "closed pages are not noticed");
        owner.feed.publish("process", &0);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_page_that_falls_behind_is_let_go_and_counted() {
    let (address, owner) = served().await;
    let mut slow = Asking::start(&address, "/api/v1/events").await;
    slow.until("event: health").await;
    // Faster than anything is sent: this thread does nothing else meanwhile.
    for number in 0..1_000 {
        owner.feed.publish("process", &number);
    }
    assert_eq!(owner.feed.counts().slow, 0, "nobody has looked yet");
    assert!(slow.ends().await);
    assert_eq!(owner.feed.counts().slow, 1);
}

#[tokio::test]
async fn a_map_that_cannot_be_drawn_is_refused_with_a_remedy() {
    let (address, mut owner) = served().await;
    let get = async |path: &str| {
        let answer = client::get(&format!("http://{address}/api/v1/processes/{path}"), PATIENCE)
            .await
            .unwrap();
        (answer.status, String::from_utf8(answer.body).unwrap())
    };
    let (status, body) = get("7/map").await;
    assert_eq!((status, body.contains("\"starting\"")), (503, true), "{body}");
    owner.readiness.send(Readiness::of(Vec::new())).unwrap();
    let answering = tokio::spawn(async move {
        while let Some(request) = owner.requests.recv().await {
            if let crate::export::source::Request::Map(_, answer) = request {
                let _ = answer.send(None);
            }
        }
    });
    for (path, status, word) in [
        ("7/map", 404, "knows no address space 7"),
        ("x/map", 400, "bad_request"),
        ("7/map?start=12", 400, "hexadecimal"),
        ("7/map?from=0x12", 400, "unknown field"),
        ("7/map?start=0x2000&end=0x1000", 404, "knows no address space 7"),
    ] {
        let (code, body) = get(path).await;
        assert_eq!((code, body.contains(word)), (status, true), "{path}: {body}");
    }
    answering.abort();
}
