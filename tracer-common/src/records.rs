//! Records that cross the ring buffer: one for each clear, fork, exec and exit of a tracked address space, for
//! each finding of an audit and each range that a mechanism works on, one when somebody reads a pagemap file while writes are
//! not watched, and with `--trace-faults` one for each fault.
//!
//! Every record begins with a [`Header`] that carries its size and version; the reader checks both before it
//! looks further.

use bytemuck::{Pod, Zeroable};

use crate::audit::{PagesRecord, RangeRecord, VmaRecord};

/// Version of the record formats. The object and the daemon are built together; a difference is a defect.
pub const VERSION: u16 = 2;

/// Kinds of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Kind {
    /// [`ClearRecord`]
    Clear = 1,
    /// [`TrackRecord`]
    Track = 2,
    /// [`ExecRecord`]
    Exec = 3,
    /// [`ExitRecord`]
    Exit = 4,
    /// [`FaultRecord`]
    Fault = 5,
    /// [`PagesRecord`]
    Pages = 6,
    /// [`VmaRecord`]
    Vma = 7,
    /// [`RangeRecord`]
    Range = 8,
    /// [`InterestRecord`]
    Interest = 9,
}

/// First bytes of every record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Header {
    /// A [`Kind`].
    pub kind: u16,
    /// [`VERSION`].
    pub version: u16,
    /// Size of the whole record in bytes.
    pub size: u32,
    /// `bpf_ktime_get_ns()`: the monotonic clock in nanoseconds.
    pub time_ns: u64,
}

/// Who did something, or to whom.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct TaskIdentity {
    /// Process id in sdtrace's own pid namespace, 0 where the task is not visible there.
    pub pid: u32,
    /// Thread id in sdtrace's own pid namespace.
    pub tid: u32,
    /// Process id in the initial pid namespace.
    pub initial_pid: u32,
    /// Keeps the next field aligned.
    pub padding: u32,
    /// `start_boottime` of the process's first thread in nanoseconds: with the pid it names a process for good.
    pub start_ns: u64,
    /// Name of the task, zero padded.
    pub comm: [u8; 16],
}

/// A write to `/proc/PID/clear_refs` that was a soft-dirty clear.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct ClearRecord {
    /// Kind, version, size and the time of the return.
    pub header: Header,
    /// Stable id of the address space; 0 if the clear reached none or if it is not tracked.
    pub birth: u64,
    /// What `clear_refs_write` returned.
    pub result: i64,
    /// When `clear_refs_write` was entered, monotonic nanoseconds.
    pub entry_ns: u64,
    /// When it reached the first VMA; 0 if it reached none.
    pub first_walk_ns: u64,
    /// Bytes of VMAs that were armed.
    pub armed_bytes: u64,
    /// Number of the epoch that this clear opened.
    pub epoch: u32,
    /// VMAs that were walked.
    pub vmas: u32,
    /// One of the `CLEAR_` constants.
    pub status: u32,
    /// `ORIGIN_` constant of the address space.
    pub origin: u32,
    /// VMAs that were armed before: the invariant was tested in them.
    pub audited_vmas: u32,
    /// Epoch in which a tracker had read the pagemap last; 0: none had.
    pub read_epoch: u32,
    /// Pages whose entries were tested.
    pub audited_pages: u64,
    /// Write faults handled between that reading and this clear, at least.
    pub writes_after_read: u64,
    /// Bytes that soft-dirty cannot track, by [`Blind`].
    pub blind_bytes: [u64; Blind::ALL.len()],
    /// Of [`Self::blind_bytes`], what direct reads under way are delivered to; where that is is not known.
    pub direct_read_bytes: u64,
    /// 1 if the process that had opened the epoch which this clear ends was gone when it began.
    pub opener_gone: u32,
    /// 1 if the address space had ever pinned pages when the clear reached it.
    pub ever_pinned: u32,
    /// Who cleared.
    pub tracker: TaskIdentity,
    /// Whose address space was cleared.
    pub target: TaskIdentity,
}

