//! The case of content verification: changes that no page-table entry shows, and changes that are none.

use std::fs::{OpenOptions, remove_file};
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;

use super::cases::{Scene, pages, wait_for};
use super::said::Detection;
use super::verify_scenes::{PAGES, PINNED, path_of_shared};
use crate::suite::daemon::Daemon;
use crate::workload::area::Area;

/// More pages than any of the processes has, so that each clean page is in the sample.
const SAMPLE: &str = "16384";

/// Plays all of it.
///
/// # Errors
/// What sdtrace says instead.
pub fn play(attach: &str, out: &Path) -> Result<()> {
    let start = |period: &str, log: &str| {
        let arguments = [
            "--attach",
            attach,
            "--verify-pages",
            SAMPLE,
            "--verify-budget",
            "1024",
            "--audit-period",
            period,
        ];
        let listen = SocketAddr::from(([127, 0, 0, 1], 9955));
        Daemon::start(listen, &arguments, &out.join(log).to_string_lossy())
    };
    let daemon = start("500ms", "verify.log")?;
    past_the_tables(&daemon).context("past the page tables")?;
    late_mapper(&daemon).context("a late mapper")?;
    nothing_missed(&daemon).context("nothing missed")?;
    end(daemon)?;
    // Readings as close as they come to clears.
    let daemon = start("20ms", "verify-clears.log")?;
    clears(&daemon).context("many clears")?;
    end(daemon)
}

fn end(daemon: Daemon) -> Result<()> {
    let status = daemon.end(Signal::TERM)?;
    ensure!(status.success(), "sdtrace ended with {status}");
    Ok(())
}

/// Waits until the pages of a process were compared once: whatever changes from now on is seen.
fn verified(daemon: &Daemon, scene: &Scene, least: usize) -> Result<()> {
    let enough = |detection: &Detection| {
        let verified = detection.verified.as_ref();
        verified.is_some_and(|verified| verified.pages >= least as u64)
    };
    let before = wait_for(daemon, scene.pid(), enough).context("the first comparison")?;
    ensure!(
        before.causes.iter().all(|found| found.evidence != "proved"),
        "before anything has changed: {:?}",
        before.causes
    );
    Ok(())
}

/// Maps the file of a scene and writes its pages.
fn map_and_write(scene: &Scene) -> Result<impl FnOnce() + use<>> {
    let path = path_of_shared(scene.pid());
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .with_context(|| path.display().to_string())?;
    remove_file(&path)?;
    let area = Area::file("alias", "shared_file", &file, PAGES)?;
    area.read(0..PAGES);
    Ok(move || {
        for page in 0..PAGES {
            // SAFETY: a page of our own mapping.
            unsafe { area.pointer(page).write_volatile(7) };
        }
    })
}

/// Each kind of change has its cause, its pages and its range.
fn past_the_tables(daemon: &Daemon) -> Result<()> {
    let mut scene = Scene::start("past-the-tables")?;
    let write = map_and_write(&scene)?;
    scene.go_on()?;
    verified(daemon, &scene, 2 * PAGES + PINNED + 1)?;
    write();
    scene.go_on()?;
    ensure!(
        scene.told.missed == [PAGES as u64, PAGES as u64, PINNED as u64],
        "the kernel has tracked some of it: {:?}",
        scene.told.missed
    );
    let causes = [
        ("other-mapper", PAGES),
        ("file-write", PAGES),
        ("pinned-buffer", PINNED),
        ("aio-ring", 1),
    ];
    let proved = |detection: &Detection| -> u64 {
        let found = detection.causes.iter();
        found
            .filter(|found| found.evidence == "proved")
            .map(|found| found.pages)
            .sum()
    };
    let all: usize = causes.iter().map(|(_, pages)| pages).sum();
    let detection = wait_for(daemon, scene.pid(), |detection| proved(detection) >= all as u64)?;
    for (cause, wanted) in causes {
        let told = pages(&detection, "proved", cause);
        ensure!(
            told == wanted as u64,
            "{cause}: {wanted} pages, sdtrace proves {told}"
        );
        println!("verify: {cause}: {told} pages proved");
    }
    ensure!(
        proved(&detection) == all as u64,
        "more was proved: {:?}",
        detection.causes
    );
    for (cause, range) in ["other-mapper", "file-write", "pinned-buffer"]
        .iter()
        .zip(&scene.told.ranges)
    {
        let found = detection.causes.iter();
        let places: Vec<_> = found
            .filter(|found| found.cause == *cause && found.evidence == "proved")
            .flat_map(|found| &found.ranges)
            .map(|place| place.start.0..place.end.0)
            .collect();
        ensure!(
            places == [range.clone()],
            "{cause} at {places:x?}, and it was {range:x?}"
        );
        ensure!(
            detection
                .dump_again
                .iter()
                .any(|place| place.start.0 <= range.start && range.end <= place.end.0),
            "{cause}: it is not to be dumped again"
        );
    }
    ensure!(
        detection.verdict == "broken",
        "the verdict is {}",
        detection.verdict
    );
    let scrape = daemon.scrape()?;
    for (cause, wanted) in causes {
        let labels = [("cause", cause), ("evidence", "proved")];
        let counted = scrape.count("softdirty_missed_writes_total", &labels)?;
        ensure!(counted == wanted as u64, "{cause}: /metrics counts {counted}");
    }
    let missed = scrape.count("softdirty_verified_missed_pages_total", &[])?;
    ensure!(
        missed == all as u64,
        "/metrics counts {missed} verified and missed pages"
    );
    Ok(())
}

