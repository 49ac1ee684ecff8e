//! Loading the eBPF object and attaching its programs.

use std::fs::File;
use std::io::{self, BufReader, Read as _};
use std::os::fd::{AsFd as _, AsRawFd as _};

use aya::programs::{Program, ProgramError};
use aya::{BtfError, Ebpf, EbpfLoader};
use tracer_common::counters::STRIP;

use super::hooks::Hook;
use super::links::{self, Attached};
use super::verdict::{Mechanism, ProbeVerdict, Verdict};
use super::{ProbeOptions, StartError};
use crate::kernel::kallsyms::Symbols;
use crate::kernel::layout::{ABSENT, GlobalValue, Layout};

/// The object, built by `cargo xtask build-ebpf`.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../ebpf/sdtrace-probes.bpf.o");

/// Test hook: a list of `NAME=VALUE` that replaces entries of the layout, to prove that the self-test refuses a
/// wrong one.
pub const LAYOUT_OVERRIDE: &str = "SDTRACE_TEST_LAYOUT_OVERRIDE";

/// The kernel's type information.
pub const BTF_PATH: &str = "/sys/kernel/btf/vmlinux";

/// Resolves the running kernel's layout.
///
/// # Errors
/// If the kernel has no BTF, or one that sdtrace cannot use.
pub fn resolve_layout() -> Result<Layout, StartError> {
    let mut bytes = Vec::new();
    File::open(BTF_PATH)
        .and_then(|mut file| file.read_to_end(&mut bytes))
        .map_err(StartError::NoBtf)?;
    // Without symbols a function counts as present if BTF has it; attaching then tells.
    let symbols = File::open("/proc/kallsyms").ok().and_then(|file| {
        Symbols::parse(
            BufReader::new(file),
            Layout::wanted_functions(),
            Layout::wanted_variables(),
        )
        .ok()
    });
    let mut layout = Layout::resolve(&bytes, symbols.as_ref()).map_err(StartError::Layout)?;
    if let Ok(list) = std::env::var(LAYOUT_OVERRIDE) {
        layout.apply_overrides(&list).map_err(StartError::Override)?;
    }
    Ok(layout)
}

/// CPUs that this machine may ever have; a strip of counters for each.
///
/// # Errors
/// If the kernel does not say.
pub fn possible_cpus() -> io::Result<u32> {
    let count = aya::util::nr_cpus().map_err(|(path, error)| io::Error::other(format!("{path}: {error}")))?;
    u32::try_from(count).map_err(io::Error::other)
}

/// Loads the object with this kernel's layout in place. Nothing is attached yet.
///
/// # Errors
/// If the kernel refuses the object or one of its maps.
pub fn load(layout: &Layout, options: &ProbeOptions, cpus: u32) -> Result<Ebpf, StartError> {
    let switches = [
        ("FAULT_RETURN", u32::from(options.fault_return)),
        ("TRACE_FAULTS", u32::from(options.trace_faults)),
    ];
    let mut loader = EbpfLoader::new();
    for (name, value) in layout.globals() {
        // The layout may know more than the programs use.
        match value {
            GlobalValue::U32(value) => loader.override_global(name, value, false),
            GlobalValue::U64(value) => loader.override_global(name, value, false),
        };
    }
    for (name, value) in &switches {
        loader.override_global(name, value, true);
    }
    loader.override_global("AYA_LOG_LEVEL", &options.probe_log_level, false);
    loader.map_max_entries("TRACKED", options.limits.address_spaces);
    for rows in ["ROW_INDEX", "ROWS", "FREE_ROWS"] {
        loader.map_max_entries(rows, options.limits.rows);
    }
    for chunks in ["CHUNK_INDEX", "CHUNKS", "FREE_CHUNKS"] {
        loader.map_max_entries(chunks, options.limits.page_records);
    }
    loader.map_max_entries("COUNTERS", cpus * STRIP);
    loader
        .load(OBJECT)
        .map_err(|error| StartError::Load(Box::new(error)))
}

