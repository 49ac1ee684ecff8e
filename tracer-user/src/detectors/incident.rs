//! The incident as a line of JSON. docs/incidents.md explains it, docs/incidents.schema.json is made from here.

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
use tracer_common::audit::Reader;
use tracer_common::classify::VmaKind;
use tracer_common::flags::{PTE_WRITE, smaps_names};
use tracer_common::records::TaskIdentity;

use super::cause::{Cause, Class, Evidence};
use super::epoch::Ending;
use super::findings::SeenVma;
use super::ranges::RangeSet;
use crate::ledger::ProcessDetails;

/// Version of the format; it rises when a field changes its meaning or goes.
pub const SCHEMA: u32 = 1;

/// An address as hexadecimal text (`"0x7f00"`): JSON numbers of 64 bits do not survive every reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hex(pub u64);

impl Serialize for Hex {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:#x}", self.0))
    }
}

impl<'de> Deserialize<'de> for Hex {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.strip_prefix("0x")
            .and_then(|digits| u64::from_str_radix(digits, 16).ok())
            .map(Self)
            .ok_or_else(|| D::Error::custom(format!("{text:?} is no hexadecimal number")))
    }
}

impl JsonSchema for Hex {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Hex".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"type": "string", "pattern": "^0x[0-9a-f]+$"})
    }
}

/// Seconds since 1970, kept as nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(pub u64);

impl Serialize for Moment {
    #[allow(
        clippy::cast_precision_loss,
        reason = "a 64-bit float holds today's time to a quarter of a microsecond"
    )]
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64((self.0 / 1_000) as f64 / 1e6)
    }
}

impl<'de> Deserialize<'de> for Moment {
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "`as` brings what is out of range to the nearest value"
    )]
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let seconds = f64::deserialize(deserializer)?;
        Ok(Self((seconds * 1e6).round() as u64 * 1_000))
    }
}

impl JsonSchema for Moment {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Moment".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"type": "number", "description": "Seconds since 1970."})
    }
}

/// Whether the incident can still grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It has just been found; its epoch is not finished.
    Open,
    /// Its epoch is finished: these numbers are final.
    Closed,
}

/// What the number of pages is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// Each page was seen, and is counted once.
    Exact,
    /// There are at least so many.
    AtLeast,
    /// The pages of the ranges; how many of them are concerned is not known.
    AtMost,
    /// There are no pages: the number says how often it happened.
    Times,
}

impl Bound {
    pub(super) fn of(cause: Cause, evidence: Evidence, more: bool) -> Self {
        match (evidence, cause) {
            (Evidence::Hazard, Cause::ForeignClear | Cause::NoSupport) => Self::Times,
            (Evidence::Hazard, Cause::ReadClearGap) => Self::AtLeast,
            (Evidence::Hazard, _) => Self::AtMost,
            _ if more => Self::AtLeast,
            _ => Self::Exact,
        }
    }
}

/// How the epoch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EndedBy {
    /// By the next clear.
    Clear,
    /// The process called exec or exited.
    Exit,
    /// Nobody saw it.
    Unknown,
}

impl EndedBy {
    pub(super) fn of(ending: Ending) -> Self {
        match ending {
            Ending::Clear => Self::Clear,
            Ending::Gone => Self::Exit,
            Ending::Unseen => Self::Unknown,
        }
    }
}

/// Addresses from `start` up to and without `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct IncidentRange {
    /// First address.
    pub start: Hex,
    /// First address behind.
    pub end: Hex,
}

/// A process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct IncidentProcess {
    /// Process id in sdtrace's pid namespace; `null` where it is not visible there.
    pub pid: Option<u32>,
    /// Process id in the initial pid namespace.
    pub initial_pid: u32,
    /// Start of the process in nanoseconds since the boot; with the pid it names a process for good.
    pub start_ns: u64,
    /// Name.
    pub comm: String,
    /// Path of its cgroup, if it could be read while it lived.
    pub cgroup: Option<String>,
}

/// A VMA as it was when something was last found in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct IncidentVma {
    /// First address.
    pub start: Hex,
    /// First address behind.
    pub end: Hex,
    /// `private_anon`, `shared_anon`, `private_file` or `shared_file`.
    pub kind: String,
    /// The flags that sdtrace decodes, as `/proc/PID/smaps` names them.
    pub flags: Vec<String>,
    /// Whether `vm_page_prot` lets entries be born writable.
    pub page_prot_writable: bool,
    /// Offset in the file in bytes; `null` without a file.
    pub offset: Option<u64>,
    /// Inode number of the file.
    pub inode: Option<u64>,
    /// Device of its file system, `major:minor` as /proc prints it.
    pub device: Option<String>,
    /// Name of the file as `/proc/PID/maps` prints it, if it could be read while the process lived.
    pub file: Option<String>,
}