/// Somebody maps the memory after the clear and writes it. Nothing tells who, but the content has changed.
fn late_mapper(daemon: &Daemon) -> Result<()> {
    const CAUSE: &str = "unknown_cause";
    let scene = Scene::start("late-mapper")?;
    verified(daemon, &scene, PAGES)?;
    map_and_write(&scene)?();
    let all = PAGES as u64;
    let detection = wait_for(daemon, scene.pid(), |detection| {
        pages(detection, "proved", CAUSE) >= all
    })?;
    ensure!(
        pages(&detection, "proved", CAUSE) == all && detection.causes.len() == 1,
        "{:?}",
        detection.causes
    );
    ensure!(
        detection.verdict == "broken",
        "the verdict is {}",
        detection.verdict
    );
    println!("verify: a late mapper: {all} pages proved");
    Ok(())
}

/// What is tracked or thrown away proves nothing, and the epoch can be trusted.
fn nothing_missed(daemon: &Daemon) -> Result<()> {
    let mut scene = Scene::start("nothing-missed")?;
    verified(daemon, &scene, 6 * PAGES)?;
    scene.go_on()?;
    let before = daemon.scrape()?;
    let left_out = |reason: &str| -> Result<u64> {
        let scrape = daemon.scrape()?;
        let count = |scrape: &crate::suite::exposition::Scrape| {
            scrape.count("sdtrace_verify_left_out_pages_total", &[("reason", reason)])
        };
        Ok(count(&scrape)? - count(&before)?)
    };
    // Each dump reads again.
    let detection = wait_for(daemon, scene.pid(), |_| true)?;
    let (written, zeroed) = (left_out("written")?, left_out("zeroed")?);
    println!("verify: nothing missed: {written} pages written, {zeroed} read as zeros");
    ensure!(detection.causes.is_empty(), "{:?}", detection.causes);
    ensure!(
        detection.verdict == "trusted",
        "the verdict is {} for {:?}",
        detection.verdict,
        detection.reasons
    );
    Ok(())
}

/// Epochs end while they are read.
fn clears(daemon: &Daemon) -> Result<()> {
    let scene = Scene::start("write-and-clear")?;
    let scrape = daemon.scrape()?;
    let missed: f64 = scrape
        .all("softdirty_missed_writes_total", &[])
        .map(|(_, value)| value)
        .sum();
    let epochs = scrape.count("sdtrace_verify_samples_total", &[("result", "drawn")])?;
    let compared = scrape.count("softdirty_verified_pages_total", &[])?;
    let written = scrape.count("sdtrace_verify_left_out_pages_total", &[("reason", "written")])?;
    let cleared = scrape.count("sdtrace_verify_left_out_pages_total", &[("reason", "cleared")])?;
    println!(
        "verify: {epochs} samples, {compared} pages compared, {written} written, {cleared} read too late, {missed} missed"
    );
    ensure!(missed.abs() < f64::EPSILON, "{missed} missed writes are told");
    ensure!(
        epochs >= 50 && compared > 0 && written > 0,
        "too little was read to prove anything"
    );
    drop(scene);
    Ok(())
}