/// Attaches one hook by the first mechanism that works. The programs are those that are attached then.
pub fn attach(
    object: &mut Ebpf,
    btf: &aya::Btf,
    layout: &Layout,
    hook: &Hook,
    mechanisms: &[Mechanism],
    fault_return: bool,
) -> (ProbeVerdict, Vec<Attached>) {
    let verdict = |verdict, fell_back_because| ProbeVerdict {
        probe: hook.target.to_owned(),
        required: hook.required,
        verdict,
        fell_back_because,
    };
    if let Some(why) = not_to_be_tried(layout, hook) {
        return (verdict(why, None), Vec::new());
    }
    let mut failures: Vec<String> = Vec::new();
    for &mechanism in mechanisms {
        match attach_by(object, btf, hook, mechanism, fault_return) {
            Ok(attached) => {
                let because = (!failures.is_empty()).then(|| failures.join("; "));
                return (verdict(Verdict::Attached { mechanism }, because), attached);
            }
            Err(error) if hook.tracepoint().is_some() && is_absent(&error) => {
                detach(object, hook, mechanism, fault_return);
                let why = "this kernel has no such tracepoint".to_owned();
                return (verdict(Verdict::Unsupported { why }, None), Vec::new());
            }
            Err(error) => {
                failures.push(format!("{}: {}", mechanism.label(), explain(&error)));
                // What was attached of this hook goes again: no entry without its return.
                detach(object, hook, mechanism, fault_return);
            }
        }
    }
    let why = failures.join("; ");
    (verdict(Verdict::Broken { why }, None), Vec::new())
}

/// Why this kernel's layout alone forbids a hook.
fn not_to_be_tried(layout: &Layout, hook: &Hook) -> Option<Verdict> {
    if DIRECT_READS.contains(&hook.target)
        && let Some(why) = direct_reads_need_no_probe(layout)
    {
        return Some(Verdict::Unsupported { why: why.to_owned() });
    }
    if let Some(function) = layout.function(hook.target)
        && function.count() == ABSENT
    {
        let why = function.to_string();
        let missed = if DIRECT_READS.contains(&hook.target) && hook.target != OLDER_FILE_SYSTEMS {
            // Compiled into another function perhaps; the reads are there all the same.
            Verdict::Broken { why }
        } else {
            Verdict::Unsupported { why }
        };
        return Some(missed);
    }
    if let Some((name, value)) = hook
        .fixed
        .iter()
        .find(|&&(name, value)| layout.global(name) != Some(GlobalValue::U32(value)))
    {
        let why = format!(
            "{name} is {:?}, this version of sdtrace only knows {value}",
            layout.global(name)
        );
        return Some(Verdict::Unsupported { why });
    }
    if PAGE_TABLE_READERS.contains(&hook.target) && !page_tables_are_known(layout) {
        let why = "the kernel's symbols do not say where its direct map begins (page_offset_base in /proc/kallsyms; \
                   needs CAP_SYSLOG and kernel.kptr_restrict below 2), so page tables cannot be read"
            .to_owned();
        return Some(Verdict::Unsupported { why });
    }
    None
}

/// Hooks whose programs look into page tables. Without them attached no epoch is trusted.
const PAGE_TABLE_READERS: [&str; 6] = [
    "clear_refs_pte_range",
    "pagemap_pmd_range",
    "pagemap_pte_hole",
    "pagemap_scan_pmd_entry",
    "pagemap_scan_pte_hole",
    "handle_mm_fault",
];

/// Hooks on direct reads under way.
const DIRECT_READS: [&str; 4] = [
    "bio_set_pages_dirty",
    "bio_check_pages_dirty",
    "__blkdev_direct_IO_simple",
    OLDER_FILE_SYSTEMS,
];

/// The one of them that a kernel is without if no file system needs it.
const OLDER_FILE_SYSTEMS: &str = "__blockdev_direct_IO";

/// Why nothing has to be known of direct reads on this kernel, if so.
fn direct_reads_need_no_probe(layout: &Layout) -> Option<&'static str> {
    if layout.global("BIO_SIZE") == Some(GlobalValue::U32(ABSENT)) {
        return Some("this kernel has no block devices");
    }
    let pinned = layout.global("BIO_PAGES_ARE_PINNED") != Some(GlobalValue::U32(0));
    pinned.then_some(
        "not needed: direct reads pin their pages on this kernel, and a clear leaves those soft-dirty",
    )
}

/// Whether the programs can find page tables: they would look at none, silently, if they could not.
fn page_tables_are_known(layout: &Layout) -> bool {
    layout
        .global("PAGE_OFFSET_BASE")
        .is_some_and(|value| value != GlobalValue::U64(0))
}

/// Whether a tracepoint could not be attached because there is none of the name.
fn is_absent(error: &ProgramError) -> bool {
    match error {
        ProgramError::Btf(BtfError::UnknownBtfTypeName { .. }) => true,
        ProgramError::SyscallError(error) => error.io_error.kind() == std::io::ErrorKind::NotFound,
        _ => false,
    }
}

