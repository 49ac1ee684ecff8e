//! What is mapped now, as /proc tells.

use procfs::process::{MMPermissions, MMapPath, Process};

use super::Mapped;
use crate::detectors::Range;
use crate::processes::nanoseconds_per_tick;

/// The mappings of process `pid`, unless it is gone: a process that did not start at `start_ns` nanoseconds after the boot
/// is another one.
pub(super) fn read(pid: u32, start_ns: u64) -> Option<Vec<Mapped>> {
    let process = Process::new(i32::try_from(pid).ok()?).ok()?;
    let maps = process.maps().ok()?;
    // Asked afterwards: a process that took the pid over in between started later.
    if process.stat().ok()?.starttime != start_ns / nanoseconds_per_tick() {
        return None;
    }
    let mapped = |map: procfs::process::MemoryMap| Mapped {
        range: Range {
            start: map.address.0,
            end: map.address.1,
        },
        permissions: permissions(map.perms),
        file: map.inode != 0,
        name: match map.pathname {
            MMapPath::Path(path) => Some(path.to_string_lossy().into_owned()),
            MMapPath::Heap => Some("[heap]".to_owned()),
            MMapPath::Stack => Some("[stack]".to_owned()),
            MMapPath::TStack(thread) => Some(format!("[stack:{thread}]")),
            MMapPath::Vdso => Some("[vdso]".to_owned()),
            MMapPath::Vvar => Some("[vvar]".to_owned()),
            MMapPath::Vsyscall => Some("[vsyscall]".to_owned()),
            MMapPath::Vsys(key) => Some(format!("/SYSV{key:08x}")),
            MMapPath::Rollup => Some("[rollup]".to_owned()),
            MMapPath::Other(name) => Some(format!("[{name}]")),
            MMapPath::Anonymous => None,
        },
    };
    Some(maps.into_iter().map(mapped).collect())
}

fn permissions(bits: MMPermissions) -> String {
    let letter = |bit, letter| if bits.contains(bit) { letter } else { '-' };
    let sharing = if bits.contains(MMPermissions::SHARED) {
        's'
    } else {
        'p'
    };
    [
        letter(MMPermissions::READ, 'r'),
        letter(MMPermissions::WRITE, 'w'),
        letter(MMPermissions::EXECUTE, 'x'),
        sharing,
    ]
    .iter()
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_mappings_are_those_of_proc() {
        let me = Process::myself().unwrap().stat().unwrap();
        let pid = u32::try_from(me.pid).unwrap();
        let mapped = read(pid, me.starttime * nanoseconds_per_tick()).unwrap();
        assert!(
            mapped
                .iter()
                .any(|map| map.name.as_deref() == Some("[stack]") && map.permissions == "rw-p")
        );
        assert!(mapped.iter().any(|map| map.file && map.permissions == "r-xp"));
        // Somebody else under the same pid.
        assert_eq!(read(pid, (me.starttime + 1) * nanoseconds_per_tick()), None);
    }
}
