//! The layouts of real kernels: BTF and symbols of five Debian kernels, cut down by `examples/cut-btf.rs`, against
//! the committed table of each and against facts that were read off these kernels by other tools.

use std::fs;
use std::path::{Path, PathBuf};

use sdtrace::kernel::kallsyms::Symbols;
use sdtrace::kernel::layout::{ABSENT, FunctionLayout, GlobalValue, Layout, LayoutError};

const KERNELS: [&str; 5] = ["5.10", "6.1", "6.12", "6.18", "7.3"];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/kernels")
}

fn btf(kernel: &str) -> Vec<u8> {
    fs::read(folder().join(kernel).join("vmlinux.btf")).unwrap()
}

fn kallsyms(kernel: &str) -> String {
    fs::read_to_string(folder().join(kernel).join("kallsyms")).unwrap()
}

fn symbols(text: &str) -> Symbols {
    Symbols::parse(
        text.as_bytes(),
        Layout::wanted_functions(),
        Layout::wanted_variables(),
    )
    .unwrap()
}

fn layout(kernel: &str) -> Layout {
    Layout::resolve(&btf(kernel), Some(&symbols(&kallsyms(kernel)))).unwrap()
}

fn number(layout: &Layout, name: &str) -> u64 {
    match layout.global(name).unwrap_or_else(|| panic!("no global {name}")) {
        GlobalValue::U32(value) => value.into(),
        GlobalValue::U64(value) => value,
    }
}

/// The fixture with one name replaced by another of the same length, wherever it is used.
fn renamed(kernel: &str, from: &str, to: &str) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let mut bytes = btf(kernel);
    let needle = [b"\0", from.as_bytes(), b"\0"].concat();
    let at = bytes
        .windows(needle.len())
        .position(|window| window == needle)
        .expect("the name is there")
        + 1;
    bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
    bytes
}

#[test]
fn every_fixture_resolves_to_its_committed_table() {
    let mut found: Vec<_> = fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let mut expected = KERNELS.map(str::to_owned);
    found.sort();
    expected.sort();
    assert_eq!(found, expected);
    for kernel in KERNELS {
        let expected = fs::read_to_string(folder().join(kernel).join("layout.txt")).unwrap();
        assert_eq!(layout(kernel).to_string(), expected, "{kernel}");
    }
}

/// Read off kernels of these series with `bpftool btf dump`.
#[test]
fn the_layouts_agree_with_what_another_tool_reads() {
    #[rustfmt::skip]
    let facts: [(&str, [u64; 5]); 19] = [
        ("VMA_PAGE_PROT",               [72,   24,   24,   24,   24]),
        ("VMA_FLAGS",                   [80,   32,   32,   32,   32]),
        ("VMA_MM",                      [64,   16,   16,   16,   16]),
        ("VMA_FILE",                    [160,  112,  128,  88,   88]),
        ("VM_FAULT_VMA",                [0,    0,    0,    0,    0]),
        ("VM_FAULT_ADDRESS",            [24,   24,   24,   24,   24]),
        ("VM_FAULT_FLAGS",              [8,    40,   40,   40,   40]),
        ("VM_FAULT_ORIG_PTE",           [48,   64,   64,   64,   64]),
        ("MM_WALK_MM",                  [8,    8,    8,    8,    8]),
        ("MM_WALK_VMA",                 [24,   24,   24,   24,   24]),
        ("MM_WALK_PRIVATE",             [40,   40,   40,   40,   40]),
        ("TASK_MM",                     [2056, 2272, 2304, 2576, 2744]),
        ("TASK_COMM",                   [2736, 2976, 2976, 3248, 3408]),
        ("FILE_PRIVATE_DATA",           [200,  200,  32,   24,   24]),
        ("SUPER_FLAGS",                 [80,   80,   80,   80,   96]),
        ("ARGS_MPROTECT_FIXUP",         [5,    6,    7,    7,    7]),
        ("ARG_MPROTECT_FIXUP_VMA",      [0,    1,    2,    2,    2]),
        ("ARG_MPROTECT_FIXUP_NEWFLAGS", [4,    5,    6,    6,    6]),
        ("ARGS_DO_HUGE_PMD_WP_PAGE",    [2,    1,    1,    1,    1]),
    ];
    for (index, kernel) in KERNELS.into_iter().enumerate() {
        let layout = layout(kernel);
        for (name, values) in facts {
            assert_eq!(number(&layout, name), values[index], "{name} of {kernel}");
        }
    }
}

