use proptest::prelude::*;

use super::build::{Builder, info};
use super::*;

const REAL: &[u8] = include_bytes!("../../../tests/fixtures/kernels/7.3/vmlinux.btf");

/// Ids that [`scene`] gives, in order.
const INT: u32 = 1;
const LONG: u32 = 2;

/// A builder that already has `int` and `unsigned long`.
fn scene() -> Builder {
    let mut builder = Builder::default();
    assert_eq!(builder.push(b"int", info(kind::INT, 0, false), 4, &[32]), INT);
    assert_eq!(
        builder.push(b"unsigned long", info(kind::INT, 0, false), 8, &[64]),
        LONG
    );
    builder
}

/// Members given as name, type and offset word.
fn aggregate(
    builder: &mut Builder,
    kind: u32,
    kind_flag: bool,
    name: &str,
    members: &[(&str, u32, u32)],
) -> u32 {
    let mut tail = Vec::new();
    for (name, type_id, offset) in members {
        tail.extend([builder.string(name.as_bytes()), *type_id, *offset]);
    }
    builder.push(name.as_bytes(), info(kind, members.len(), kind_flag), 64, &tail)
}

fn structure(builder: &mut Builder, name: &str, members: &[(&str, u32, u32)]) -> u32 {
    aggregate(builder, kind::STRUCT, false, name, members)
}

fn member(bytes: &[u8], path: &str) -> Result<Option<Member>, BtfError> {
    Btf::parse(bytes, [path.split('.').next().unwrap()])?.member(path)
}

fn found(bytes: &[u8], path: &str) -> Option<(u32, u32)> {
    member(bytes, path)
        .unwrap()
        .map(|member| (member.offset, member.size))
}

#[test]
fn members_are_found_by_path_and_through_anonymous_structs_and_unions() {
    let mut builder = scene();
    let constant = builder.push(b"", info(kind::CONST, 0, false), LONG, &[]);
    let flags = builder.push(b"flags_t", info(kind::TYPEDEF, 0, false), constant, &[]);
    let union = aggregate(
        &mut builder,
        kind::UNION,
        false,
        "",
        &[("flags", flags, 0), ("__flags", LONG, 0)],
    );
    let anonymous = structure(&mut builder, "", &[("first", INT, 0), ("", union, 64)]);
    let row = builder.push(b"", info(kind::ARRAY, 0, false), 0, &[INT, INT, 5]);
    let table = builder.push(b"", info(kind::ARRAY, 0, false), 0, &[row, INT, 3]);
    let pointer = builder.push(b"", info(kind::PTR, 0, false), 0, &[]);
    let inner = structure(
        &mut builder,
        "inner",
        &[("table", table, 32), ("next", pointer, 512)],
    );
    structure(
        &mut builder,
        "outer",
        &[("", anonymous, 128), ("named", inner, 384)],
    );
    let bytes = builder.finish();
    assert_eq!(found(&bytes, "outer.first"), Some((16, 4)));
    assert_eq!(found(&bytes, "outer.flags"), Some((24, 8)));
    assert_eq!(found(&bytes, "outer.__flags"), Some((24, 8)));
    assert_eq!(found(&bytes, "outer.named"), Some((48, 64)));
    assert_eq!(found(&bytes, "outer.named.table"), Some((52, 60)));
    assert_eq!(found(&bytes, "outer.named.next"), Some((112, 8)));
    assert_eq!(
        found(&bytes, "outer.next"),
        None,
        "a member of a named member is not a member"
    );
    assert_eq!(
        found(&bytes, "outer.named.next.more"),
        None,
        "a path does not lead through a pointer"
    );
    assert_eq!(found(&bytes, "stranger.first"), None);
    assert_eq!(found(&bytes, "outer"), None);
    let btf = Btf::parse(&bytes, ["outer"]).unwrap();
    assert_eq!(btf.struct_size("outer"), Ok(Some(64)));
    assert_eq!(
        btf.member("inner.table"),
        Err(BtfError::NotIndexed {
            name: "inner".to_owned()
        })
    );
}

#[test]
fn bit_fields_have_no_byte_offset() {
    let mut builder = scene();
    let narrow = builder.push(b"narrow", info(kind::INT, 0, false), 4, &[3]);
    let members = [
        ("whole", INT, 32),
        ("bits", INT, (3 << 24) | 64),
        ("off_byte", INT, 67),
    ];
    aggregate(&mut builder, kind::STRUCT, true, "new_style", &members);
    structure(&mut builder, "old_style", &[("bits", narrow, 0)]);
    let bytes = builder.finish();
    assert_eq!(found(&bytes, "new_style.whole"), Some((4, 4)));
    for path in ["new_style.bits", "new_style.off_byte", "old_style.bits"] {
        assert_eq!(
            member(&bytes, path),
            Err(BtfError::Bitfield {
                path: path.to_owned()
            })
        );
    }
}

