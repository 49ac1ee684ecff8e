//! Memory that the kernel or a device writes: rings, pinned buffers, uprobes, device memory.

use std::os::fd::AsFd as _;

use io_uring::{IoUring, opcode, types};

use super::prelude::*;

pub(super) const ALL: &[Scenario] = &[
    Scenario::new(
        "aio-ring",
        Class::C,
        "aio-ring",
        aio_ring,
        "Has the kernel write a completion into an AIO ring.",
    ),
    Scenario::new(
        "io-uring-ring",
        Class::A,
        "pfnmap",
        uring_ring,
        "Writes a submission entry of an io_uring, whose pages the kernel allocated.",
    ),
    Scenario::new(
        "perf-ring",
        Class::A,
        "pfnmap",
        perf_ring,
        "Writes the control page of a perf event's ring buffer.",
    ),
    Scenario::new(
        "dev-mem-vga",
        Class::A,
        "pfnmap",
        vga,
        "Writes one byte of VGA text memory through /dev/mem and writes the old one back.",
    )
    .disruptive(),
    Scenario::control(
        "fixed-buffer-private",
        |_| fixed_buffer(private(FIXED)?),
        "Has io_uring read into a pinned private 4 KiB buffer.",
    ),
    Scenario::new(
        "fixed-buffer-thp",
        Class::C,
        "pinned-buffer",
        |_| fixed_buffer(huge_private()?),
        "Has io_uring read into a pinned transparent huge page.",
    ),
    Scenario::new(
        "fixed-buffer-shared",
        Class::C,
        "pinned-buffer",
        |_| fixed_buffer(shared(FIXED)?),
        "Has io_uring read into a pinned shared buffer.",
    ),
    Scenario::new(
        "uprobe-insert",
        Class::B,
        "uprobe",
        uprobe,
        "Sets a uprobe on an executable private mapping of a file of its own, which writes a breakpoint into it.",
    ),
];

/// The size of a pinned buffer in pages.
const FIXED: usize = 16;

fn aio_ring(_: &Bench) -> Found {
    let (context, ring) = sys::aio_context().needs("io_setup")?;
    let file = sys::memfd(1, 0).needs("memfd_create")?;
    let before = Before::read(ring);
    let epoch = Epoch::open()?;
    epoch.armed(ring)?;
    sys::aio_read(context, file.as_fd()).works("io_submit")?;
    epoch.judge(&before, 1)
}

fn uring() -> Result<IoUring, Stop> {
    IoUring::new(8).needs("io_uring_setup")
}

fn uring_ring(_: &Bench) -> Found {
    /// `IORING_OFF_SQES`.
    const ENTRIES: usize = 0x1000_0000;
    let ring = uring()?;
    let area = sys::Area::anywhere(
        page_size(),
        READ_WRITE,
        MAP_SHARED,
        Some((sys::borrow(&ring), ENTRIES)),
    )
    .needs("mapping the submission entries")?;
    area.read_each();
    let before = Before::read(area);
    let epoch = Epoch::open()?;
    epoch.armed(area)?;
    area.write(0, NEW);
    epoch.judge(&before, 1)
}

fn perf_ring(_: &Bench) -> Found {
    let event = sys::perf_dummy().needs("perf_event_open")?;
    let area = Area::anywhere(2 * page_size(), READ_WRITE, MAP_SHARED, Some((event.as_fd(), 0)))
        .needs("mapping the perf ring buffer")?
        .part(0, 1);
    let before = Before::read(area);
    let epoch = Epoch::open()?;
    epoch.armed(area)?;
    area.write(0, NEW);
    epoch.judge(&before, 1)
}

fn vga(bench: &Bench) -> Found {
    /// Colour text memory.
    const TEXT: usize = 0xB_8000;
    bench.host()?;
    let memory = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/mem")
        .needs("opening /dev/mem")?;
    let area = Area::anywhere(page_size(), READ_WRITE, MAP_SHARED, Some((memory.as_fd(), TEXT)))
        .needs("mapping VGA text memory")?;
    let before = Before::read(area);
    let old = area.read(0);
    let epoch = Epoch::open()?;
    epoch.armed(area)?;
    area.write(0, !old);
    if area.read(0) == old {
        return Err(Stop::NotSupported("there is no VGA memory at 0xb8000".into()));
    }
    let found = epoch.judge(&before, 1);
    area.write(0, old);
    found
}

/// Reads a file into a buffer that was pinned before the clear.
fn fixed_buffer(area: Area) -> Found {
    use std::io::Write as _;
    let failed = |what: &str| Stop::Failed(what.to_owned());
    let mut source = fs::File::from(sys::memfd(area.pages(), 0).needs("memfd_create")?);
    source
        .write_all(&vec![NEW; area.len()])
        .works("filling the source")?;
    let before = populated(area);
    let mut ring = uring()?;
    sys::register_buffer(&ring, area).needs("pinning the buffer")?;
    let epoch = Epoch::open()?;
    let length = u32::try_from(area.len()).map_err(|_| failed("the buffer is too long"))?;
    let entry =
        opcode::ReadFixed::new(types::Fd(source.as_raw_fd()), area.pointer().cast(), length, 0).build();
    sys::submit(&mut ring, &entry).works("the fixed read")?;
    let got = ring
        .completion()
        .next()
        .ok_or_else(|| failed("the fixed read did not complete"))?
        .result();
    if got != length.cast_signed() {
        return Err(failed(&format!("the fixed read gave {got} of {length} bytes")));
    }
    epoch.judge(&before, area.pages())
}

fn uprobe(_: &Bench) -> Found {
    use std::io::Write as _;
    const NOP: u8 = 0x90;
    if !cfg!(target_arch = "x86_64") {
        return Err(Stop::NotSupported(
            "the scenario knows x86-64 instructions only".into(),
        ));
    }
    let mount = sys::detached_mount(c"tmpfs", &[]).needs("mounting a tmpfs")?;
    let path = format!("/proc/self/fd/{}/code", mount.as_raw_fd());
    let mut file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&path)
        .works("a file on tmpfs")?;
    file.write_all(&vec![NOP; page_size()])
        .works("filling the file")?;
    let area = Area::reserve(1, 0)?
        .place(PROT_READ | sys::PROT_EXEC, MAP_PRIVATE, Some((file.as_fd(), 0)))
        .needs("mapping it executable")?;
    area.read_each();
    let before = Before::known(area, NOP);
    let epoch = Epoch::open()?;
    epoch.armed(area)?;
    let _probe = sys::uprobe(path.as_ref(), 0).needs("a uprobe by perf_event_open")?;
    epoch.judge(&before, 1)
}