/// Detaches and unloads the programs of a hook.
pub fn detach(object: &mut Ebpf, hook: &Hook, mechanism: Mechanism, fault_return: bool) {
    for program in hook.programs(mechanism, fault_return) {
        let Some(loaded) = object
            .program_mut(program.name)
            .filter(|loaded| loaded.fd().is_ok())
        else {
            continue;
        };
        let unloaded = match loaded {
            Program::FEntry(program) => program.unload(),
            Program::FExit(program) => program.unload(),
            Program::KProbe(program) => program.unload(),
            Program::BtfTracePoint(program) => program.unload(),
            Program::RawTracePoint(program) => program.unload(),
            _ => Err(ProgramError::UnexpectedProgramType),
        };
        if let Err(error) = unloaded {
            tracing::warn!(program = program.name, %error, "a program could not be unloaded");
        }
    }
}

fn attach_by(
    object: &mut Ebpf,
    btf: &aya::Btf,
    hook: &Hook,
    mechanism: Mechanism,
    fault_return: bool,
) -> Result<Vec<Attached>, ProgramError> {
    let mut attached = Vec::new();
    for wanted in hook.programs(mechanism, fault_return) {
        links::load(object, btf, hook, wanted)?;
        attached.push(links::attach(object, hook, wanted)?);
    }
    Ok(attached)
}

/// The whole chain of an error in one line; a verifier log is cut to its last lines.
pub fn explain(error: &ProgramError) -> String {
    if let ProgramError::LoadError {
        io_error,
        verifier_log,
    } = error
    {
        let log = verifier_log.to_string();
        // The statistics at the end of the log say nothing about the reason.
        let statistics = ["verification time", "stack depth", "processed", "subprog "];
        let tail: Vec<&str> = log
            .lines()
            .rev()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !statistics.iter().any(|start| line.starts_with(start)))
            .take(2)
            .collect();
        if !tail.is_empty() {
            let tail: Vec<&str> = tail.into_iter().rev().collect();
            return format!("the verifier refuses it ({io_error}): {}", tail.join(" | "));
        }
    }
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// Loads every program that the verifier can be asked about without attaching, and tells how many instructions
/// it went through. fentry needs the function to attach to, so those are loaded by [`attach`] only.
///
/// # Errors
/// The first program that the verifier refuses, with its log.
pub fn verify(object: &mut Ebpf) -> Result<Vec<(String, Option<u32>)>, String> {
    let mut verified = Vec::new();
    for (name, program) in object.programs_mut() {
        let loaded = match program {
            Program::KProbe(program) => program.load(),
            Program::RawTracePoint(program) => program.load(),
            _ => continue,
        };
        loaded.map_err(|error| format!("{name}: {error:?}"))?;
        let info = program.info().map_err(|error| format!("{name}: {error}"))?;
        verified.push((name.to_owned(), info.verified_instruction_count()));
    }
    Ok(verified)
}

/// The field `name` of `/proc/self/fdinfo` for a loaded program; `None` if the kernel does not print it.
#[must_use]
pub fn fdinfo(program: &Program, name: &str) -> Option<u64> {
    let fd = program.fd().ok()?.as_fd().as_raw_fd();
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).ok()?;
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probes::hooks::HOOKS;

    #[test]
    fn without_symbols_page_tables_are_not_known() {
        let btf = include_bytes!("../../tests/fixtures/kernels/7.3/vmlinux.btf");
        let symbols = include_bytes!("../../tests/fixtures/kernels/7.3/kallsyms");
        assert!(!page_tables_are_known(&Layout::resolve(btf, None).unwrap()));
        let symbols = Symbols::parse(
            &symbols[..],
            Layout::wanted_functions(),
            Layout::wanted_variables(),
        )
        .unwrap();
        assert!(page_tables_are_known(
            &Layout::resolve(btf, Some(&symbols)).unwrap()
        ));
    }

    #[test]
    fn direct_reads_are_watched_where_their_pages_are_not_pinned() {
        let of = |btf: &[u8]| direct_reads_need_no_probe(&Layout::resolve(btf, None).unwrap()).is_none();
        assert!(of(include_bytes!(
            "../../tests/fixtures/kernels/5.10/vmlinux.btf"
        )));
        assert!(of(include_bytes!("../../tests/fixtures/kernels/6.1/vmlinux.btf")));
        assert!(!of(include_bytes!(
            "../../tests/fixtures/kernels/6.12/vmlinux.btf"
        )));
        assert!(!of(include_bytes!(
            "../../tests/fixtures/kernels/7.3/vmlinux.btf"
        )));
    }

    #[test]
    fn every_reader_of_page_tables_and_every_probe_of_direct_reads_is_a_hook() {
        for target in PAGE_TABLE_READERS.into_iter().chain(DIRECT_READS) {
            assert!(HOOKS.iter().any(|hook| hook.target == target), "{target}");
        }
    }
}