#[test]
fn definitions_that_agree_are_one_and_others_are_refused() {
    let mut builder = scene();
    for offset in [0, 0, 64] {
        structure(
            &mut builder,
            "twice",
            &[("same", INT, 128), ("moved", INT, offset)],
        );
    }
    let bytes = builder.finish();
    assert_eq!(found(&bytes, "twice.same"), Some((16, 4)));
    assert_eq!(
        member(&bytes, "twice.moved"),
        Err(BtfError::Ambiguous {
            what: "twice.moved".to_owned()
        })
    );
}

#[test]
fn enumerators_of_both_widths_and_signs_are_read() {
    let mut builder = scene();
    let [plain, minus, high, low, clash] =
        ["PLAIN", "MINUS", "HIGH", "LOW", "CLASH"].map(|name| builder.string(name.as_bytes()));
    builder.push(
        b"a",
        info(kind::ENUM, 2, false),
        4,
        &[plain, 0xffff_fff0, clash, 1],
    );
    builder.push(b"b", info(kind::ENUM, 1, true), 4, &[minus, 0xffff_fff0]);
    builder.push(
        b"c",
        info(kind::ENUM64, 2, false),
        8,
        &[high, 5, 0x8000_0000, clash, 2, 0],
    );
    builder.push(
        b"",
        info(kind::ENUM64, 1, true),
        8,
        &[low, 0xffff_ffff, 0xffff_ffff],
    );
    let bytes = builder.finish();
    let btf = Btf::parse(&bytes, ["PLAIN", "MINUS", "HIGH", "LOW", "CLASH", "NONE"]).unwrap();
    assert_eq!(btf.enumerator("PLAIN"), Ok(Some(0xffff_fff0)));
    assert_eq!(btf.enumerator("MINUS"), Ok(Some(-16)));
    assert_eq!(btf.enumerator("HIGH"), Ok(Some(0x8000_0000_0000_0005)));
    assert_eq!(btf.enumerator("LOW"), Ok(Some(-1)));
    assert_eq!(btf.enumerator("NONE"), Ok(None));
    assert_eq!(
        btf.enumerator("CLASH"),
        Err(BtfError::Ambiguous {
            what: "CLASH".to_owned()
        })
    );
}

#[test]
fn functions_have_their_parameters_in_order_with_structs_by_value_marked() {
    let mut builder = scene();
    let pmd = structure(&mut builder, "", &[("pmd", LONG, 0)]);
    let pmd_t = builder.push(b"pmd_t", info(kind::TYPEDEF, 0, false), pmd, &[]);
    let pointer = builder.push(b"", info(kind::PTR, 0, false), pmd, &[]);
    let [vmf, orig_pmd] = ["vmf", "orig_pmd"].map(|name| builder.string(name.as_bytes()));
    let prototype = info(kind::FUNC_PROTO, 3, false);
    let prototype = builder.push(b"", prototype, 0, &[vmf, pointer, orig_pmd, pmd_t, 0, 0]);
    let other = builder.push(b"", info(kind::FUNC_PROTO, 1, false), 0, &[vmf, pointer]);
    for (name, prototype) in [
        ("f", prototype),
        ("f", prototype),
        ("twins", prototype),
        ("twins", other),
    ] {
        builder.push(name.as_bytes(), info(kind::FUNC, 1, false), prototype, &[]);
    }
    let bytes = builder.finish();
    let btf = Btf::parse(&bytes, ["f", "twins", "none"]).unwrap();
    let parameters = btf.function("f").unwrap().unwrap();
    let seen: Vec<_> = parameters
        .iter()
        .map(|found| (found.name.as_str(), found.size, found.by_value))
        .collect();
    assert_eq!(
        seen,
        [("vmf", 8, false), ("orig_pmd", 64, true), ("...", 0, false)]
    );
    assert_eq!(btf.function("none"), Ok(None));
    assert_eq!(
        btf.function("twins"),
        Err(BtfError::Ambiguous {
            what: "function twins".to_owned()
        })
    );
}

#[test]
fn a_newer_kind_is_skipped_if_the_btf_says_how_long_it_is_and_refused_if_not() {
    const NEWER: u32 = 20;
    let mut builder = scene();
    builder.push(b"news", info(NEWER, 2, false), 0, &[1, 2, 3]);
    structure(&mut builder, "after", &[("it", INT, 32)]);
    let bytes = builder.finish();
    assert_eq!(
        member(&bytes, "after.it"),
        Err(BtfError::UnknownKind { id: 3, kind: NEWER })
    );

    // The same with a header of 32 bytes that points to the lengths of 21 kinds: 4 fixed bytes, 4 an element.
    let mut with_lengths = bytes.clone();
    let body = u32::try_from(bytes.len() - 24).unwrap();
    with_lengths[4] = 32;
    let place: Vec<u8> = [body, 21 * 4]
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect();
    with_lengths.splice(24..24, place);
    with_lengths.extend([0; 20 * 4]);
    with_lengths.extend([4, 4, 0, 0]);
    assert_eq!(found(&with_lengths, "after.it"), Some((4, 4)));
}

