//! What the running kernel was built with, as far as sdtrace depends on it, and how that was learned.
//!
//! A build configuration can be read on few machines, and need not be that of the running kernel. So an option is
//! first judged by what the running kernel itself shows (a symbol that exists only with the option, a file), and by
//! a configuration only where that decides nothing. Whether soft-dirty really works only a round trip can tell.

use std::fmt;
use std::io::{self, Read};

use flate2::read::GzDecoder;
use serde::Serialize;

use super::kallsyms::Symbols;

/// Exists only in kernels that charge BPF memory to `RLIMIT_MEMLOCK`; gone since 5.11 (80ee81e0403c).
const CHARGES_MEMLOCK: &str = "bpf_map_charge_init";

/// A configuration is 130 to 280 KB; what is far larger is none.
const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// What an option is needed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Need {
    /// Nothing works without it.
    Always,
    /// Only attaching by fentry and fexit needs it.
    Fentry,
    /// Only attaching by kprobe and kretprobe needs it.
    Kprobe,
}

/// Whether the kernel has an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It has.
    Present,
    /// It has not.
    Absent,
    /// Nothing that could be read tells.
    Unknown,
}

/// One option of the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KernelOption {
    /// Its name, with `CONFIG_`.
    pub name: &'static str,
    /// What it gives to sdtrace.
    pub gives: &'static str,
    /// What needs it.
    pub need: Need,
    /// Whether the kernel has it.
    pub state: State,
    /// How that was learned.
    pub learned_from: String,
}

/// Everything that tells something about the kernel's options; what could not be read is `None`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Evidence<'a> {
    /// A build configuration, and the file that it came from.
    pub config: Option<(&'a str, &'a str)>,
    /// The kernel's symbols, searched for [`wanted_symbols`].
    pub symbols: Option<&'a Symbols>,
    /// `/proc/self/smaps`.
    pub smaps: Option<&'a str>,
    /// Whether `/sys/kernel/btf/vmlinux` exists.
    pub btf_exists: Option<bool>,
}

/// How the running kernel shows that it has an option.
#[derive(Debug, Clone, Copy)]
enum Sign {
    /// A function that is compiled with the option only.
    Symbol(&'static str),
    /// The `sd` flag in smaps: with soft-dirty every new VMA carries it. That none does proves nothing.
    SoftDirtyVma,
    /// The file of the kernel's BTF.
    BtfFile,
}

type Row = (&'static str, Need, Sign, &'static str);

#[rustfmt::skip]
const OPTIONS: &[Row] = &[
    ("CONFIG_MEM_SOFT_DIRTY", Need::Always, Sign::SoftDirtyVma,
        "soft-dirty tracking itself"),
    ("CONFIG_PROC_PAGE_MONITOR", Need::Always, Sign::Symbol("pagemap_read"),
        "/proc/PID/pagemap and clear_refs"),
    ("CONFIG_BPF_SYSCALL", Need::Always, Sign::Symbol("bpf_check"),
        "loading eBPF programs"),
    ("CONFIG_BPF_JIT", Need::Always, Sign::Symbol("bpf_jit_binary_alloc"),
        "eBPF programs at native speed; fentry needs it"),
    ("CONFIG_BPF_EVENTS", Need::Always, Sign::Symbol("trace_call_bpf"),
        "eBPF programs on kernel functions"),
    ("CONFIG_DEBUG_INFO_BTF", Need::Always, Sign::BtfFile,
        "the layout of the kernel's structs"),
    ("CONFIG_KPROBES", Need::Kprobe, Sign::Symbol("register_kprobe"),
        "probes on any kernel function"),
    ("CONFIG_KPROBE_EVENTS", Need::Kprobe, Sign::Symbol("perf_kprobe_init"),
        "kprobes through perf_event_open"),
    ("CONFIG_FUNCTION_TRACER", Need::Fentry, Sign::Symbol("register_ftrace_function"),
        "patchable function entries"),
    ("CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS", Need::Fentry, Sign::Symbol("register_ftrace_direct"),
        "fentry and fexit on traceable functions"),
];

/// The functions whose presence tells about options, for [`Symbols::parse`].
pub fn wanted_symbols() -> impl Iterator<Item = &'static str> {
    let signs = OPTIONS.iter().filter_map(|(_, _, sign, _)| match sign {
        Sign::Symbol(name) => Some(*name),
        _ => None,
    });
    signs.chain([CHARGES_MEMLOCK])
}

