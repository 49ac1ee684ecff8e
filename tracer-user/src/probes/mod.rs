//! The kernel side, driven from here: load, attach, self-test, adopt, read.

pub mod adopt;
mod bare;
pub mod counters;
pub mod demand;
pub mod filters;
pub(crate) mod hooks;
mod links;
mod mapped;
pub mod missed;
pub mod object;
mod pages;
mod release;
mod rows;
pub mod self_test;
pub mod self_test_child;
mod start_error;
pub mod verdict;
mod writes;

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use aya::Ebpf;
use aya::maps::{Array, HashMap, MapData, PerCpuArray, RingBuf};
use aya_log::EbpfLogger;
use log::Log;
use tracer_common::counters::STRIP;
use tracer_common::records::{DecodeError, Record};
use tracer_common::settings::{MODE_IDLE, MODE_LIVE, MODE_SELF_TEST, Own, Settings};
use tracer_common::table::VmaKey;
use tracer_common::tracked::Tracked;
use tracer_common::writes::{WRITE_SLOTS, WriteUnderWay};

pub use self::bare::Bare;
use self::counters::Counters;
use self::demand::WatchWrites;
pub use self::filters::Filters;
use self::hooks::{HOOKS, START_HOOK};
use self::mapped::MappedArray;
use self::missed::MissedRuns;
pub use self::pages::{Owner as PageOwner, PageRecords, Written};
use self::release::Release;
pub use self::rows::Rows;
pub use self::start_error::StartError;
use self::verdict::{AttachMode, Mechanism, ProbeVerdict};
use self::writes::WriteWatch;
use crate::kernel::layout::Layout;
use crate::kernel::preemption::Preemption;

/// Bounds of what the kernel side keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Tracked address spaces.
    pub address_spaces: u32,
    /// VMA states; each takes 320 bytes and about 100 in the index.
    pub rows: u32,
    /// Records of pages, one for each 2 MiB of an address space in which anything was written in an epoch; each
    /// takes 1,088 bytes and about 80 in the index.
    pub page_records: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            address_spaces: 8192,
            rows: 16384,
            page_records: 8192,
        }
    }
}

/// How to start.
#[derive(Clone, Debug, Default)]
pub struct ProbeOptions {
    /// Which mechanisms to attach by.
    pub attach: AttachMode,
    /// In kprobe mode, attach a return probe to `do_wp_page` too. It costs every such fault of the machine; with
    /// it faults are counted when they end and their handling time is known.
    pub fault_return: bool,
    /// Send a record for each fault.
    pub trace_faults: bool,
    /// When write faults are watched; who starts the probes must see to it.
    pub watch_writes: WatchWrites,
    /// What to track.
    pub filters: Filters,
    /// Bounds.
    pub limits: Limits,
    /// Level of the programs' own log, 0 (off) to 5 (trace).
    pub probe_log_level: u8,
}

/// The attached programs and what they share with us. Dropping it detaches everything.
pub struct Probes {
    object: Ebpf,
    verdicts: Vec<ProbeVerdict>,
    counters: Counters,
    rows: Rows,
    pages: PageRecords,
    records: RingBuf<MapData>,
    /// What the programs say on rare occasions; `None` unless asked for.
    log: Option<EbpfLogger<&'static dyn Log>>,
    settings: Array<MapData, Settings>,
    own: Array<MapData, Own>,
    tracked: HashMap<MapData, u64, Tracked>,
    bare: PerCpuArray<MapData, u64>,
    writes: MappedArray<WriteUnderWay>,
    write_watch: WriteWatch,
    live: Box<Settings>,
    limits: Limits,
    undecoded: u64,
    preemption: Preemption,
    kprobes_are_accounted_for: bool,
    /// Processes whose smaps could not be read at the start, so that they may be armed unseen.
    pub unreadable_at_start: usize,
    /// What was missed before anything but the self-test's child could be tracked.
    missed_before: Vec<MissedRuns>,
}

