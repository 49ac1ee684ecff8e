//! A kernel's headers, unpacked in the cache folder, and modules built against them.

use crate::kernels::fetch::Kernel;
use crate::provision::apt::PrivateApt;
use crate::provision::{
    CacheLock, HostProgram, cache_dir, ensure_programs, place_atomically, run_quietly, say,
};
use anyhow::{Context as _, Result};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What building a module takes on this machine.
const PROGRAMS: [HostProgram; 2] = [
    HostProgram {
        name: "gcc",
        package: "gcc",
        why: "builds the test module",
    },
    HostProgram {
        name: "make",
        package: "make",
        why: "builds the test module",
    },
];

/// Programs of linux-kbuild that a module build runs, and what each of them really is: two choose by architecture.
const TOOLS: [(&str, &str); 3] = [
    ("scripts/basic/fixdep", "scripts/basic/fixdep"),
    ("scripts/mod/modpost", "scripts/mod/modpost.real-lsb-64"),
    ("tools/objtool/objtool", "tools/objtool/objtool.real-x86"),
];

/// The headers of one kernel.
#[derive(Clone, Debug)]
pub struct Headers {
    folder: PathBuf,
}

impl Headers {
    /// Takes them from the cache, or has Debian's packages unpacked there.
    pub fn provide(kernel: &Kernel) -> Result<Self> {
        ensure_programs(&PROGRAMS)?;
        let root = cache_dir()?.join("headers").join(&kernel.release);
        let name = format!("linux-headers-{}", kernel.release);
        let folder = root.join("usr/src").join(&name);
        let _lock = CacheLock::acquire("headers")?;
        if !folder.is_dir() {
            say(&format!("unpacking {name} (the test module is built against it)"));
            let apt = PrivateApt::open()?;
            if !apt.has_lists() {
                apt.update()?;
            }
            place_atomically(&root, |into| {
                unpack(&apt, &name, &kernel.source.version, into, &root)
            })?;
        }
        Ok(Self { folder })
    }

    /// Builds the module `NAME.c` of the folder `source` in the empty folder `build`, and returns the path of `NAME.ko`.
    pub fn build_module(&self, source: &Path, name: &str, build: &Path) -> Result<PathBuf> {
        for file in [format!("{name}.c"), "Makefile".to_owned()] {
            fs::copy(source.join(&file), build.join(&file))
                .with_context(|| format!("cannot copy {file} to {}", build.display()))?;
        }
        // The configuration may ask for an option of the compiler that built the kernel, which an older one has by an
        // older name.
        let compiler = build.join("cc");
        let script = "#!/bin/sh\nfor a do shift; case $a in \
                      -fmin-function-alignment=*) a=-falign-functions=${a#*=};; esac; set -- \"$@\" \"$a\"; done\n\
                      exec gcc \"$@\"\n";
        write_script(&compiler, script)?;
        let mut make = Command::new("make");
        make.arg("-C")
            .arg(&self.folder)
            .arg(format!("M={}", build.display()))
            .arg(format!("CC={}", compiler.display()))
            // Type information for the module would need the kernel image and pahole.
            .arg("CONFIG_DEBUG_INFO_BTF_MODULES=")
            .arg("modules");
        run_quietly(&mut make).with_context(|| format!("the module {name} does not build"))?;
        Ok(build.join(format!("{name}.ko")))
    }
}

/// Unpacks the three packages into `into`, which will be renamed to `root`.
fn unpack(apt: &PrivateApt, name: &str, version: &str, into: &Path, root: &Path) -> Result<()> {
    apt.unpack(name, version, into)?;
    let folder = into.join("usr/src").join(name);
    let makefile = folder.join("Makefile");
    let text = fs::read_to_string(&makefile)?;
    let common =
        common_package(&text).with_context(|| format!("{} includes no Makefile", makefile.display()))?;
    let scripts = fs::read_link(folder.join("scripts"))?;
    let kbuild = scripts
        .parent()
        .and_then(Path::file_name)
        .and_then(|name| name.to_str())
        .context("the headers name no linux-kbuild package")?;
    apt.unpack(common, version, into)?;
    apt.unpack(kbuild, version, into)?;
    let sources = root.join("usr/src");
    fs::write(&makefile, text.replace("/usr/src", &sources.to_string_lossy()))?;
    make_tools_run(apt, &into.join("usr/lib").join(kbuild), into, root)
}

/// `linux-headers-…-common`, whose Makefile the headers' own one includes.
fn common_package(makefile: &str) -> Option<&str> {
    makefile
        .lines()
        .find_map(|line| line.strip_prefix("include /usr/src/")?.strip_suffix("/Makefile"))
}

/// Packages of newer suites have tools that want a newer libc than this machine may have. Those are run by that libc's
/// own loader, unpacked beside them.
fn make_tools_run(apt: &PrivateApt, kbuild: &Path, into: &Path, root: &Path) -> Result<()> {
    let there = |program: &&(&str, &str)| kbuild.join(program.1).is_file();
    let broken: Vec<_> = TOOLS
        .iter()
        .filter(there)
        .filter(|(_, real)| !runs(&kbuild.join(real)))
        .collect();
    if broken.is_empty() {
        return Ok(());
    }
    let libc = into.join("libc");
    fs::create_dir(&libc)?;
    for package in ["libc6", "libelf1t64"] {
        apt.unpack_newest(package, &libc)?;
    }
    let libraries = root.join("libc/usr/lib/x86_64-linux-gnu");
    for (tool, real) in broken {
        let moved = format!("{real}.elf");
        fs::rename(kbuild.join(real), kbuild.join(&moved))?;
        let installed = root.join(kbuild.strip_prefix(into)?).join(&moved);
        let loader = libraries.join("ld-linux-x86-64.so.2");
        let script = format!(
            "#!/bin/sh\nexec {} --library-path {}:/usr/lib/x86_64-linux-gnu {} \"$@\"\n",
            loader.display(),
            libraries.display(),
            installed.display()
        );
        write_script(&kbuild.join(tool), &script)?;
    }
    Ok(())
}

/// Whether the loader finds all that a program needs; what the program says of having no arguments does not matter.
fn runs(program: &Path) -> bool {
    Command::new(program).output().is_ok_and(|output| {
        let errors = String::from_utf8_lossy(&output.stderr);
        !errors.contains("GLIBC_") && !errors.contains("error while loading shared libraries")
    })
}

fn write_script(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_common_headers_are_named_by_the_makefile() {
        let makefile = "KBUILD_OUTPUT=/usr/src/linux-headers-7.3-amd64\n\
                        include /usr/src/linux-headers-7.3-common/Makefile\n";
        assert_eq!(common_package(makefile), Some("linux-headers-7.3-common"));
        assert_eq!(common_package("all:\n"), None);
    }

    #[test]
    fn a_program_that_is_not_there_does_not_run() {
        assert!(!runs(Path::new("/nonexistent/tool")));
        assert!(runs(Path::new("/bin/false")));
    }
}