/// Every option that sdtrace depends on, with what the evidence says about it.
#[must_use]
pub fn kernel_options(evidence: &Evidence<'_>) -> Vec<KernelOption> {
    OPTIONS
        .iter()
        .map(|&(name, need, sign, gives)| {
            let (state, learned_from) = evidence
                .ask_kernel(sign)
                .or_else(|| evidence.ask_config(name))
                .unwrap_or_else(|| (State::Unknown, "nothing readable tells".to_owned()));
            KernelOption {
                name,
                gives,
                need,
                state,
                learned_from,
            }
        })
        .collect()
}

/// Whether this kernel charges BPF maps and programs to `RLIMIT_MEMLOCK`, so that `CAP_SYS_RESOURCE` or a raised limit
/// is needed. `None` without symbols.
#[must_use]
pub fn charges_memlock(symbols: Option<&Symbols>) -> Option<bool> {
    has_function(symbols?, CHARGES_MEMLOCK)
}

/// Where configurations lie, for a kernel of this release (`uname -r`): the running kernel's own first, then the
/// files that distributions install (the last one: Debian from 6.19 on, Fedora).
#[must_use]
pub fn config_paths(release: &str) -> [String; 3] {
    [
        "/proc/config.gz".to_owned(),
        format!("/boot/config-{release}"),
        format!("/lib/modules/{release}/config"),
    ]
}

/// The text of a configuration, unpacked if it is gzip.
///
/// # Errors
/// If it is damaged, too large, or not a kernel's configuration.
pub fn config_text(bytes: &[u8]) -> io::Result<String> {
    let mut text = String::new();
    if bytes.starts_with(&[0x1f, 0x8b]) {
        GzDecoder::new(bytes)
            .take(MAX_CONFIG_BYTES)
            .read_to_string(&mut text)?;
    } else {
        bytes.take(MAX_CONFIG_BYTES).read_to_string(&mut text)?;
    }
    if text.lines().any(|line| line.starts_with("CONFIG_")) {
        Ok(text)
    } else {
        Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "not a kernel configuration",
        ))
    }
}

impl Evidence<'_> {
    fn ask_kernel(&self, sign: Sign) -> Option<(State, String)> {
        match sign {
            Sign::Symbol(name) => {
                let present = has_function(self.symbols?, name)?;
                Some(if present {
                    (State::Present, format!("the kernel has {name}()"))
                } else {
                    (State::Absent, format!("the kernel has no {name}()"))
                })
            }
            Sign::SoftDirtyVma => {
                let mut flags = self
                    .smaps?
                    .lines()
                    .filter_map(|line| line.strip_prefix("VmFlags:"));
                let shown = flags.any(|line| line.split_ascii_whitespace().any(|flag| flag == "sd"));
                shown.then(|| (State::Present, "/proc/self/smaps shows `sd`".to_owned()))
            }
            Sign::BtfFile => Some(if self.btf_exists? {
                (State::Present, "/sys/kernel/btf/vmlinux exists".to_owned())
            } else {
                (State::Absent, "/sys/kernel/btf/vmlinux does not exist".to_owned())
            }),
        }
    }

    fn ask_config(&self, name: &str) -> Option<(State, String)> {
        let (file, text) = self.config?;
        // An option whose prerequisites are off is not mentioned at all.
        let set = text
            .lines()
            .filter_map(|line| line.strip_prefix(name)?.strip_prefix('='))
            .next_back();
        Some(match set {
            Some("y" | "m") => (State::Present, format!("set in {file}")),
            _ => (State::Absent, format!("not set in {file}")),
        })
    }
}

/// Whether the kernel has a function; `None` if the symbol list is empty or was not searched for it.
fn has_function(symbols: &Symbols, name: &str) -> Option<bool> {
    if symbols.is_empty() {
        return None;
    }
    symbols
        .get(name)
        .map(|symbol| symbol.count > 0 || !symbol.clones.is_empty())
}

