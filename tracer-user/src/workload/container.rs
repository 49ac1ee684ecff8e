//! Containers and pods.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use super::{Pod, components};

/// Digits of a container id: a SHA-256 in size, though it is random.
const ID_DIGITS: usize = 64;
/// The least that identifies one; the tools show 12 or 13.
const LEAST_DIGITS: usize = 4;

/// What runs a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Runtime {
    /// Docker, and what speaks its formats.
    Docker,
    /// containerd, for Kubernetes or by nerdctl.
    Containerd,
    /// CRI-O.
    Crio,
    /// Podman.
    Podman,
    /// A container of Kubernetes whose path does not say which; with the cgroupfs driver none does but CRI-O.
    Kubernetes,
}

impl Runtime {
    /// Every runtime.
    pub const ALL: [Self; 5] = [
        Self::Docker,
        Self::Containerd,
        Self::Crio,
        Self::Podman,
        Self::Kubernetes,
    ];

    /// The name in JSON and in names of workloads.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Containerd => "containerd",
            Self::Crio => "crio",
            Self::Podman => "podman",
            Self::Kubernetes => "kubernetes",
        }
    }

    /// By what stands before the id. `crio-conmon-` and `libpod-conmon-` are the monitors beside the containers.
    fn by_prefix(prefix: &str) -> Option<Self> {
        Some(match prefix {
            "docker" => Self::Docker,
            "cri-containerd" | "containerd" | "nerdctl" => Self::Containerd,
            "crio" => Self::Crio,
            "libpod" | "libpod-payload" => Self::Podman,
            _ => return None,
        })
    }

    /// By the folder in which a bare id lies.
    fn by_parent(parent: &str) -> Option<Self> {
        Some(match parent {
            "docker" | "moby" => Self::Docker,
            // Names of containerd's namespaces: nerdctl's, and that of Kubernetes.
            "default" | "k8s.io" => Self::Containerd,
            "libpod_parent" => Self::Podman,
            _ if pod_uid(parent).is_some() => Self::Kubernetes,
            _ => return None,
        })
    }
}

/// A container.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Container {
    /// What runs it.
    pub runtime: Runtime,
    /// Its whole id, 64 hexadecimal digits.
    pub id: String,
}

/// The container whose own cgroup has this name in this folder.
fn at(parent: Option<&str>, name: &str) -> Option<Container> {
    // containerd, told to use the cgroupfs driver while the kubelet uses systemd: SLICE:PREFIX:ID as one name.
    if let Some((rest, id)) = name.rsplit_once(':') {
        let runtime = Runtime::by_prefix(rest.rsplit_once(':')?.1)?;
        return is_id(id).then(|| Container {
            runtime,
            id: id.to_owned(),
        });
    }
    let name = name.strip_suffix(".scope").unwrap_or(name);
    let (runtime, id) = match name.rsplit_once('-') {
        Some((prefix, id)) => (Runtime::by_prefix(prefix), id),
        None => (parent.and_then(Runtime::by_parent), name),
    };
    let runtime = runtime?;
    is_id(id).then(|| Container {
        runtime,
        id: id.to_owned(),
    })
}

fn is_id(text: &str) -> bool {
    text.len() == ID_DIGITS && text.bytes().all(is_digit)
}

fn is_digit(byte: u8) -> bool {
    byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte)
}

/// The container that the last of these names of a path lies in.
pub(super) fn innermost(components: &[&str]) -> Option<Container> {
    (0..components.len()).rev().find_map(|place| {
        at(
            place.checked_sub(1).map(|above| components[above]),
            components[place],
        )
    })
}

/// The pod that the last of these names of a path lies in.
pub(super) fn pod(components: &[&str]) -> Option<Pod> {
    (0..components.len()).rev().find_map(|place| {
        let name = components[place];
        let uid = pod_uid(name)?;
        // cgroupfs: the class is the folder above; systemd: it is part of the name.
        let above = place.checked_sub(1).map_or("", |above| components[above]);
        let class = |class: &str| above == class || name.contains(&format!("-{class}-pod"));
        let quality_of_service = ["burstable", "besteffort"]
            .into_iter()
            .find(|name| class(name))
            .unwrap_or("guaranteed");
        Some(Pod {
            uid,
            quality_of_service,
        })
    })
}