impl Probes {
    /// Loads, attaches, proves by the self-test that this kernel is read rightly, adopts what is armed already,
    /// and goes live.
    ///
    /// # Errors
    /// Says what is missing and what to do.
    pub fn start(options: &ProbeOptions) -> Result<Self, StartError> {
        let live = filters::settings_of(&options.filters)?;
        let layout = object::resolve_layout()?;
        let mut probes = Self::load(&layout, options, Box::new(live))?;
        let btf = aya::Btf::from_sys_fs().map_err(|error| StartError::Other(error.into()))?;
        let mechanisms = options.attach.mechanisms(probes.preemption);
        let attach = |object: &mut Ebpf, hook| {
            object::attach(object, &btf, &layout, hook, mechanisms, options.fault_return)
        };
        let (start_hook, _) = attach(&mut probes.object, &START_HOOK);
        for hook in HOOKS {
            let (verdict, attached) = attach(&mut probes.object, hook);
            probes.write_watch.take_over(hook, &verdict.verdict, attached);
            probes.verdicts.push(verdict);
        }
        let mut all = probes.verdicts.clone();
        all.push(start_hook.clone());
        if all
            .iter()
            .any(|verdict| verdict.required && verdict.verdict.mechanism().is_none())
        {
            return Err(StartError::Probes(all));
        }
        self_test::run(&mut probes).map_err(StartError::SelfTest)?;
        probes.kprobes_are_accounted_for = !probes.preemption.is_possible()
            || missed::skipped_runs_are_counted(&mut probes.object, &probes.bare).unwrap_or(false);
        probes.go_live()?;
        if options.watch_writes == WatchWrites::Tracked {
            probes.write_watch.note_readers();
        } else if let Some(mechanism) = start_hook.verdict.mechanism() {
            object::detach(&mut probes.object, &START_HOOK, mechanism, options.fault_return);
        }
        Ok(probes)
    }

    fn load(layout: &Layout, options: &ProbeOptions, live: Box<Settings>) -> Result<Self, StartError> {
        let cpus = object::possible_cpus().map_err(|error| StartError::Other(error.into()))?;
        let mut object = object::load(layout, options, cpus)?;
        release::load(&mut object)?;
        let rows = Rows::take(&mut object, options.limits.rows)?;
        let pages = PageRecords::take(&mut object, options.limits.page_records)?;
        let log = if options.probe_log_level > 0 {
            Some(EbpfLogger::init(&mut object).context("the programs' log cannot be read")?)
        } else {
            None
        };
        let mut map = |name: &'static str| object.take_map(name).with_context(|| format!("no map {name}"));
        let counters = match map("COUNTERS")? {
            aya::maps::Map::Array(data) => MappedArray::new(data, (cpus * STRIP) as usize)
                .context("the array of counters cannot be mapped")?,
            other => return Err(StartError::Other(anyhow::anyhow!("COUNTERS is {other:?}"))),
        };
        let writes = match map("UNDER_WAY")? {
            aya::maps::Map::Array(data) => MappedArray::new(data, WRITE_SLOTS as usize)
                .context("the array of writes under way cannot be mapped")?,
            other => return Err(StartError::Other(anyhow::anyhow!("UNDER_WAY is {other:?}"))),
        };
        let interest = match map("INTEREST")? {
            aya::maps::Map::Array(data) => {
                MappedArray::new(data, 1).context("the array of interest cannot be mapped")?
            }
            other => return Err(StartError::Other(anyhow::anyhow!("INTEREST is {other:?}"))),
        };
        let other = |error: aya::maps::MapError| StartError::Other(error.into());
        Ok(Self {
            counters: Counters::new(counters),
            rows,
            pages,
            log,
            records: RingBuf::try_from(map("RECORDS")?).map_err(other)?,
            settings: Array::try_from(map("SETTINGS")?).map_err(other)?,
            own: Array::try_from(map("OWN")?).map_err(other)?,
            tracked: HashMap::try_from(map("TRACKED")?).map_err(other)?,
            bare: PerCpuArray::try_from(map("BARE")?).map_err(other)?,
            writes,
            write_watch: WriteWatch::new(interest),
            verdicts: Vec::new(),
            live,
            limits: options.limits,
            undecoded: 0,
            preemption: Preemption::of_this_machine(),
            kprobes_are_accounted_for: false,
            unreadable_at_start: 0,
            missed_before: Vec::new(),
            object,
        })
    }