/// One incident: everything of one cause and one kind of evidence in one epoch of one address space.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Incident {
    /// Version of this format.
    pub schema: u32,
    /// Whether it can still grow.
    pub state: State,
    /// Small number that names the address space as long as this sdtrace runs.
    pub address_space: Option<u64>,
    /// The kernel side's stable id of the address space.
    pub birth: u64,
    /// Number of the epoch within the address space, from 1.
    pub epoch: u32,
    /// When the clear that opened the epoch returned; `null` if no clear opened it.
    pub epoch_opened_unix: Option<Moment>,
    /// How the epoch ended; `null` while it is open.
    pub ended_by: Option<EndedBy>,
    /// A heading of docs/causes.md, or `unknown_cause`.
    pub cause: String,
    /// Its class.
    pub class: Class,
    /// How we know.
    pub evidence: Evidence,
    /// Pages; 0 in a closed incident whose pages were all found again under stronger evidence or another cause.
    pub pages: u64,
    /// What the number of pages is.
    pub bound: Bound,
    /// Of exposed pages: those with the hardware dirty bit. It proves no write after a migration.
    pub dirty_pages: u64,
    /// Merged address ranges.
    pub ranges: Vec<IncidentRange>,
    /// The ranges were joined over gaps to keep the list short: they have more than was found, never less.
    pub ranges_joined: bool,
    /// VMAs in which it was found.
    pub vmas: Vec<IncidentVma>,
    /// There were more VMAs.
    pub more_vmas: bool,
    /// Whose walks of the page table found it: `clear`, `pagemap`, `pagemap_scan`, `own_audit`.
    pub readers: Vec<String>,
    /// When it was found first.
    pub first_unix: Moment,
    /// When it was found last.
    pub last_unix: Moment,
    /// Whose memory it is.
    pub process: Option<IncidentProcess>,
    /// Who made the clear that opened the epoch; `null` if no clear did.
    pub tracker: Option<IncidentProcess>,
    /// Where the cause is explained.
    pub help: String,
}

/// The schema of a line, as JSON.
///
/// # Errors
/// If it cannot be written.
pub fn schema() -> serde_json::Result<String> {
    Ok(serde_json::to_string_pretty(&schemars::schema_for!(Incident))? + "\n")
}

pub(super) fn ranges(ranges: &RangeSet) -> Vec<IncidentRange> {
    ranges
        .iter()
        .map(|range| IncidentRange {
            start: Hex(range.start),
            end: Hex(range.end),
        })
        .collect()
}

pub(super) fn readers(bits: u8) -> Vec<String> {
    Reader::ALL
        .into_iter()
        .filter(|&reader| bits >> reader as u8 & 1 != 0)
        .map(|reader| reader.label().to_owned())
        .collect()
}

pub(super) fn vma(seen: &SeenVma) -> IncidentVma {
    let facts = &seen.facts;
    let file = facts.inode != 0 || facts.device != 0;
    let kind = u8::try_from(facts.kind)
        .ok()
        .and_then(VmaKind::from_raw)
        .unwrap_or(VmaKind::PrivateAnon);
    IncidentVma {
        start: Hex(facts.key.start),
        end: Hex(facts.end),
        kind: kind.label().to_owned(),
        flags: smaps_names(facts.key.flags).map(str::to_owned).collect(),
        page_prot_writable: facts.key.page_prot & PTE_WRITE != 0,
        offset: file.then(|| facts.offset.saturating_mul(4096)),
        inode: file.then_some(facts.inode),
        // The kernel's own dev_t (include/linux/kdev_t.h): twenty bits of minor number.
        device: file.then(|| format!("{:02x}:{:02x}", facts.device >> 20, facts.device & 0xf_ffff)),
        file: seen.path.clone(),
    }
}

pub(super) fn process(task: &TaskIdentity, details: Option<&ProcessDetails>) -> IncidentProcess {
    let end = task
        .comm
        .iter()
        .position(|&byte| byte == 0)
        .unwrap_or(task.comm.len());
    IncidentProcess {
        pid: (task.pid != 0).then_some(task.pid),
        initial_pid: task.initial_pid,
        start_ns: task.start_ns,
        comm: String::from_utf8_lossy(&task.comm[..end]).into_owned(),
        cgroup: details.map(|details| details.cgroup.clone()),
    }
}

/// An incident with something of everything.
#[cfg(test)]
pub(crate) fn example() -> Incident {
    Incident {
        schema: SCHEMA,
        state: State::Open,
        address_space: Some(1),
        birth: 4096,
        epoch: 3,
        epoch_opened_unix: Some(Moment(1_795_000_000_000_000_000)),
        ended_by: None,
        cause: Cause::KsmMerge.label().to_owned(),
        class: Class::B,
        evidence: Evidence::Observed,
        pages: 1,
        bound: Bound::Exact,
        dirty_pages: 0,
        ranges: vec![IncidentRange {
            start: Hex(0x1000),
            end: Hex(0x2000),
        }],
        ranges_joined: false,
        vmas: vec![],
        more_vmas: false,
        readers: readers(1),
        first_unix: Moment(1_795_000_001_000_000_000),
        last_unix: Moment(1_795_000_001_000_000_000),
        process: None,
        tracker: Some(process(&TaskIdentity::default(), None)),
        help: Cause::KsmMerge.help(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_schema_is_up_to_date() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/incidents.schema.json");
        let made = schema().unwrap();
        if std::env::var_os("SDTRACE_WRITE_SCHEMA").is_some() {
            std::fs::write(&path, &made).unwrap();
        }
        let committed = std::fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(
            committed, made,
            "run the tests once with SDTRACE_WRITE_SCHEMA=1 to write docs/incidents.schema.json"
        );
    }

    #[test]
    fn moments_survive_json() {
        let text = serde_json::to_string(&Moment(1_795_000_000_123_456_000)).unwrap();
        assert_eq!(text, "1795000000.123456");
        assert_eq!(
            serde_json::from_str::<Moment>(&text).unwrap(),
            Moment(1_795_000_000_123_456_000)
        );
        assert!(serde_json::from_str::<Hex>("\"7f\"").is_err());
    }
}
