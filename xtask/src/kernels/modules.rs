//! Kernel modules taken out of an unpacked package: found by name, decompressed, with what they depend on.
//!
//! Debian's packages have no modules.dep (depmod makes it at installation), so the dependencies come from each module's own
//! `.modinfo` section.

use crate::provision::{HostProgram, ensure_programs, run_quietly};
use anyhow::{Context as _, Result, bail};
use object::{Object as _, ObjectSection as _};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A module ready to be inserted.
#[derive(Clone, Debug)]
pub struct Module {
    /// Name as the kernel shows it, with underscores.
    pub name: String,
    /// The uncompressed ELF object.
    pub object: Vec<u8>,
}

/// The modules that a folder `…/lib/modules/RELEASE` holds.
#[derive(Debug)]
pub struct ModuleTree {
    files: BTreeMap<String, PathBuf>,
}

impl ModuleTree {
    /// Indexes the folder.
    pub fn open(folder: &Path) -> Result<Self> {
        let mut files = BTreeMap::new();
        let mut pending = vec![folder.join("kernel")];
        while let Some(folder) = pending.pop() {
            for entry in fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))? {
                let path = entry?.path();
                if path.is_dir() {
                    pending.push(path);
                } else if let Some(name) = path.file_name().and_then(|name| module_name(name.to_str()?)) {
                    files.insert(name, path);
                }
            }
        }
        Ok(Self { files })
    }

    /// Whether the module is there. One that is not may be built into the kernel.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.files.contains_key(&canonical(name))
    }

    /// The named modules and all they depend on, in the order in which to insert them.
    pub fn with_dependencies(&self, names: &[&str]) -> Result<Vec<Module>> {
        let mut loaded: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        let order = insertion_order(names, |name| {
            let path = self
                .files
                .get(name)
                .with_context(|| format!("this kernel's package has no module {name}"))?;
            let object = read_module(path)?;
            let dependencies = dependencies(&object)
                .with_context(|| format!("cannot read the dependencies of {}", path.display()))?;
            loaded.insert(name.to_owned(), object);
            Ok(dependencies)
        })?;
        Ok(order
            .into_iter()
            .filter_map(|name| loaded.remove(&name).map(|object| Module { name, object }))
            .collect())
    }
}

/// `virtio-net.ko.xz` is the file of `virtio_net`.
fn module_name(file: &str) -> Option<String> {
    let stem = [".ko", ".ko.xz", ".ko.zst", ".ko.gz"]
        .iter()
        .find_map(|extension| file.strip_suffix(extension))?;
    Some(canonical(stem))
}

fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

/// Depth first: each module after all that it depends on.
fn insertion_order(
    names: &[&str],
    mut dependencies_of: impl FnMut(&str) -> Result<Vec<String>>,
) -> Result<Vec<String>> {
    fn visit(
        name: &str,
        dependencies_of: &mut dyn FnMut(&str) -> Result<Vec<String>>,
        path: &mut Vec<String>,
        seen: &mut BTreeSet<String>,
        order: &mut Vec<String>,
    ) -> Result<()> {
        if path.iter().any(|open| open == name) {
            bail!(
                "modules depend on each other in a ring: {} → {name}",
                path.join(" → ")
            );
        }
        if !seen.insert(name.to_owned()) {
            return Ok(());
        }
        path.push(name.to_owned());
        for dependency in dependencies_of(name)? {
            visit(&dependency, dependencies_of, path, seen, order)?;
        }
        path.pop();
        order.push(name.to_owned());
        Ok(())
    }
    let mut order = Vec::new();
    let mut seen = BTreeSet::new();
    for name in names {
        visit(
            &canonical(name),
            &mut dependencies_of,
            &mut Vec::new(),
            &mut seen,
            &mut order,
        )?;
    }
    Ok(order)
}

fn read_module(path: &Path) -> Result<Vec<u8>> {
    let (name, package) = match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => ("xz", "xz-utils"),
        Some("zst") => ("zstd", "zstd"),
        Some("gz") => ("gzip", "gzip"),
        _ => return fs::read(path).with_context(|| format!("cannot read {}", path.display())),
    };
    ensure_programs(&[HostProgram {
        name,
        package,
        why: "decompresses kernel modules",
    }])?;
    run_quietly(Command::new(name).arg("-dc").arg(path))
}

/// The names in the `depends=` entry of a module's `.modinfo` section.
fn dependencies(object: &[u8]) -> Result<Vec<String>> {
    let file = object::File::parse(object)?;
    let section = file
        .section_by_name(".modinfo")
        .context("it has no .modinfo section")?;
    Ok(depends_entry(section.data()?))
}

fn depends_entry(modinfo: &[u8]) -> Vec<String> {
    modinfo
        .split(|byte| *byte == 0)
        .filter_map(|entry| std::str::from_utf8(entry).ok()?.strip_prefix("depends="))
        .flat_map(|names| names.split(','))
        .filter(|name| !name.is_empty())
        .map(canonical)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_come_before_what_needs_them_and_once() {
        let order = insertion_order(&["virtio-pci", "virtio_net"], |name| {
            let dependencies: &[&str] = match name {
                "virtio_net" => &["net_failover", "virtio", "virtio_ring"],
                "net_failover" => &["failover"],
                "virtio_pci" => &["virtio_ring", "virtio"],
                "virtio_ring" => &["virtio"],
                "virtio" | "failover" => &[],
                other => bail!("no module {other}"),
            };
            Ok(dependencies.iter().map(ToString::to_string).collect())
        });
        assert_eq!(
            order.unwrap(),
            [
                "virtio",
                "virtio_ring",
                "virtio_pci",
                "failover",
                "net_failover",
                "virtio_net"
            ]
        );
    }

    #[test]
    fn a_ring_and_a_missing_module_are_errors() {
        let ring = insertion_order(&["a"], |name| {
            Ok(vec![if name == "a" { "b" } else { "a" }.to_owned()])
        });
        assert_eq!(
            ring.unwrap_err().to_string(),
            "modules depend on each other in a ring: a → b → a"
        );
        assert!(insertion_order(&["gone"], |name| bail!("no module {name}")).is_err());
    }

    #[test]
    fn file_names_and_modinfo_are_read() {
        assert_eq!(module_name("virtio-net.ko.xz").as_deref(), Some("virtio_net"));
        assert_eq!(module_name("zram.ko").as_deref(), Some("zram"));
        assert_eq!(module_name("modules.order"), None);
        assert_eq!(
            depends_entry(b"license=GPL\0depends=net_failover,virtio-ring\0vermagic=6.1\0"),
            ["net_failover", "virtio_ring"]
        );
        assert!(depends_entry(b"license=GPL\0depends=\0").is_empty());
    }
}