impl fmt::Display for KernelOption {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            State::Present => "present",
            State::Absent => "absent",
            State::Unknown => "unknown",
        };
        write!(
            formatter,
            "{} ({}): {state}, {}",
            self.name, self.gives, self.learned_from
        )
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    const CONFIG: &str = "\
#
# Linux/x86 6.18.44 Kernel Configuration
#
CONFIG_BPF_SYSCALL=y
CONFIG_BPF_JIT=y
# CONFIG_KPROBES is not set
CONFIG_HAVE_KPROBES=y
CONFIG_KPROBES_SANITY_TEST=y
# CONFIG_MEM_SOFT_DIRTY is not set
CONFIG_PROC_PAGE_MONITOR=y
CONFIG_DEBUG_INFO_BTF=m
";

    fn state(evidence: &Evidence<'_>, name: &str) -> (State, String) {
        let options = kernel_options(evidence);
        let option = options.iter().find(|option| option.name == name).unwrap();
        (option.state, option.learned_from.clone())
    }

    fn symbols(text: &str) -> Symbols {
        Symbols::parse(text.as_bytes(), wanted_symbols(), []).unwrap()
    }

    #[test]
    fn without_evidence_everything_is_unknown() {
        for option in kernel_options(&Evidence::default()) {
            assert_eq!(option.state, State::Unknown, "{option}");
        }
        let empty = symbols("");
        let evidence = Evidence {
            symbols: Some(&empty),
            ..Evidence::default()
        };
        assert_eq!(state(&evidence, "CONFIG_KPROBES").0, State::Unknown);
    }

    #[test]
    fn a_configuration_tells_what_is_set_and_what_is_not() {
        let evidence = Evidence {
            config: Some(("/proc/config.gz", CONFIG)),
            ..Evidence::default()
        };
        let set = (State::Present, "set in /proc/config.gz".to_owned());
        let unset = (State::Absent, "not set in /proc/config.gz".to_owned());
        assert_eq!(state(&evidence, "CONFIG_BPF_SYSCALL"), set);
        assert_eq!(state(&evidence, "CONFIG_DEBUG_INFO_BTF"), set);
        assert_eq!(state(&evidence, "CONFIG_KPROBES"), unset);
        assert_eq!(state(&evidence, "CONFIG_MEM_SOFT_DIRTY"), unset);
        assert_eq!(state(&evidence, "CONFIG_KPROBE_EVENTS"), unset, "not mentioned");
    }

    #[test]
    fn the_running_kernel_is_believed_before_a_configuration() {
        let symbols = symbols("ffffffff81000000 T register_kprobe\nffffffff81000100 t something\n");
        let evidence = Evidence {
            config: Some(("/boot/config-x", CONFIG)),
            symbols: Some(&symbols),
            smaps: Some("VmFlags: rd ex mr mw me \nVmFlags: rd wr mr mw me ac sd \n"),
            btf_exists: Some(false),
        };
        let expected = (State::Present, "the kernel has register_kprobe()".to_owned());
        assert_eq!(state(&evidence, "CONFIG_KPROBES"), expected);
        let expected = (State::Absent, "the kernel has no bpf_check()".to_owned());
        assert_eq!(state(&evidence, "CONFIG_BPF_SYSCALL"), expected);
        assert_eq!(state(&evidence, "CONFIG_MEM_SOFT_DIRTY").0, State::Present);
        assert_eq!(state(&evidence, "CONFIG_DEBUG_INFO_BTF").0, State::Absent);
    }

    #[test]
    fn smaps_without_sd_leaves_the_question_to_the_configuration() {
        let smaps = Some("VmFlags: rd wr mr mw me ac \nSdFlags: sd\n");
        let mut evidence = Evidence {
            smaps,
            ..Evidence::default()
        };
        assert_eq!(state(&evidence, "CONFIG_MEM_SOFT_DIRTY").0, State::Unknown);
        evidence.config = Some(("/proc/config.gz", CONFIG));
        assert_eq!(state(&evidence, "CONFIG_MEM_SOFT_DIRTY").0, State::Absent);
    }

    #[test]
    fn memlock_is_charged_where_the_kernel_has_the_code_for_it() {
        assert_eq!(charges_memlock(None), None);
        assert_eq!(
            charges_memlock(Some(&symbols("0 T bpf_map_charge_init\n"))),
            Some(true)
        );
        assert_eq!(charges_memlock(Some(&symbols("0 T bpf_check\n"))), Some(false));
    }

    #[test]
    fn configurations_are_read_plain_and_packed() {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(CONFIG.as_bytes()).unwrap();
        let packed = encoder.finish().unwrap();
        assert_eq!(config_text(&packed).unwrap(), CONFIG);
        assert_eq!(config_text(CONFIG.as_bytes()).unwrap(), CONFIG);
        assert!(config_text(&packed[..packed.len() / 2]).is_err());
        assert!(config_text(b"<html>").is_err());
        assert!(config_text(b"").is_err());
    }
}