    /// What became of each probe.
    #[must_use]
    pub fn verdicts(&self) -> &[ProbeVerdict] {
        &self.verdicts
    }

    /// The event counters.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The table of VMA states.
    #[must_use]
    pub fn rows(&self) -> &Rows {
        &self.rows
    }

    /// Takes a row out of the index: no program finds it any more, though one may still be writing to it.
    ///
    /// # Errors
    /// What the kernel says; a key that is not there is no error.
    pub fn retire_row(&self, key: &VmaKey) -> Result<()> {
        Release::of(&self.object)?.retire_row(key)
    }

    /// Gives a retired row back, zeroed.
    ///
    /// # Errors
    /// What the kernel says; the row is then lost until the next start.
    pub fn recycle_row(&self, number: u32) -> Result<()> {
        self.rows.zero(number);
        Release::of(&self.object)?.return_row(number)
    }

    /// Gives back the records of pages that are old, see [`PageRecords::sweep`].
    ///
    /// # Errors
    /// What the kernel says; what was not given back is tried again.
    pub fn sweep_pages(&mut self, owner: impl Fn(u64) -> PageOwner) -> Result<()> {
        self.pages.sweep(Release::of(&self.object)?, owner)
    }

    /// The records of pages.
    #[must_use]
    pub fn pages(&self) -> &PageRecords {
        &self.pages
    }

    /// Who the programs think we are.
    ///
    /// # Errors
    /// What bpf(2) says.
    pub fn own(&self) -> Result<Own> {
        Ok(self.own.get(&0, 0)?)
    }

    /// Stable ids of all tracked address spaces, by bpf(2): only when records were lost.
    ///
    /// # Errors
    /// What bpf(2) says.
    pub fn live_births(&self) -> Result<Vec<u64>> {
        self.tracked.iter().map(|entry| Ok(entry?.1.birth)).collect()
    }

    /// Bounds of what the kernel side keeps.
    #[must_use]
    pub const fn limits(&self) -> Limits {
        self.limits
    }

    /// Records from the ring buffer that could not be decoded; they are lost.
    #[must_use]
    pub const fn undecoded(&self) -> u64 {
        self.undecoded
    }

    /// Runs of probes that the kernel skipped since the daemon went live, as far as it counts them.
    #[must_use]
    pub fn missed_runs(&self) -> Vec<MissedRuns> {
        let mut runs = missed::missed_runs(&self.object, self.kprobes_are_accounted_for);
        missed::subtract(&mut runs, &self.missed_before);
        runs
    }

    /// Write faults that have entered and not returned yet, as far as a return probe is needed to see that: address space,
    /// and its epoch at the entry.
    #[must_use]
    pub fn writes_under_way(&self) -> Vec<(u64, u32)> {
        (0..self.writes.len())
            .filter(|&slot| self.writes.read_word(slot, 0) != 0)
            .map(|slot| self.writes.read(slot))
            .map(|write| (write.birth, write.epoch))
            .collect()
    }

    /// The ring buffer's descriptor, readable when records wait.
    #[must_use]
    pub fn records_fd(&self) -> std::os::fd::RawFd {
        std::os::fd::AsRawFd::as_raw_fd(&self.records)
    }

