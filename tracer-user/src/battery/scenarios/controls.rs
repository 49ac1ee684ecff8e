//! Writes that every kernel with soft-dirty is expected to report.

use std::io::Write as _;
use std::os::fd::AsFd as _;

use super::prelude::*;

pub(super) const ALL: &[Scenario] = &[
    Scenario::control(
        "control-private-anon",
        private_anon,
        "Writes populated private anonymous pages.",
    ),
    Scenario::control(
        "control-private-untouched",
        untouched,
        "Writes private anonymous pages never touched before.",
    ),
    Scenario::control(
        "control-zero-page",
        zero_page,
        "Writes private anonymous pages that were only read before.",
    ),
    Scenario::control(
        "control-shared-anon",
        shared_anon,
        "Writes populated shared anonymous pages.",
    ),
    Scenario::control(
        "control-private-file",
        private_file,
        "Writes pages of a private file mapping that were read.",
    ),
    Scenario::new(
        "seed-2014",
        Class::A,
        "shared-read-fault",
        seed,
        "Maps a shared anonymous page, has another process clear, reads the page, then writes it (the snippet of 2014).",
    ),
    Scenario::new(
        "shared-read-then-write",
        Class::A,
        "shared-read-fault",
        shared_read,
        "Reads many untouched shared anonymous pages after the clear, then writes every second one.",
    ),
    Scenario::control("read-syscall", read_syscall, "Has read(2) fill private pages."),
    Scenario::control(
        "vmsplice",
        vmsplice,
        "Has vmsplice(2) copy a pipe's content into private pages.",
    ),
    Scenario::control(
        "proc-mem-write",
        proc_mem,
        "Writes private pages through /proc/self/mem.",
    ),
    Scenario::control(
        "proc-mem-force",
        proc_mem_force,
        "Writes read-only private pages through /proc/self/mem (FOLL_FORCE).",
    ),
    Scenario::control(
        "process-vm-writev",
        process_vm_writev,
        "Has another process write by process_vm_writev(2).",
    ),
    Scenario::control(
        "ptrace-poke",
        ptrace_poke,
        "Has another process write by PTRACE_POKEDATA.",
    ),
    Scenario::control(
        "stack-growth",
        stack_growth,
        "Writes below a MAP_GROWSDOWN mapping, which grows.",
    ),
    Scenario::control(
        "fork-inherits",
        fork_inherits,
        "Writes, forks, and looks at the bits of the child's copy.",
    ),
    Scenario::control(
        "fork-then-write",
        fork_then_write,
        "Forks, then writes pages that copy-on-write copies.",
    ),
    Scenario::control(
        "madv-free",
        madv_free,
        "Writes, then calls MADV_FREE; the content stays as there is no pressure.",
    ),
];

fn private_anon(_: &Bench) -> Found {
    let before = populated(private(PAGES)?);
    let epoch = Epoch::open()?;
    epoch.armed(before.area())?;
    before.area().write_each(NEW);
    epoch.judge(&before, PAGES)
}

fn untouched(_: &Bench) -> Found {
    let area = private(PAGES)?;
    let epoch = Epoch::open()?;
    epoch.armed(area)?;
    area.write_each(NEW);
    epoch.judge(&Before::zero(area), PAGES)
}

fn zero_page(_: &Bench) -> Found {
    let area = private(PAGES)?;
    area.read_each();
    let epoch = Epoch::open()?;
    epoch.armed(area)?;
    area.write_each(NEW);
    epoch.judge(&Before::zero(area), PAGES)
}

fn shared_anon(_: &Bench) -> Found {
    let before = populated(shared(PAGES)?);
    let epoch = Epoch::open()?;
    epoch.armed(before.area())?;
    before.area().write_each(NEW);
    epoch.judge(&before, PAGES)
}

fn private_file(_: &Bench) -> Found {
    let (file, _) = shared_file(PAGES)?;
    let area = Area::reserve(PAGES, 0)?
        .place(READ_WRITE, MAP_PRIVATE, Some((file.as_fd(), 0)))
        .works("mmap")?;
    area.read_each();
    let epoch = Epoch::open()?;
    epoch.armed(area)?;
    area.write_each(NEW);
    epoch.judge(&Before::zero(area), PAGES)
}

/// The test of the commit message of 64e455079e1b ("mm: softdirty: enable write notifications on VMAs after
/// `VM_SOFTDIRTY` cleared"): map, `system("echo 4 > /proc/$PPID/clear_refs")`, `assert(*m == '\0')`, `*m = 'x'`.
fn seed(_: &Bench) -> Found {
    let area = shared(1)?;
    let epoch = Epoch::open_by(clear_from_child)?;
    if area.read(0) != 0 {
        return Err(Stop::Failed("fresh shared memory is not zero".into()));
    }
    epoch.armed(area)?;
    area.write(0, b'x');
    epoch.judge(&Before::zero(area), 1)
}

fn shared_read(_: &Bench) -> Found {
    let area = shared(PAGES)?;
    let epoch = Epoch::open()?;
    area.read_each();
    epoch.armed(area)?;
    (0..PAGES).step_by(2).for_each(|page| area.write(page, NEW));
    epoch.judge(&Before::zero(area), PAGES / 2)
}