#[test]
fn what_a_kernel_does_not_have_is_absent_or_has_its_documented_value() {
    let (old, new) = (layout("5.10"), layout("7.3"));
    for (name, of_old, of_new) in [
        ("VM_FAULT_ORIG_PMD", u64::from(ABSENT), 64),
        ("VMA_NEXT", 16, u64::from(ABSENT)),
        ("ARG_DO_HUGE_PMD_WP_PAGE_ORIG_PMD", 1, u64::from(ABSENT)),
        ("FAULT_COMPLETED_MASK", 0, 0x4000),
        ("FLAG_UNSHARE", 0, 0x400),
        ("FLAG_VMA_LOCK", 0, 0x1000),
        ("FLAG_WRITE", 1, 1),
        ("FLAG_TRIED", 0x20, 0x20),
        ("VM_SOFTDIRTY_MASK", 0x0800_0000, 0x0800_0000),
        ("FAULT_ERROR_MASK", 0x73, 0x73),
    ] {
        assert_eq!(
            (number(&old, name), number(&new, name)),
            (of_old, of_new),
            "{name}"
        );
    }
}

#[test]
fn a_struct_passed_by_value_is_told_apart() {
    let by_value = |kernel| {
        let layout = layout(kernel);
        let function = layout.function("do_huge_pmd_wp_page").unwrap();
        function
            .by_value_parameter()
            .map(|parameter| parameter.name.clone())
    };
    assert_eq!(by_value("5.10").as_deref(), Some("orig_pmd"));
    assert_eq!(by_value("6.1"), None);
}

#[test]
fn a_missing_member_is_named_with_everything_that_was_tried() {
    for (kernel, from, to, what) in [
        (
            "6.1",
            "vm_page_prot",
            "vm_page_prox",
            "vm_area_struct.vm_page_prot",
        ),
        ("6.18", "dfl_cgrp", "dfl_cgrx", "css_set.dfl_cgrp"),
        ("7.3", "VM_FAULT_SIGBUS", "VM_FAULT_SIGBUX", "VM_FAULT_SIGBUS"),
        ("7.3", "upid", "upix", "upid.nr"),
    ] {
        let error = Layout::resolve(&renamed(kernel, from, to), None).unwrap_err();
        assert_eq!(
            error,
            LayoutError::Missing {
                what,
                tried: vec![what]
            }
        );
        assert!(error.to_string().contains(what), "{error}");
    }
}

#[test]
fn a_renamed_member_is_found_under_its_other_names() {
    let old = renamed("5.10", "vm_flags", "__vm_flg");
    let error = Layout::resolve(&old, None).unwrap_err();
    let tried = vec![
        "vm_area_struct.vm_flags",
        "vm_area_struct.__vm_flags",
        "vm_area_struct.flags",
    ];
    assert_eq!(
        error,
        LayoutError::Missing {
            what: tried[0],
            tried
        }
    );
    // In 6.12 the union still has __vm_flags when vm_flags is gone.
    let union = Layout::resolve(&renamed("6.12", "vm_flags", "vm_fl@gs"), None).unwrap();
    assert_eq!(number(&union, "VMA_FLAGS"), 32);
}