    /// Moves all waiting records to `records`, and what the programs said to the log.
    pub fn drain(&mut self, records: &mut Vec<Record>) {
        if let Some(log) = &mut self.log {
            log.flush();
        }
        while let Some(item) = self.records.next() {
            match Record::decode(&item) {
                Ok(record) => records.push(record),
                Err(error) => {
                    self.undecoded += 1;
                    let error: DecodeError = error;
                    tracing::error!(
                        ?error,
                        bytes = item.len(),
                        "a record from the kernel cannot be decoded"
                    );
                }
            }
        }
    }

    fn apply(&mut self, settings: &Settings) -> Result<()> {
        self.settings
            .set(0, settings, 0)
            .context("the settings cannot be written")
    }

    fn set_self_test(&mut self, pid: u32) -> Result<()> {
        self.apply(&Settings {
            mode: MODE_SELF_TEST,
            self_test_pid: pid,
            ..Settings::default()
        })
    }

    /// Reads a pagemap file in the way that the probe on `pagemap_read` knows as ours.
    fn handshake(&mut self, pagemap: &Path) -> Result<()> {
        let secret = random_word()?;
        self.live.handshake = secret;
        let mode = if self.own()?.namespace == 0 {
            MODE_IDLE
        } else {
            MODE_LIVE
        };
        let settings = Settings {
            mode,
            handshake: secret,
            ..*self.live
        };
        self.apply(&settings)?;
        let mut buffer = secret.to_ne_bytes();
        let file = File::open(pagemap).with_context(|| pagemap.display().to_string())?;
        // The entry of the page at address 0; what it says does not matter.
        file.read_at(&mut buffer, 0)
            .with_context(|| pagemap.display().to_string())?;
        Ok(())
    }

    fn go_live(&mut self) -> Result<()> {
        self.counters.start_over();
        self.missed_before = missed::missed_runs(&self.object, self.kprobes_are_accounted_for);
        self.live.mode = MODE_LIVE;
        self.live.handshake = 0;
        self.apply(&self.live.clone())?;
        // Twice: a process may fork from an armed one while the first pass goes on.
        for _ in 0..2 {
            let (armed, unreadable) = adopt::armed_processes().context("/proc")?;
            self.unreadable_at_start = unreadable;
            for pagemap in armed {
                if let Err(error) = self.handshake(&pagemap) {
                    let cause = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
                    if cause == Some(std::io::ErrorKind::PermissionDenied) {
                        self.unreadable_at_start += 1;
                    }
                    // Or it may have exited meanwhile.
                    tracing::debug!(%error, "an armed process could not be adopted");
                }
            }
        }
        self.live.handshake = 0;
        self.apply(&self.live.clone())
    }

    /// Gives back all rows of an address space that is gone.
    fn forget(&self, birth: u64) -> Result<()> {
        let rows: Vec<_> = self
            .rows
            .used()
            .filter(|(_, row)| row.key.birth == birth)
            .collect();
        for (number, row) in rows {
            self.retire_row(&row.key)?;
            self.recycle_row(number)?;
        }
        Ok(())
    }
}

fn random_word() -> Result<u64> {
    let mut bytes = [0; 8];
    std::io::Read::read_exact(&mut File::open("/dev/urandom")?, &mut bytes).context("/dev/urandom")?;
    // 0 would switch the handshake off.
    Ok(u64::from_ne_bytes(bytes) | 1)
}

/// Loads every program whose verification needs no attach point, on the present kernel with its own layout.
///
/// # Errors
/// The first thing that the kernel refuses.
pub fn verify_object() -> Result<Vec<(String, Option<u32>)>> {
    let layout = object::resolve_layout()?;
    let mut object = object::load(&layout, &ProbeOptions::default(), object::possible_cpus()?)?;
    object::verify(&mut object).map_err(anyhow::Error::msg)
}

/// How each probe is attached, for what needs to know whether return values are seen.
#[must_use]
pub fn mechanism_of(verdicts: &[ProbeVerdict], probe: &str) -> Option<Mechanism> {
    verdicts
        .iter()
        .find(|verdict| verdict.probe == probe)?
        .verdict
        .mechanism()
}
