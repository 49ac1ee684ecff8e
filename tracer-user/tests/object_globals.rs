//! The committed eBPF object against the layout: a global whose name the layout does not know would keep the value
//! that stands for "absent", and nothing at load would say so.

use std::fs;
use std::path::Path;

use object::{Object, ObjectSection, ObjectSymbol};
use sdtrace::kernel::layout::{GlobalValue, Layout};

/// Globals that say how sdtrace was started, not what the kernel is like.
const SETTINGS: [&str; 3] = ["FAULT_RETURN", "TRACE_FAULTS", "AYA_LOG_LEVEL"];

#[test]
fn every_global_of_the_object_is_in_the_layout_and_as_wide() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let bytes = fs::read(folder.join("ebpf/sdtrace-probes.bpf.o")).unwrap();
    let elf = object::File::parse(&*bytes).unwrap();
    let rodata = elf.section_by_name(".rodata").unwrap().index();
    let btf = fs::read(folder.join("tests/fixtures/kernels/7.3/vmlinux.btf")).unwrap();
    let layout = Layout::resolve(&btf, None).unwrap();
    let mut seen = 0;
    for symbol in elf
        .symbols()
        .filter(|symbol| symbol.section_index() == Some(rodata) && symbol.is_global())
    {
        let name = symbol.name().unwrap();
        if SETTINGS.contains(&name) {
            continue;
        }
        let bytes = match layout.global(name) {
            Some(GlobalValue::U32(_)) => 4,
            Some(GlobalValue::U64(_)) => 8,
            None => panic!("the object has a global {name} that the layout does not set"),
        };
        assert_eq!(symbol.size(), bytes, "{name}");
        seen += 1;
    }
    assert!(seen > 40, "only {seen} globals found: is this the right object?");
}