#[test]
fn a_member_of_another_size_is_refused() {
    // In 6.1 `pid` names a member of task_struct and a struct; let `nr` of struct upid be looked up as an 8-byte one
    // by giving the name of its neighbour to it.
    let mut bytes = renamed("6.1", "nr", "xx");
    let needle = b"\0ns\0";
    let at = bytes
        .windows(needle.len())
        .position(|window| window == needle)
        .unwrap()
        + 1;
    bytes[at..at + 2].copy_from_slice(b"nr");
    let error = Layout::resolve(&bytes, None).unwrap_err();
    let expected = "upid.nr of this kernel is 8 bytes where sdtrace expects 4 bytes";
    assert!(error.to_string().starts_with(expected), "{error}");
}

#[test]
fn a_function_that_cannot_be_probed_costs_its_own_probe_only() {
    let verdict = |btf: &[u8], kallsyms: &str| {
        let layout = Layout::resolve(btf, Some(&symbols(kallsyms))).unwrap();
        assert_eq!(number(&layout, "ARG_DO_WP_PAGE_VMF"), 0);
        let function = layout.function("mprotect_fixup").unwrap().clone();
        if !matches!(function, FunctionLayout::Resolved { .. }) {
            assert_eq!(number(&layout, "ARGS_MPROTECT_FIXUP"), u64::from(ABSENT));
            assert_eq!(number(&layout, "ARG_MPROTECT_FIXUP_NEWFLAGS"), u64::from(ABSENT));
        }
        function
    };
    let (btf, kallsyms) = (btf("6.12"), kallsyms("6.12"));
    assert!(matches!(
        verdict(&btf, &kallsyms),
        FunctionLayout::Resolved { .. }
    ));
    let gone = kallsyms.replace(" mprotect_fixup", " something_else");
    assert_eq!(verdict(&btf, &gone), FunctionLayout::MissingSymbol);
    let clone = kallsyms.replace(" mprotect_fixup", " mprotect_fixup.isra.0");
    let clones = vec!["mprotect_fixup.isra.0".to_owned()];
    assert_eq!(
        verdict(&btf, &clone),
        FunctionLayout::OptimisedClone {
            clones: clones.clone()
        }
    );
    let both = format!("{kallsyms}ffffffff81000000 t mprotect_fixup.isra.0\n");
    let FunctionLayout::Resolved { clones: beside, .. } = verdict(&btf, &both) else {
        panic!("not resolved")
    };
    assert_eq!(beside, clones);
    let twice = format!("{kallsyms}ffffffff81000000 t mprotect_fixup\n");
    assert_eq!(verdict(&btf, &twice), FunctionLayout::SeveralSymbols { count: 2 });
    let untyped = renamed("6.12", "mprotect_fixup", "mprotect_fixux");
    assert_eq!(verdict(&untyped, &kallsyms), FunctionLayout::MissingType);
    let other_parameter = renamed("6.12", "newflags", "oldflags");
    let has = ["vmi", "tlb", "vma", "pprev", "start", "end", "oldflags"]
        .map(str::to_owned)
        .to_vec();
    assert_eq!(
        verdict(&other_parameter, &kallsyms),
        FunctionLayout::ParameterMissing {
            name: "newflags",
            has
        }
    );
    let without_optional = renamed("6.12", "pprev", "ppreX");
    assert!(matches!(
        verdict(&without_optional, &kallsyms),
        FunctionLayout::Resolved { .. }
    ));
}

#[test]
fn this_machines_own_kernel_resolves() {
    let Ok(btf) = fs::read("/sys/kernel/btf/vmlinux") else {
        eprintln!("not tested: this machine's kernel offers no BTF");
        return;
    };
    let text = fs::read_to_string("/proc/kallsyms").unwrap();
    let layout = Layout::resolve(&btf, Some(&symbols(&text))).unwrap();
    assert_eq!(
        (number(&layout, "VMA_START"), number(&layout, "UPID_SIZE")),
        (0, 16)
    );
    // The kernel's own symbol names the same functions as its BTF.
    let exit_mmap = layout.function("exit_mmap").unwrap();
    assert_eq!(exit_mmap.position("mm"), 0, "{exit_mmap}");
}