/// Why soft-dirty cannot track a writable VMA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
pub enum Blind {
    /// `VM_HUGETLB`: pagemap never shows the bit of a huge page's entry.
    Hugetlb = 0,
    /// `VM_PFNMAP`: `clear_refs_test_walk` passes over the VMA.
    Pfnmap = 1,
    /// Huge pages and pages of shared memory that are pinned for a device or for `io_uring`: who pinned them writes
    /// them without their page-table entries.
    Pinned = 2,
    /// Shared memory that is mapped writable somewhere else too (`i_mmap_writable`).
    WritableAlias = 3,
    /// The completion ring of an AIO context: the kernel writes it.
    AioRing = 4,
    /// A shared writable VMA whose `vm_page_prot` lets entries be born writable though it is armed.
    PageProtection = 5,
}

impl Blind {
    /// Every reason, in the order of the discriminants.
    pub const ALL: [Self; 6] = [
        Self::Hugetlb,
        Self::Pfnmap,
        Self::Pinned,
        Self::WritableAlias,
        Self::AioRing,
        Self::PageProtection,
    ];

    /// The reason with this discriminant.
    #[must_use]
    pub fn from_raw(raw: u32) -> Option<Self> {
        Self::ALL.get(raw as usize).copied()
    }

    /// The label value in metrics and in JSON.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Hugetlb => "hugetlb",
            Self::Pfnmap => "pfnmap",
            Self::Pinned => "pinned",
            Self::WritableAlias => "writable_alias",
            Self::AioRing => "aio_ring",
            Self::PageProtection => "page_protection",
        }
    }
}

/// [`ClearRecord::status`]: the clear opened an epoch.
pub const CLEAR_TRACKED: u32 = 0;
/// [`ClearRecord::status`]: the clear worked, but a filter leaves this address space out.
pub const CLEAR_FILTERED: u32 = 1;
/// [`ClearRecord::status`]: the clear worked, but the map of tracked address spaces is full.
pub const CLEAR_UNTRACKED: u32 = 2;
/// [`ClearRecord::status`]: the call reached no address space (the target had exited) or failed.
pub const CLEAR_REACHED_NOTHING: u32 = 3;

/// An address space is tracked from now on without a clear: it was adopted or forked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct TrackRecord {
    /// Kind, version, size, time.
    pub header: Header,
    /// Stable id of the address space.
    pub birth: u64,
    /// Stable id of the address space it was forked from, else 0.
    pub parent: u64,
    /// Epoch of the parent at the fork, else 0.
    pub parent_epoch: u32,
    /// `ORIGIN_FORK` or `ORIGIN_ADOPTED`.
    pub origin: u32,
    /// Whose address space it is.
    pub target: TaskIdentity,
}

/// A process of a tracked address space calls exec: it leaves that address space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct ExecRecord {
    /// Kind, version, size, time.
    pub header: Header,
    /// Stable id of the address space that is left.
    pub birth: u64,
    /// Who calls exec.
    pub task: TaskIdentity,
}

/// A tracked address space is torn down: its last epoch is over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct ExitRecord {
    /// Kind, version, size, time.
    pub header: Header,
    /// Stable id of the address space.
    pub birth: u64,
    /// Number of its last epoch.
    pub epoch: u32,
    /// Keeps the size a multiple of eight.
    pub padding: u32,
}

/// One fault of a tracked address space, only with `--trace-faults`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct FaultRecord {
    /// Kind, version, size, time.
    pub header: Header,
    /// Stable id of the address space.
    pub birth: u64,
    /// Address that faulted.
    pub address: u64,
    /// `vm_start` of the VMA.
    pub vma_start: u64,
    /// `vm_flags` of the VMA.
    pub vm_flags: u64,
    /// `vm_page_prot` of the VMA.
    pub page_prot: u64,
    /// The page-table entry that faulted.
    pub entry: u64,
    /// Epoch that the fault belongs to.
    pub epoch: u32,
    /// A [`crate::classify::Outcome`].
    pub outcome: u32,
    /// 1 for a PMD fault.
    pub huge: u32,
    /// Thread id in the initial pid namespace.
    pub initial_tid: u32,
}

/// Somebody reads a pagemap file while the daemon wants to be told, see [`crate::interest`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct InterestRecord {
    /// Kind, version, size, time.
    pub header: Header,
    /// Who reads.
    pub reader: TaskIdentity,
}

