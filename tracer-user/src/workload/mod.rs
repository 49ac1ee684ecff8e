//! What a cgroup path says about whose process it is: the container, the Kubernetes pod, the systemd unit.
//!
//! Pure: the path comes from `/proc/PID/cgroup` or from a folder below `/sys/fs/cgroup`. The formats are those of Docker,
//! containerd, CRI-O, Podman and systemd, with the systemd and the cgroupfs driver, on both versions of cgroups; the
//! corpus `tests/data/cgroup-paths.txt` names the source of each.

mod container;
mod unit;

use std::fmt;

use serde::Serialize;

pub use container::{Container, IdPrefix, Runtime, Search, find};

/// Digits of a container id that are shown: as many as `docker ps` does.
const SHOWN_DIGITS: usize = 12;

/// A pod of Kubernetes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Pod {
    /// Its uid; of a static pod, the hash of its manifest.
    pub uid: String,
    /// `guaranteed`, `burstable` or `besteffort`.
    pub quality_of_service: &'static str,
}

/// Whose process it is, as far as its cgroup tells.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Workload {
    /// The innermost container.
    pub container: Option<Container>,
    /// The innermost pod.
    pub pod: Option<Pod>,
    /// The systemd unit that the process belongs to: a service or a scope; of a user's own systemd, the unit there.
    pub unit: Option<String>,
}

/// What kind of name [`Workload::name`] gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A container, by the beginning of its id.
    Container,
    /// A systemd unit.
    Unit,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 2] = [Self::Container, Self::Unit];

    /// The label value in metrics.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Container => "container",
            Self::Unit => "unit",
        }
    }
}

/// A short name for a workload.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Name {
    /// What it is the name of.
    pub kind: Kind,
    /// The name.
    pub name: String,
}

impl fmt::Display for Name {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.name)
    }
}

impl Workload {
    /// What this path says. Nothing, for the root and for cgroups that somebody made by hand.
    #[must_use]
    pub fn of(path: &str) -> Self {
        let components: Vec<&str> = components(path).collect();
        let container = container::innermost(&components);
        Self {
            pod: container::pod(&components),
            unit: unit::of(&components),
            container,
        }
    }

    /// The name to show: the container's if there is one, else the unit's.
    #[must_use]
    pub fn name(&self) -> Option<Name> {
        if let Some(container) = &self.container {
            let digits = container.id.get(..SHOWN_DIGITS).unwrap_or(&container.id);
            return Some(Name {
                kind: Kind::Container,
                name: format!("{}-{digits}", container.runtime.label()),
            });
        }
        self.unit.clone().map(|name| Name {
            kind: Kind::Unit,
            name,
        })
    }
}

/// The names in a path. The kernel writes `/..` for each level above the root of the reader's cgroup namespace, and
/// ` (deleted)` behind a cgroup that is gone (`cgroup_namespaces(7)`, `proc_cgroup_show`).
fn components(path: &str) -> impl Iterator<Item = &str> {
    path.strip_suffix(" (deleted)")
        .unwrap_or(path)
        .split('/')
        .filter(|component| !component.is_empty() && *component != "..")
}

#[cfg(test)]
mod tests {
    use super::*;

    const CORPUS: &str = include_str!("../../tests/data/cgroup-paths.txt");

    /// One line of the corpus: the path, and what it says, `-` for nothing.
    fn cases() -> impl Iterator<Item = [&'static str; 5]> {
        CORPUS
            .lines()
            .filter(|line| !line.trim().is_empty() && !line.starts_with('#'))
            .map(|line| {
                let fields: Vec<_> = line.split('|').map(str::trim).collect();
                fields
                    .try_into()
                    .unwrap_or_else(|_| panic!("five fields with | between them: {line}"))
            })
    }

    fn shown(value: Option<&str>) -> &str {
        value.unwrap_or("-")
    }

    #[test]
    fn every_path_of_the_corpus_is_understood() {
        let mut met = 0;
        for [path, runtime, id, pod, unit] in cases() {
            // The folder below the mount point says the same as the path in /proc/PID/cgroup.
            let found = Workload::of(path);
            let container = found.container.as_ref();
            assert_eq!(
                shown(container.map(|found| found.runtime.label())),
                runtime,
                "{path}"
            );
            assert_eq!(shown(container.map(|found| found.id.as_str())), id, "{path}");
            let of_pod = found
                .pod
                .as_ref()
                .map(|pod| format!("{} {}", pod.quality_of_service, pod.uid));
            assert_eq!(shown(of_pod.as_deref()), pod, "{path}");
            assert_eq!(shown(found.unit.as_deref()), unit, "{path}");
            met += 1;
        }
        assert!(met >= 50, "{met}");
    }

    #[test]
    fn the_corpus_holds_every_runtime_and_says_where_each_format_comes_from() {
        for runtime in Runtime::ALL {
            let label = runtime.label();
            assert!(cases().any(|[_, found, ..]| found == label), "{label}");
        }
        let mut source = false;
        for line in CORPUS.lines() {
            source = match line {
                "" => false,
                _ if line.starts_with('#') => source || line.contains("Source: "),
                _ => {
                    assert!(source, "no source above {line}");
                    source
                }
            };
        }
    }

    #[test]
    fn a_workload_is_called_by_its_container_then_by_its_unit() {
        let named = |path: &str| Workload::of(path).name().map(|name| name.to_string());
        let id = "3f4e5d6c7b8a".to_owned() + &"0".repeat(52);
        assert_eq!(
            named(&format!("/system.slice/docker-{id}.scope")).as_deref(),
            Some("docker-3f4e5d6c7b8a")
        );
        assert_eq!(
            named("/system.slice/nginx.service").as_deref(),
            Some("nginx.service")
        );
        assert_eq!(named("/"), None);
    }

    /// Whatever a path is made of, it does not break the parser.
    #[test]
    fn odd_paths_say_nothing() {
        for path in [
            "",
            "//",
            "/../..",
            "/.scope",
            "/docker-.scope",
            "/-",
            "/:::",
            "/pod",
            "/ä-pod.slice",
        ] {
            assert_eq!(Workload::of(path).container, None, "{path}");
            assert_eq!(Workload::of(path).pod, None, "{path}");
        }
    }
}
