//! What the tests of these comparisons start from: one area, the row that is true of it, an epoch of such rows.

use serde_json::json;

use super::super::ledger::Epoch;
use crate::workload::report::{AreaReport, Report, State};

pub fn report() -> Report {
    Report {
        pid: 7,
        children: Vec::new(),
        areas: vec![AreaReport {
            name: "area".to_owned(),
            start: 0x1000,
            end: 0x3000,
            kind: "shared_anon".to_owned(),
            inode: None,
            written: 2,
            soft_dirty: 2,
            states: vec![State {
                start: 0x1000,
                end: 0x3000,
                flags: vec!["rd".to_owned(), "wr".to_owned()],
                armed_at_clear: true,
                faults: 2,
                ..State::default()
            }],
        }],
    }
}

pub fn vma() -> serde_json::Value {
    json!({
        "start": "0x1000", "end": "0x3000", "flags": ["rd", "wr"], "page_prot_writable": false, "armed": true,
        "armed_at_clear": true, "kind": "shared_anon", "inode": null, "faults": 2, "huge_faults": 0,
        "outcomes": {}, "mprotects": 0, "mprotect_changes": []
    })
}

pub fn epoch(vmas: &serde_json::Value) -> Epoch {
    let sum = json!({ "faults": 2, "huge_faults": 0, "mprotects": 0, "outcomes": {},
        "by_kind": { "shared_anon": { "armed": 2 } } });
    serde_json::from_value(json!({
        "number": 1, "opened_by": "clear", "clear": null, "ended_by": null, "uncertain": false, "vmas_complete": true,
        "total": sum, "folded_vmas": 0, "vmas": vmas
    }))
    .unwrap()
}