#[test]
fn what_is_not_btf_is_told_apart() {
    let good = scene().finish();
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        Btf::parse(&bytes, []).map(|btf| btf.type_count())
    };
    assert_eq!(Btf::parse(&good, []).map(|btf| btf.type_count()), Ok(2));
    assert_eq!(with(0, 0), Err(BtfError::Header("the magic number is missing")));
    assert_eq!(with(2, 2), Err(BtfError::Header("its version is not 1")));
    assert_eq!(with(4, 8), Err(BtfError::Header("it is shorter than its header")));
    assert_eq!(with(14, 1), Err(BtfError::Header("a section lies outside of it")));
    assert_eq!(
        with(12, 31),
        Err(BtfError::Damaged {
            id: 2,
            why: "it reaches beyond the type section"
        })
    );
    assert_eq!(
        with(12, 20),
        Err(BtfError::Damaged {
            id: 2,
            why: "it is cut short"
        })
    );
    let swapped = [0xeb, 0x9f, 1, 0];
    assert_eq!(
        Btf::parse(&swapped, []).unwrap_err(),
        BtfError::Header("it has the other byte order")
    );
    assert_eq!(
        Btf::parse(&[], []).unwrap_err(),
        BtfError::Header("it is shorter than its header")
    );
}

#[test]
fn types_that_go_round_in_circles_end_in_an_error() {
    let mut builder = scene();
    // Ids 3 and 4 are typedefs of one another, 5 an array of itself, 6 an anonymous struct inside itself.
    builder.push(b"a", info(kind::TYPEDEF, 0, false), 4, &[]);
    builder.push(b"b", info(kind::TYPEDEF, 0, false), 3, &[]);
    builder.push(b"", info(kind::ARRAY, 0, false), 0, &[5, INT, 1]);
    structure(&mut builder, "", &[("", 6, 0), ("", 6, 0), ("deep", INT, 0)]);
    structure(
        &mut builder,
        "s",
        &[("typedef", 3, 0), ("array", 5, 0), ("lost", 99, 0), ("", 6, 0)],
    );
    let bytes = builder.finish();
    for path in ["s.typedef", "s.array", "s.lost", "s.nothing"] {
        assert!(
            matches!(member(&bytes, path), Err(BtfError::Damaged { .. })),
            "{path}"
        );
    }
    assert_eq!(found(&bytes, "s.deep"), Some((0, 4)));
}

/// Asks everything of a BTF that may be damaged; only that it answers at all is tested.
fn interrogate(bytes: &[u8]) {
    let names = crate::kernel::layout::wanted_names().chain(["pmd_t"]);
    if let Ok(btf) = Btf::parse(bytes, names) {
        for path in crate::kernel::layout::wanted_paths() {
            let _ = btf.member(path);
        }
        for name in crate::kernel::layout::wanted_names() {
            let _ = (btf.struct_size(name), btf.enumerator(name), btf.function(name));
        }
    }
}

proptest! {
    #[test]
    fn no_mutation_makes_the_reader_panic(
        changes in prop::collection::vec((0..REAL.len(), any::<u8>()), 1..24),
        length in 0..=REAL.len(),
        truncate in any::<bool>(),
    ) {
        let mut bytes = REAL.to_vec();
        for (at, value) in changes {
            bytes[at] = value;
        }
        bytes.truncate(if truncate { length } else { REAL.len() });
        interrogate(&bytes);
    }

    #[test]
    fn no_bytes_behind_a_header_make_the_reader_panic(body in prop::collection::vec(any::<u8>(), 0..400), split in 0_u32..400) {
        let mut bytes = vec![0x9f, 0xeb, 1, 0];
        let strings = u32::try_from(body.len()).unwrap().saturating_sub(split);
        for word in [24, 0, split, split, strings] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(body);
        interrogate(&bytes);
    }
}

#[test]
fn a_cut_that_is_cut_again_stays_the_same() {
    let again = cut(REAL).unwrap();
    assert_eq!(cut(&again).unwrap(), again);
    assert_eq!(
        crate::kernel::layout::Layout::resolve(&again, None).unwrap(),
        crate::kernel::layout::Layout::resolve(REAL, None).unwrap()
    );
}

#[test]
fn definitions_that_leave_a_parameter_unused_agree_with_the_one_that_uses_it() {
    let parameter = |name: &str, size| Parameter {
        name: name.to_owned(),
        size,
        by_value: false,
    };
    let used = vec![parameter("regs", 8)];
    let unused = vec![parameter("__unused", 8)];
    assert_eq!(one_prototype(used.clone(), unused.clone()), Some(used.clone()));
    assert_eq!(one_prototype(unused.clone(), used.clone()), Some(used.clone()));
    assert_eq!(
        one_prototype(unused.clone(), unused.clone()),
        Some(unused.clone())
    );
    assert_eq!(one_prototype(used.clone(), vec![parameter("other", 8)]), None);
    assert_eq!(one_prototype(used.clone(), vec![parameter("__unused", 4)]), None);
    assert_eq!(one_prototype(used, Vec::new()), None);
}
