//! What sdtrace says about itself: the families whose names begin with `sdtrace_`.

use prometheus::proto::MetricFamily;
use tracer_common::counters::Stage;

use super::family::Family;
use super::reading::Reading;

/// Stages that say how often a probe ran.
const RUNS: [Stage; 8] = [
    Stage::FaultEntry,
    Stage::FaultReturn,
    Stage::HugeEntry,
    Stage::HugeReturn,
    Stage::ClearEntry,
    Stage::ClearReturn,
    Stage::MprotectEntry,
    Stage::MprotectReturn,
];

/// Stages that say what was lost, or not understood.
const LOSSES: [Stage; 10] = [
    Stage::RingFull,
    Stage::RowsFull,
    Stage::TrackedFull,
    Stage::ClearsFull,
    Stage::MprotectsFull,
    Stage::SlotTaken,
    Stage::Unlinked,
    Stage::OrphanReturn,
    Stage::ClearFailed,
    Stage::MprotectFlagsDiffer,
];

pub(super) fn families(reading: &Reading) -> Vec<MetricFamily> {
    let ledger = &reading.ledger;
    let mut families = vec![
        Family::counter(
            "sdtrace_probe_runs_total",
            "Runs of the hot probes, those of faults and mprotects in tracked address spaces only. Entries \
             without returns are under way or lost.",
        )
        .by("run", RUNS.iter().map(|&stage| (stage.label(), reading.stage(stage)))),
        Family::counter(
            "sdtrace_lost_records_total",
            "What was lost on the way, by stage: ring_full and undecodable are records, rows_full and unlinked \
             faults that are counted but linked to no VMA, tracked_full address spaces, clears_full and \
             mprotects_full calls, slot_taken and orphan_return returns without their entry; clear_failed are \
             clears that reached nothing, mprotect_flags_differ calls whose result is not what was asked for.",
        )
        .by(
            "stage",
            LOSSES
                .iter()
                .map(|&stage| (stage.label(), reading.stage(stage)))
                .chain([("undecodable", reading.undecodable)]),
        ),
        Family::gauge(
            "sdtrace_fault_times_measured",
            "1 if return probes measure how long write-notify faults take, else 0.",
        )
        .single(u64::from(reading.fault_times_measured)),
        Family::gauge(
            "sdtrace_unreadable_processes_at_start",
            "Processes that could not be read when sdtrace looked for armed ones at its start.",
        )
        .single(reading.unreadable_at_start),
        Family::gauge(
            "sdtrace_writes_watched",
            "1 if write faults are watched: the programs on handle_mm_fault are attached, which every fault of the \
             machine comes by. 0 while nothing is tracked and nobody has read pagemap of late (--watch-writes).",
        )
        .single(u64::from(reading.writes_watched)),
        Family::counter(
            "sdtrace_write_watch_attaches_total",
            "How often the programs on handle_mm_fault were attached after the start: something was tracked, or \
             somebody read pagemap.",
        )
        .single(reading.write_watch_attaches),
        Family::gauge("sdtrace_ready", "1 if /readyz says yes.").single(u64::from(reading.ready)),
        Family::gauge(
            "sdtrace_ledger_incomplete",
            "1 if the ledger does not tell everything since the start; /debug/ledger says why.",
        )
        .single(u64::from(ledger.incomplete)),
        Family::counter(
            "sdtrace_ledger_folded_total",
            "Given up to keep memory bounded; the sums keep what they had counted.",
        )
        .by(
            "what",
            [
                ("address_spaces", ledger.folded_spaces),
                ("epochs", ledger.folded_epochs),
                ("vmas", ledger.folded_vmas),
            ],
        ),
        Family::gauge("sdtrace_map_entries", "Entries in use in the maps shared with the kernel.")
            .by("map", reading.maps.iter().map(|usage| (usage.map, usage.entries))),
        Family::gauge("sdtrace_map_capacity", "Entries that these maps can hold.")
            .by("map", reading.maps.iter().map(|usage| (usage.map, usage.capacity))),
        Family::gauge("sdtrace_page_clients", "Live pages that are open and get events.").single(reading.feed.clients),
        Family::counter(
            "sdtrace_page_clients_dropped_total",
            "Live pages that sdtrace let go: slow did not take their events in time, refused were too many at once.",
        )
        .by("reason", [("slow", reading.feed.slow), ("refused", reading.feed.refused)]),
    ];
    families.push(verdicts(reading));
    families.extend(missed(reading));
    families
}

fn verdicts(reading: &Reading) -> MetricFamily {
    let mut family = Family::gauge(
        "sdtrace_probe_verdict",
        "What became of each probe: attached, unsupported (this kernel does not offer it) or broken (the kernel \
         refused it); mode is fentry, kprobe or none. The value is 1.",
    );
    for verdict in &reading.verdicts {
        let mode = verdict
            .verdict
            .mechanism()
            .map_or("none", |mechanism| mechanism.label());
        family.add(
            &[
                ("probe", &verdict.probe),
                ("mode", mode),
                ("verdict", verdict.verdict.label()),
            ],
            1,
        );
    }
    family.done()
}

fn missed(reading: &Reading) -> [MetricFamily; 2] {
    let mut total = Family::counter(
        "sdtrace_missed_probe_runs_total",
        "Runs of a probe that the kernel skipped, by stage: recursion (it ran on that CPU already) or \
         bpf_prog_active (a bpf(2) map operation was under way on that CPU). Only meaningful where \
         sdtrace_missed_probe_runs_counted is 1.",
    );
    let mut counted = Family::gauge(
        "sdtrace_missed_probe_runs_counted",
        "1 if this kernel counts the skipped runs of that probe at that stage, else 0: they may happen unseen.",
    );
    for missed in &reading.missed {
        let labels = [
            ("probe", missed.program.as_str()),
            ("stage", missed.stage.as_str()),
        ];
        total.add(&labels, missed.count.unwrap_or(0));
        counted.add(&labels, u64::from(missed.count.is_some()));
    }
    [total.done(), counted.done()]
}
