//! The edge of this module: reads from `/proc`, `/sys` and `/boot` what the running kernel offers and what this process
//! may do, for `sdtrace check`. What cannot be read is noted, never an error: finding out is the purpose.

use std::fs::{self, File};
use std::io::BufReader;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::capabilities::{Capabilities, Missing, Situation, is_initial_user_namespace};
use super::config::{self, Evidence, KernelOption, Need, State};
use super::kallsyms::Symbols;
use super::preemption::Preemption;

/// What was found out about this machine.
#[derive(Debug, Clone, Serialize)]
pub struct Survey {
    /// The kernel's release, as `uname -r` says it.
    pub release: Option<String>,
    /// Every option that sdtrace depends on.
    pub options: Vec<KernelOption>,
    /// Whether programs can be preempted, which decides how `--attach auto` attaches.
    pub preemption: Preemption,
    /// Capabilities that are needed and missing.
    pub missing_capabilities: Vec<Missing>,
    /// Whether capabilities count here at all; `None` if that could not be told.
    pub in_initial_user_namespace: Option<bool>,
    /// What could not be read, one line each.
    pub unreadable: Vec<String>,
}

impl Survey {
    /// Surveys this machine.
    #[must_use]
    pub fn of_this_machine(kprobes_wanted: bool) -> Self {
        Reader::new(Path::new("/")).survey(kprobes_wanted)
    }

    /// The options without which nothing works and that the kernel certainly lacks.
    pub fn lacking(&self) -> impl Iterator<Item = &KernelOption> {
        self.options
            .iter()
            .filter(|option| option.need == Need::Always && option.state == State::Absent)
    }
}

/// Reads files below a root folder and keeps note of what could not be read.
struct Reader<'a> {
    root: &'a Path,
    unreadable: Vec<String>,
}

impl<'a> Reader<'a> {
    fn new(root: &'a Path) -> Self {
        Self {
            root,
            unreadable: Vec::new(),
        }
    }

    fn survey(mut self, kprobes_wanted: bool) -> Survey {
        let release = self
            .text("/proc/sys/kernel/osrelease")
            .map(|text| text.trim().to_owned());
        let symbols = self.symbols();
        let config = self.config(release.as_deref());
        let smaps = self.text("/proc/self/smaps");
        let options = config::kernel_options(&Evidence {
            config: config.as_ref().map(|(file, text)| (file.as_str(), text.as_str())),
            symbols: symbols.as_ref(),
            smaps: smaps.as_deref(),
            btf_exists: self.path("/sys/kernel/btf/vmlinux").try_exists().ok(),
        });
        let situation = Situation {
            // Unknown counts as charged: a limit raised in vain does no harm.
            memlock_is_charged: config::charges_memlock(symbols.as_ref()).unwrap_or(true),
            memlock_is_unlimited: self
                .text("/proc/self/limits")
                .is_some_and(|limits| memlock_is_unlimited(&limits)),
            perf_event_paranoid: self
                .text("/proc/sys/kernel/perf_event_paranoid")
                .and_then(|text| text.trim().parse().ok()),
            kprobes_wanted,
        };
        let status = self.text("/proc/self/status").unwrap_or_default();
        let missing_capabilities = match Capabilities::from_status(&status) {
            Ok(capabilities) => capabilities.missing(&situation),
            Err(error) => {
                self.unreadable.push(error.to_string());
                Vec::new()
            }
        };
        let uid_map = self.text("/proc/self/uid_map");
        Survey {
            release,
            options,
            preemption: Preemption::of_this_machine(),
            missing_capabilities,
            in_initial_user_namespace: uid_map.as_deref().map(is_initial_user_namespace),
            unreadable: self.unreadable,
        }
    }

    fn path(&self, absolute: &str) -> PathBuf {
        self.root.join(absolute.trim_start_matches('/'))
    }

    fn text(&mut self, absolute: &str) -> Option<String> {
        fs::read_to_string(self.path(absolute))
            .map_err(|error| self.unreadable.push(format!("{absolute}: {error}")))
            .ok()
    }

    fn symbols(&mut self) -> Option<Symbols> {
        const LIST: &str = "/proc/kallsyms";
        let read = File::open(self.path(LIST))
            .map_err(|error| error.to_string())
            .and_then(|file| {
                Symbols::parse(BufReader::new(file), config::wanted_symbols(), [])
                    .map_err(|error| error.to_string())
            });
        read.map_err(|error| self.unreadable.push(format!("{LIST}: {error}")))
            .ok()
    }

