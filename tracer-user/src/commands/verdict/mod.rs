//! `sdtrace verdict`: may a checkpoint rely on the soft-dirty bits of an epoch? [`who`] finds out which process is meant,
//! [`said`] makes the answer. Whatever keeps it from an answer is `unknown`, with why, and never `trusted`.

mod said;
mod who;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde::de::DeserializeOwned;

use self::said::{Answer, Found};
use self::who::{Space, Who, choose};
use crate::cli::VerdictArgs;
use crate::export::api::model::{EpochDetail, ErrorAnswer, Kernel, List, Process, RangeFound, Ranges};
use crate::export::client;

/// How long one request may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often an epoch is asked for that is waited for; it is final about a second after its end.
const PERIOD: Duration = Duration::from_millis(100);

/// Why there is no verdict, in one line.
type Unknown = String;

/// Asks the running sdtrace, and prints what it says.
///
/// # Errors
/// If the arguments cannot be used, or nothing can be printed.
pub(super) fn verdict(arguments: &VerdictArgs) -> Result<ExitCode> {
    let who = Who::read(arguments.pid, arguments.start_time)?;
    let answer = super::runtime()?.block_on(async {
        let until = Instant::now() + Duration::from_secs(arguments.timeout);
        let found = async {
            let who = who?;
            let daemon = Daemon::new(&arguments.url);
            daemon.find(&who, arguments, until).await
        };
        Answer::of(arguments.pid, found.await)
    });
    let text = if arguments.json {
        serde_json::to_string_pretty(&answer).context("the answer cannot be written")? + "\n"
    } else {
        answer.text()
    };
    super::print(&text)?;
    Ok(ExitCode::from(answer.exit_code()))
}

/// The running sdtrace.
struct Daemon<'a> {
    url: &'a str,
}

impl<'a> Daemon<'a> {
    fn new(url: &'a str) -> Self {
        Self {
            url: url.trim_end_matches('/'),
        }
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Unknown> {
        let url = format!("{}/api/v1{path}", self.url);
        let answer = client::get(&url, PATIENCE).await.map_err(|error| {
            format!("no answer from sdtrace; is `sdtrace run` running, and is --url right? ({error:#})")
        })?;
        if answer.status != 200 {
            return Err(match serde_json::from_slice::<ErrorAnswer>(&answer.body) {
                Ok(refused) => refused.error.message,
                Err(_) => format!(
                    "{url} answers {}; is that sdtrace, and of this version?",
                    answer.status
                ),
            });
        }
        serde_json::from_slice(&answer.body).map_err(|error| {
            format!("{url} answers something else than sdtrace of this version does ({error})")
        })
    }

    async fn find(&self, who: &Who, arguments: &VerdictArgs, until: Instant) -> Result<Found, Unknown> {
        let kernel: Kernel = self.get("/kernel").await?;
        let filter = who.filter(kernel.pid_namespace)?;
        let mut spaces = Vec::new();
        let mut cursor = String::new();
        loop {
            let page: List<Process> = self
                .get(&format!("/processes?state=all&limit=1000&{filter}{cursor}"))
                .await?;
            spaces.extend(page.items);
            match page.next_cursor {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
        }
        let space = choose(who, spaces)?;
        let epoch = self.epoch(&space, arguments, until).await?;
        let ranges = self.ranges(&space, epoch.epoch.number).await?;
        Ok(Found {
            space,
            epoch,
            ranges,
            waited: arguments.wait,
            asked_for_open: arguments.epoch.is_open(),
        })
    }

    /// The epoch; with `--wait` when it is final, as far as there is time for it.
    async fn epoch(
        &self,
        space: &Space,
        arguments: &VerdictArgs,
        until: Instant,
    ) -> Result<EpochDetail, Unknown> {
        let path = |epoch: &str| format!("/processes/{}/epochs/{epoch}", space.0.id);
        let mut epoch: EpochDetail = self.get(&path(&arguments.epoch.to_string())).await?;
        // The one that was found first: a clear in between would make another one the last.
        let number = epoch.epoch.number.to_string();
        while arguments.wait && !epoch.epoch.is_final && Instant::now() < until {
            tokio::time::sleep(PERIOD).await;
            epoch = self.get(&path(&number)).await?;
        }
        Ok(epoch)
    }

    /// All the addresses to dump again.
    async fn ranges(&self, space: &Space, number: u32) -> Result<Ranges, Unknown> {
        let path = format!("/processes/{}/epochs/{number}/ranges?limit=1000", space.0.id);
        let mut all: Ranges = self.get(&path).await?;
        while let Some(cursor) = all.next_cursor.take() {
            let next: Ranges = self.get(&format!("{path}&cursor={cursor}")).await?;
            let items: Vec<RangeFound> = next.items;
            all.items.extend(items);
            all.next_cursor = next.next_cursor;
        }
        Ok(all)
    }
}