/// Size of the largest record in bytes.
pub const LARGEST: usize = size_of::<PagesRecord>();

/// A record after its header was checked.
#[allow(
    clippy::large_enum_variant,
    reason = "there is no allocator here, and records are taken one after the other"
)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    /// See [`ClearRecord`].
    Clear(ClearRecord),
    /// See [`TrackRecord`].
    Track(TrackRecord),
    /// See [`ExecRecord`].
    Exec(ExecRecord),
    /// See [`ExitRecord`].
    Exit(ExitRecord),
    /// See [`FaultRecord`].
    Fault(FaultRecord),
    /// See [`PagesRecord`].
    Pages(PagesRecord),
    /// See [`VmaRecord`].
    Vma(VmaRecord),
    /// See [`RangeRecord`].
    Range(RangeRecord),
    /// See [`InterestRecord`].
    Interest(InterestRecord),
}

/// Why bytes from the ring buffer are no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// Shorter than a header, or of another size than the header or the kind says.
    Size,
    /// Another version than [`VERSION`].
    Version(u16),
    /// No such kind.
    Kind(u16),
}

impl Record {
    /// Decodes one record; the bytes need no alignment.
    ///
    /// # Errors
    /// Says what does not fit.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let header: Header =
            bytemuck::pod_read_unaligned(bytes.get(..size_of::<Header>()).ok_or(DecodeError::Size)?);
        if header.version != VERSION {
            return Err(DecodeError::Version(header.version));
        }
        if header.size as usize != bytes.len() {
            return Err(DecodeError::Size);
        }
        match header.kind {
            kind if kind == Kind::Clear as u16 => read(bytes).map(Self::Clear),
            kind if kind == Kind::Track as u16 => read(bytes).map(Self::Track),
            kind if kind == Kind::Exec as u16 => read(bytes).map(Self::Exec),
            kind if kind == Kind::Exit as u16 => read(bytes).map(Self::Exit),
            kind if kind == Kind::Fault as u16 => read(bytes).map(Self::Fault),
            kind if kind == Kind::Pages as u16 => read(bytes).map(Self::Pages),
            kind if kind == Kind::Vma as u16 => read(bytes).map(Self::Vma),
            kind if kind == Kind::Range as u16 => read(bytes).map(Self::Range),
            kind if kind == Kind::Interest as u16 => read(bytes).map(Self::Interest),
            kind => Err(DecodeError::Kind(kind)),
        }
    }
}

fn read<T: Pod>(bytes: &[u8]) -> Result<T, DecodeError> {
    if bytes.len() == size_of::<T>() {
        Ok(bytemuck::pod_read_unaligned(bytes))
    } else {
        Err(DecodeError::Size)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use proptest::prelude::*;

    use super::*;

    fn exit() -> ExitRecord {
        let header = Header {
            kind: Kind::Exit as u16,
            version: VERSION,
            size: u32::try_from(size_of::<ExitRecord>()).unwrap(),
            time_ns: 5,
        };
        ExitRecord {
            header,
            birth: 9,
            epoch: 3,
            padding: 0,
        }
    }

    #[test]
    fn a_record_survives_at_any_alignment() {
        let record = exit();
        let mut bytes = std::vec![0];
        bytes.extend_from_slice(bytemuck::bytes_of(&record));
        assert_eq!(Record::decode(&bytes[1..]), Ok(Record::Exit(record)));
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let record = exit();
        let bytes = bytemuck::bytes_of(&record);
        assert_eq!(Record::decode(&bytes[..bytes.len() - 1]), Err(DecodeError::Size));
        assert_eq!(Record::decode(&[]), Err(DecodeError::Size));
        let mut other = record;
        other.header.version = 9;
        assert_eq!(
            Record::decode(bytemuck::bytes_of(&other)),
            Err(DecodeError::Version(9))
        );
        other = record;
        other.header.kind = 99;
        assert_eq!(
            Record::decode(bytemuck::bytes_of(&other)),
            Err(DecodeError::Kind(99))
        );
        other.header.kind = Kind::Clear as u16;
        assert_eq!(Record::decode(bytemuck::bytes_of(&other)), Err(DecodeError::Size));
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Record::decode(&bytes);
        }
    }
}