/// The uid in `podUID`, or in `kubepods-burstable-podUID.slice`, where systemd's `-` are written `_`.
fn pod_uid(name: &str) -> Option<String> {
    let uid = match name.split(':').next()?.strip_suffix(".slice") {
        Some(slice) => {
            let (class, uid) = slice.rsplit_once("-pod")?;
            if !class.contains("kubepods") {
                return None;
            }
            uid.replace('_', "-")
        }
        None => name.strip_prefix("pod")?.to_owned(),
    };
    let hash = uid.len() == 32 && uid.bytes().all(is_digit);
    let dashed = uid.len() == 36
        && uid.bytes().enumerate().all(|(place, byte)| {
            if matches!(place, 8 | 13 | 18 | 23) {
                byte == b'-'
            } else {
                is_digit(byte)
            }
        });
    (hash || dashed).then_some(uid)
}

/// The beginning of a container id, as `docker ps` and `crictl ps` show it, or as Kubernetes writes the whole:
/// `containerd://ID`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdPrefix(String);

impl fmt::Display for IdPrefix {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl FromStr for IdPrefix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let id = text.split_once("://").map_or(text, |(_, id)| id);
        if (LEAST_DIGITS..=ID_DIGITS).contains(&id.len()) && id.bytes().all(is_digit) {
            Ok(Self(id.to_owned()))
        } else {
            Err(format!(
                "give {LEAST_DIGITS} to {ID_DIGITS} of the digits 0-9a-f that `docker ps`, `podman ps` or `crictl ps` shows, no name"
            ))
        }
    }
}

/// What came of a search.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Search {
    /// The path of the container's own cgroup.
    Found(String),
    /// There is none.
    Nothing,
    /// There are several: their ids.
    Several(Vec<String>),
}

/// Looks for the container with this id among the paths of all cgroups. What lies below its own cgroup is part of it.
pub fn find<'p>(paths: impl IntoIterator<Item = &'p str>, wanted: &IdPrefix) -> Search {
    let mut found: BTreeMap<String, &str> = BTreeMap::new();
    for path in paths {
        let names: Vec<_> = components(path).collect();
        let Some((name, above)) = names.split_last() else {
            continue;
        };
        if let Some(container) = at(above.last().copied(), name)
            && container.id.starts_with(&wanted.0)
        {
            let place = found.entry(container.id).or_insert(path);
            if path.len() < place.len() {
                *place = path;
            }
        }
    }
    match found.len() {
        0 => Search::Nothing,
        1 => found
            .into_values()
            .next()
            .map_or(Search::Nothing, |path| Search::Found(path.to_owned())),
        _ => Search::Several(found.into_keys().collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(beginning: &str) -> String {
        format!("{beginning:0<64}")
    }

    #[test]
    fn a_container_is_found_by_the_beginning_of_its_id() {
        let paths = [
            "/".to_owned(),
            "/system.slice".to_owned(),
            format!("/system.slice/docker-{}.scope", id("abcd1")),
            format!("/system.slice/docker-{}.scope/init.scope", id("abcd1")),
            format!("/machine.slice/libpod-{}.scope/container", id("abcd2")),
            format!("/machine.slice/libpod-{}.scope", id("abcd2")),
            format!("/machine.slice/libpod-conmon-{}.scope", id("abcd3")),
        ];
        let search = |text: &str| {
            find(
                paths.iter().map(String::as_str),
                &text.parse::<IdPrefix>().unwrap(),
            )
        };
        assert_eq!(search("abcd1"), Search::Found(paths[2].clone()));
        assert_eq!(
            search(&format!("podman://{}", id("abcd2"))),
            Search::Found(paths[5].clone())
        );
        assert_eq!(search("abcd"), Search::Several(vec![id("abcd1"), id("abcd2")]));
        assert_eq!(search("abcd3"), Search::Nothing);
    }

    #[test]
    fn a_name_is_no_id() {
        for wrong in ["", "abc", "web", "ABCD", &"a".repeat(65), "abcd/.."] {
            let why = wrong.parse::<IdPrefix>().unwrap_err();
            assert!(why.contains("`docker ps`"), "{why}");
        }
    }
}
