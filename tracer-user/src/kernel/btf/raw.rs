//! The raw form of BTF: sections, type headers, names.

use std::collections::HashMap;

use super::BtfError;

/// Bytes of a type before what its kind adds.
pub(super) const TYPE_BYTES: usize = 12;

/// BTF kinds, numbered as in `include/uapi/linux/btf.h`.
pub(crate) mod kind {
    pub const INT: u32 = 1;
    pub const PTR: u32 = 2;
    pub const ARRAY: u32 = 3;
    pub const STRUCT: u32 = 4;
    pub const UNION: u32 = 5;
    pub const ENUM: u32 = 6;
    pub const FWD: u32 = 7;
    pub const TYPEDEF: u32 = 8;
    pub const VOLATILE: u32 = 9;
    pub const CONST: u32 = 10;
    pub const RESTRICT: u32 = 11;
    pub const FUNC: u32 = 12;
    pub const FUNC_PROTO: u32 = 13;
    pub const VAR: u32 = 14;
    pub const DATASEC: u32 = 15;
    pub const FLOAT: u32 = 16;
    pub const DECL_TAG: u32 = 17;
    pub const TYPE_TAG: u32 = 18;
    pub const ENUM64: u32 = 19;
}

/// The fixed first part of every type.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Header {
    pub name: u32,
    pub kind: u32,
    pub elements: usize,
    pub kind_flag: bool,
    /// A size in bytes or a type id, as the kind has it.
    pub size_or_type: u32,
}

/// Everything of one wanted name.
#[derive(Debug, Default)]
pub(super) struct Named {
    pub aggregates: Vec<u32>,
    pub functions: Vec<u32>,
    pub enumerators: Vec<i128>,
}

/// The sections that the BTF header points to.
pub(super) struct Sections<'a> {
    pub types: &'a [u8],
    pub strings: &'a [u8],
    /// Since 7.x: per kind, how long its fixed tail and each of its elements are.
    lengths: &'a [u8],
}

impl<'a> Sections<'a> {
    pub fn find(bytes: &'a [u8]) -> Result<Self, BtfError> {
        let short = BtfError::Header("it is shorter than its header");
        match bytes.get(..4) {
            None => return Err(short),
            Some(&[0x9f, 0xeb, 1, _]) => {}
            Some(&[0xeb, 0x9f, ..]) => return Err(BtfError::Header("it has the other byte order")),
            Some(&[0x9f, 0xeb, ..]) => return Err(BtfError::Header("its version is not 1")),
            Some(_) => return Err(BtfError::Header("the magic number is missing")),
        }
        let field = |at| u32_at(bytes, at).map(|value| value as usize);
        let header_bytes = field(4).filter(|&length| length >= 24).ok_or(short.clone())?;
        let body = bytes.get(header_bytes..).ok_or(short.clone())?;
        let section = |at: usize| {
            let begin = field(at)?;
            body.get(begin..begin.checked_add(field(at + 4)?)?)
        };
        let outside = BtfError::Header("a section lies outside of it");
        Ok(Self {
            types: section(8).ok_or(outside.clone())?,
            strings: section(16).ok_or(outside.clone())?,
            lengths: if header_bytes >= 32 {
                section(24).ok_or(outside)?
            } else {
                &[]
            },
        })
    }

    /// Bytes that follow a type's header.
    pub fn tail_bytes(&self, kind: u32, elements: usize, id: u32) -> Result<usize, BtfError> {
        Ok(match kind {
            kind::INT | kind::VAR | kind::DECL_TAG => 4,
            kind::ARRAY => 12,
            kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => elements * 12,
            kind::ENUM | kind::FUNC_PROTO => elements * 8,
            kind::PTR
            | kind::FWD
            | kind::TYPEDEF
            | kind::VOLATILE
            | kind::CONST
            | kind::RESTRICT
            | kind::FUNC
            | kind::FLOAT
            | kind::TYPE_TAG => 0,
            // struct btf_layout: bytes of the fixed tail, bytes of an element, 16 bits of flags.
            _ => match self.lengths.get(kind as usize * 4..kind as usize * 4 + 2) {
                Some(&[fixed, element]) if kind != 0 => usize::from(fixed) + elements * usize::from(element),
                _ => return Err(BtfError::UnknownKind { id, kind }),
            },
        })
    }
}

/// The names looked for. Nearly every name of the kernel is refused by its first letter and length, without hashing.
pub(super) struct Wanted {
    pub found: HashMap<String, Named>,
    /// For each first byte, which lengths occur (bit 63: 63 and more).
    lengths: [u64; 256],
}

impl Wanted {
    pub fn new<'n>(names: impl IntoIterator<Item = &'n str>) -> Self {
        let mut wanted = Self {
            found: HashMap::new(),
            lengths: [0; 256],
        };
        for name in names {
            if let Some(&first) = name.as_bytes().first() {
                wanted.lengths[usize::from(first)] |= length_bit(name.len());
            }
            wanted.found.entry(name.to_owned()).or_default();
        }
        wanted
    }

    pub fn look_up(&mut self, strings: &[u8], offset: u32) -> Option<&mut Named> {
        let first = *strings.get(offset as usize)?;
        let lengths = self.lengths[usize::from(first)];
        if lengths == 0 {
            return None;
        }
        let name = c_string(strings, offset);
        if lengths & length_bit(name.len()) == 0 {
            return None;
        }
        self.found.get_mut(std::str::from_utf8(name).ok()?)
    }
}

fn length_bit(length: usize) -> u64 {
    1 << length.min(63)
}

pub(super) fn c_string(strings: &[u8], offset: u32) -> &[u8] {
    let rest = strings.get(offset as usize..).unwrap_or_default();
    &rest[..rest.iter().position(|&byte| byte == 0).unwrap_or(rest.len())]
}

pub(super) fn read_header(types: &[u8], at: usize) -> Option<Header> {
    let fixed = types.get(at..at.checked_add(TYPE_BYTES)?)?;
    let info = u32_at(fixed, 4)?;
    Some(Header {
        name: u32_at(fixed, 0)?,
        // 7 bits of kind and 24 of count since 7.x; the bits beyond 5 and 16 were zero before that.
        kind: (info >> 24) & 0x7f,
        elements: (info & 0x00ff_ffff) as usize,
        kind_flag: info >> 31 != 0,
        size_or_type: u32_at(fixed, 8)?,
    })
}

/// The value of one enumerator: 32 bits, or for `ENUM64` a low and a high half; signed if the kind flag is set.
pub(super) fn enumerator_value(header: Header, entry: &[u8]) -> i128 {
    let [low, high] = [4, 8].map(|at| u32_at(entry, at).unwrap_or(0));
    let wide = (u64::from(high) << 32) | u64::from(low);
    match (header.kind, header.kind_flag) {
        (kind::ENUM64, false) => i128::from(wide),
        (kind::ENUM64, true) => i128::from(wide.cast_signed()),
        (_, false) => i128::from(low),
        (_, true) => i128::from(low.cast_signed()),
    }
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let four = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes([four[0], four[1], four[2], four[3]]))
}