fn source() -> Result<std::fs::File, Stop> {
    let mut file = std::fs::File::from(sys::memfd(PAGES, 0).needs("memfd_create")?);
    file.write_all(&vec![NEW; PAGES * page_size()])
        .works("filling the source")?;
    Ok(file)
}

fn read_syscall(_: &Bench) -> Found {
    let source = source()?;
    let before = populated(private(PAGES)?);
    let epoch = Epoch::open()?;
    epoch.armed(before.area())?;
    for page in 0..PAGES {
        before.area().read_from(page, source.as_fd(), 0).works("pread")?;
    }
    epoch.judge(&before, PAGES)
}

fn vmsplice(_: &Bench) -> Found {
    let (read, write) = sys::pipe()?;
    let mut write = std::fs::File::from(write);
    let before = populated(private(PAGES)?);
    let epoch = Epoch::open()?;
    epoch.armed(before.area())?;
    for page in 0..PAGES {
        write
            .write_all(&vec![NEW; page_size()])
            .works("filling the pipe")?;
        before
            .area()
            .vmsplice_from(page, read.as_fd())
            .works("vmsplice")?;
    }
    epoch.judge(&before, PAGES)
}

fn write_by_proc_mem(area: Area) -> std::io::Result<()> {
    use std::os::unix::fs::FileExt as _;
    let memory = std::fs::OpenOptions::new().write(true).open("/proc/self/mem")?;
    for page in 0..area.pages() {
        memory.write_all_at(&[NEW], area.part(page, 1).start() as u64)?;
    }
    Ok(())
}

fn proc_mem(_: &Bench) -> Found {
    let before = populated(private(PAGES)?);
    let epoch = Epoch::open()?;
    epoch.armed(before.area())?;
    write_by_proc_mem(before.area()).works("writing /proc/self/mem")?;
    epoch.judge(&before, PAGES)
}

fn proc_mem_force(_: &Bench) -> Found {
    let before = populated(private(PAGES)?);
    before.area().protect(PROT_READ).works("mprotect")?;
    let epoch = Epoch::open()?;
    epoch.armed(before.area())?;
    match write_by_proc_mem(before.area()) {
        // proc_mem.force_override=never or ptrace, CONFIG_PROC_MEM_NO_FORCE: 6.12 and later.
        Err(error) if error.raw_os_error() == Some(libc::EIO) => {
            return Err(Stop::NotSupported(
                "/proc/self/mem does not write read-only memory here".into(),
            ));
        }
        other => other.works("writing /proc/self/mem")?,
    }
    epoch.judge(&before, PAGES)
}

/// Runs `write` in another process, which gets this one's id.
fn written_by_other(write: impl FnOnce(u32, Area) -> std::io::Result<()>, what: &str) -> Found {
    let before = populated(private(PAGES)?);
    sys::allow_tracers();
    let target = std::process::id();
    let epoch = Epoch::open()?;
    epoch.armed(before.area())?;
    sys::in_child(|| write(target, before.area())).works(what)?;
    epoch.judge(&before, PAGES)
}

fn process_vm_writev(_: &Bench) -> Found {
    written_by_other(
        |target, area| sys::write_in(target, area, NEW),
        "process_vm_writev by another process",
    )
}

fn ptrace_poke(_: &Bench) -> Found {
    written_by_other(
        |target, area| sys::poke_in(target, area, NEW),
        "PTRACE_POKEDATA by another process",
    )
}

fn stack_growth(_: &Bench) -> Found {
    let room = Area::reserve(2 * PAGES, 0)?;
    let top = room.part(2 * PAGES - 1, 1);
    let below = room.part(PAGES, PAGES - 1);
    room.unmap()?;
    top.place(READ_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | sys::MAP_GROWSDOWN, None)
        .works("mmap")?;
    top.write(0, OLD);
    let epoch = Epoch::open()?;
    // From the top down, as a stack grows.
    (0..below.pages()).rev().for_each(|page| below.write(page, NEW));
    epoch.judge(&Before::zero(below), below.pages())
}

fn fork_inherits(_: &Bench) -> Found {
    let before = populated(private(PAGES)?);
    let epoch = Epoch::open()?;
    epoch.armed(before.area())?;
    before.area().write_each(NEW);
    let child = sys::fork(|| {
        sys::pause();
        Ok(())
    })?;
    let found = Tracked::other(child.pid())
        .works("opening the child's /proc")
        .and_then(|tracked| epoch.judge_other(&tracked, &before, PAGES));
    child.end()?;
    found
}

fn fork_then_write(_: &Bench) -> Found {
    let before = populated(private(PAGES)?);
    let epoch = Epoch::open()?;
    epoch.armed(before.area())?;
    let child = sys::fork(|| {
        sys::pause();
        Ok(())
    })?;
    before.area().write_each(NEW);
    let found = epoch.judge(&before, PAGES);
    child.end()?;
    found
}

fn madv_free(_: &Bench) -> Found {
    let before = populated(private(PAGES)?);
    let epoch = Epoch::open()?;
    epoch.armed(before.area())?;
    before.area().write_each(NEW);
    before.area().advise(libc::MADV_FREE).needs("MADV_FREE")?;
    epoch.judge(&before, PAGES)
}