    /// The first configuration that can be read, with the file it came from. Most machines have none: no note then.
    fn config(&mut self, release: Option<&str>) -> Option<(String, String)> {
        for file in config::config_paths(release?) {
            let Ok(bytes) = fs::read(self.path(&file)) else {
                continue;
            };
            match config::config_text(&bytes) {
                Ok(text) => return Some((file, text)),
                Err(error) => self.unreadable.push(format!("{file}: {error}")),
            }
        }
        None
    }
}

/// Whether the text of `/proc/self/limits` gives no limit of locked memory, neither soft nor hard.
fn memlock_is_unlimited(limits: &str) -> bool {
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max locked memory"));
    line.is_some_and(|line| {
        let mut values = line.split_ascii_whitespace();
        (values.next(), values.next()) == (Some("unlimited"), Some("unlimited"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(root: &Path, file: &str, text: &str) {
        let path = root.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn state(survey: &Survey, name: &str) -> State {
        survey
            .options
            .iter()
            .find(|option| option.name == name)
            .unwrap()
            .state
    }

    #[test]
    fn what_lies_below_the_root_is_what_is_told() {
        let root = tempfile::tempdir().unwrap();
        for (file, text) in [
            ("proc/sys/kernel/osrelease", "6.1.0-test\n"),
            (
                "proc/kallsyms",
                "ffffffff81000000 T bpf_check\nffffffff81000010 T bpf_map_charge_init\n",
            ),
            ("boot/config-6.1.0-test", "CONFIG_MEM_SOFT_DIRTY=y\n"),
            ("proc/self/smaps", "VmFlags: rd mr mw me\n"),
            (
                "proc/self/limits",
                "Max locked memory         8388608              unlimited            bytes\n",
            ),
            ("proc/sys/kernel/perf_event_paranoid", "3\n"),
            ("proc/self/status", "CapEff:\t000000c000080000\n"),
            ("proc/self/uid_map", "0 1000 1\n"),
        ] {
            put(root.path(), file, text);
        }
        let survey = Reader::new(root.path()).survey(true);
        assert_eq!(survey.release.as_deref(), Some("6.1.0-test"));
        assert_eq!(state(&survey, "CONFIG_BPF_SYSCALL"), State::Present);
        assert_eq!(state(&survey, "CONFIG_MEM_SOFT_DIRTY"), State::Present);
        assert_eq!(state(&survey, "CONFIG_DEBUG_INFO_BTF"), State::Absent);
        assert!(
            survey
                .lacking()
                .any(|option| option.name == "CONFIG_DEBUG_INFO_BTF")
        );
        let missing: Vec<_> = survey
            .missing_capabilities
            .iter()
            .map(|missing| missing.capability.to_string())
            .collect();
        assert_eq!(
            missing,
            ["CAP_DAC_READ_SEARCH", "CAP_SYS_RESOURCE", "CAP_SYS_ADMIN"]
        );
        assert_eq!(survey.in_initial_user_namespace, Some(false));
        assert_eq!(survey.unreadable, Vec::<String>::new());
    }

    #[test]
    fn what_cannot_be_read_is_noted_and_stops_nothing() {
        let root = tempfile::tempdir().unwrap();
        put(root.path(), "proc/sys/kernel/osrelease", "6.1.0-test\n");
        put(root.path(), "proc/kallsyms", "nonsense\n");
        put(root.path(), "boot/config-6.1.0-test", "nonsense\n");
        let survey = Reader::new(root.path()).survey(false);
        assert_eq!(state(&survey, "CONFIG_KPROBES"), State::Unknown);
        assert_eq!(survey.in_initial_user_namespace, None);
        for noted in [
            "/proc/kallsyms: line 1",
            "/boot/config-6.1.0-test: not a kernel",
            "/proc/self/status",
        ] {
            assert!(
                survey.unreadable.iter().any(|line| line.starts_with(noted)),
                "{noted}: {survey:?}"
            );
        }
    }

    #[test]
    fn this_machine_can_be_surveyed() {
        let survey = Survey::of_this_machine(true);
        assert!(
            survey
                .release
                .is_some_and(|release| release.starts_with(|first: char| first.is_ascii_digit()))
        );
        assert!(survey.in_initial_user_namespace.is_some());
    }

    #[test]
    fn locked_memory_is_unlimited_only_if_both_limits_are() {
        let line = |soft, hard| {
            format!("Limit   Soft   Hard   Units\nMax locked memory   {soft}   {hard}   bytes\n")
        };
        assert!(memlock_is_unlimited(&line("unlimited", "unlimited")));
        assert!(!memlock_is_unlimited(&line("8388608", "unlimited")));
        assert!(!memlock_is_unlimited(""));
    }
}
