//! A reader of BTF, the type information that the kernel carries about itself (`/sys/kernel/btf/vmlinux`).
//!
//! Our own, because the two crates that could do it do not fit: `aya_obj::Btf` keeps struct members private, and
//! `btf-rs` 2 is LGPL and indexes every name of the kernel (70 ms natively, ten times that in an emulated guest).
//! This one goes over the types once, remembers where each begins, and looks only for names it was given.
//!
//! Format: `Documentation/bpf/btf.rst` and `include/uapi/linux/btf.h` of the kernel. Any input is safe: bounds are
//! checked, chains of types are followed a bounded number of steps.

#[cfg(any(test, feature = "fixtures"))]
mod build;
#[cfg(any(test, feature = "fixtures"))]
mod cut;
mod raw;
#[cfg(test)]
mod tests;

use std::collections::HashMap;

use thiserror::Error;

#[cfg(any(test, feature = "fixtures"))]
pub use cut::cut;

use raw::{
    Header, Named, Sections, TYPE_BYTES, Wanted, c_string, enumerator_value, kind, read_header, u32_at,
};

/// Size in bytes of a pointer. BTF does not say it; BPF itself, and every architecture with soft-dirty that we
/// build for, is 64-bit.
const POINTER_BYTES: u64 = 8;
/// How many typedefs, qualifiers and array dimensions may lie between a name and its type. Real kernels need about ten.
const MAX_CHAIN: usize = 64;
/// How many members one lookup may visit. `task_struct`, the largest, has about 300.
const MAX_MEMBERS_VISITED: usize = 100_000;

/// Why BTF could not be read or asked.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BtfError {
    /// The bytes are not BTF of this machine's byte order, version 1.
    #[error("not BTF of this machine: {0}")]
    Header(&'static str),
    /// A section or a type reaches beyond the end, or a reference leads nowhere.
    #[error("damaged BTF at type {id}: {why}")]
    Damaged {
        /// The type that was being read.
        id: u32,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A kind of type that is newer than this reader, in BTF that does not describe how long it is.
    #[error("BTF kind {kind} of type {id} is not known to this version of sdtrace")]
    UnknownKind {
        /// The type.
        id: u32,
        /// Its kind number.
        kind: u32,
    },
    /// The member is a bit field, so it has no byte offset.
    #[error("{path} is a bit field")]
    Bitfield {
        /// The member asked for.
        path: String,
    },
    /// Several types of the same name disagree.
    #[error("the kernel has several different definitions of {what}")]
    Ambiguous {
        /// The struct, function or enumerator.
        what: String,
    },
    /// The name was not among those given to [`Btf::parse`]: a mistake in sdtrace, not in the kernel.
    #[error("{name} was not indexed when BTF was read")]
    NotIndexed {
        /// The name.
        name: String,
    },
}

/// Where a member lies in its struct.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// Bytes from the beginning of the outermost struct.
    pub offset: u32,
    /// Bytes that the member takes; the whole array for an array, 0 for a flexible array.
    pub size: u32,
}

/// One parameter of a kernel function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameter {
    /// Its name; empty if the BTF has none.
    pub name: String,
    /// Its size in bytes.
    pub size: u32,
    /// Whether it is a struct or union passed by value, even if it fits a register.
    pub by_value: bool,
}

/// The name of a parameter in a definition that does not use it. A system call may have such a definition
/// (`SYSCALL_DEFINEx`, `kernel/sys_ni.c`) beside the one that does the work; BTF then has both (6.1).
const UNUSED: &str = "__unused";

/// The one prototype that two definitions of a function describe; `None` if they differ in more than the names of
/// parameters that one of them does not use.
fn one_prototype(first: Vec<Parameter>, second: Vec<Parameter>) -> Option<Vec<Parameter>> {
    if first.len() != second.len() {
        return None;
    }
    first
        .into_iter()
        .zip(second)
        .map(|(one, other)| {
            let (named, unnamed) = if one.name == UNUSED {
                (other, one)
            } else {
                (one, other)
            };
            let same_name = named.name == unnamed.name || unnamed.name == UNUSED;
            (same_name && (named.size, named.by_value) == (unnamed.size, unnamed.by_value)).then_some(named)
        })
        .collect()
}

/// BTF that has been gone over once.
#[derive(Debug)]
pub struct Btf<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// Where each type begins in `types`; index 0, `void`, is never read.
    starts: Vec<u32>,
    named: HashMap<String, Named>,
}

impl<'a> Btf<'a> {
    /// Reads BTF and finds the structs, unions, functions and enumerators that have one of the `wanted` names.
    /// Only those can be asked for afterwards.
    ///
    /// # Errors
    /// If the bytes are not BTF, are cut short, or hold a kind of type whose length is not known.
    pub fn parse<'n>(bytes: &'a [u8], wanted: impl IntoIterator<Item = &'n str>) -> Result<Self, BtfError> {
        let sections = Sections::find(bytes)?;
        let mut wanted = Wanted::new(wanted);
        // Types average 25 to 35 bytes in Debian's kernels; one reallocation at most.
        let mut starts = Vec::with_capacity(sections.types.len() / 24 + 1);
        starts.push(0);
        let mut at = 0;
        while at < sections.types.len() {
            let id = u32::try_from(starts.len()).map_err(|_| BtfError::Damaged {
                id: u32::MAX,
                why: "more types than a type id can number",
            })?;
            let header = read_header(sections.types, at).ok_or(BtfError::Damaged {
                id,
                why: "it is cut short",
            })?;
            let tail = sections.tail_bytes(header.kind, header.elements, id)?;
            let begin = at + TYPE_BYTES;
            let end = begin
                .checked_add(tail)
                .filter(|&end| end <= sections.types.len())
                .ok_or(BtfError::Damaged {
                    id,
                    why: "it reaches beyond the type section",
                })?;
            starts.push(u32::try_from(at).map_err(|_| BtfError::Damaged {
                id,
                why: "the type section exceeds 4 GiB",
            })?);
            match header.kind {
                kind::STRUCT | kind::UNION => {
                    if let Some(named) = wanted.look_up(sections.strings, header.name) {
                        named.aggregates.push(id);
                    }
                }
                kind::FUNC => {
                    if let Some(named) = wanted.look_up(sections.strings, header.name) {
                        named.functions.push(id);
                    }
                }
                kind::ENUM | kind::ENUM64 => {
                    let entry_bytes = if header.kind == kind::ENUM { 8 } else { 12 };
                    for entry in sections.types[begin..end].chunks_exact(entry_bytes) {
                        let name = u32_at(entry, 0).unwrap_or(0);
                        if let Some(named) = wanted.look_up(sections.strings, name) {
                            named.enumerators.push(enumerator_value(header, entry));
                        }
                    }
                }
                _ => {}
            }
            at = end;
        }
        Ok(Self {
            types: sections.types,
            strings: sections.strings,
            starts,
            named: wanted.found,
        })
    }

    /// How many types there are, `void` not counted.
    #[must_use]
    pub fn type_count(&self) -> usize {
        self.starts.len() - 1
    }

    /// Offset and size of a struct member by its path: `mm_walk.vma`, or `a.b.c` through structs that lie inside
    /// one another. Anonymous structs and unions on the way are looked into as C does. `None` if the struct or the
    /// member does not exist.
    ///
    /// # Errors
    /// If the member is a bit field, if structs of that name disagree, or if the BTF is damaged there.
    pub fn member(&self, path: &str) -> Result<Option<Member>, BtfError> {
        let (aggregate, members) = path.split_once('.').unwrap_or((path, ""));
        let mut agreed = None;
        for &id in &self.named(aggregate)?.aggregates {
            let found = self.member_in(id, members, path)?;
            match agreed {
                None => agreed = Some(found),
                Some(other) if other == found => {}
                Some(_) => {
                    return Err(BtfError::Ambiguous {
                        what: path.to_owned(),
                    });
                }
            }
        }
        Ok(agreed.flatten())
    }

    /// Size in bytes of a struct or union; `None` if there is none of that name.
    ///
    /// # Errors
    /// If several of that name disagree.
    pub fn struct_size(&self, name: &str) -> Result<Option<u32>, BtfError> {
        let mut agreed = None;
        for &id in &self.named(name)?.aggregates {
            let size = self.header(id)?.size_or_type;
            if agreed.is_some_and(|other| other != size) {
                return Err(BtfError::Ambiguous {
                    what: format!("struct {name}"),
                });
            }
            agreed = Some(size);
        }
        Ok(agreed)
    }

    /// Value of an enumerator, whatever enum it belongs to; `None` if there is none of that name.
    ///
    /// # Errors
    /// If enums disagree about its value.
    pub fn enumerator(&self, name: &str) -> Result<Option<i128>, BtfError> {
        let values = &self.named(name)?.enumerators;
        match values.split_first() {
            None => Ok(None),
            Some((first, rest)) if rest.iter().all(|value| value == first) => Ok(Some(*first)),
            Some(_) => Err(BtfError::Ambiguous {
                what: name.to_owned(),
            }),
        }
    }

    /// The parameters of a function in order; `None` if the BTF has no such function (pahole leaves out those whose
    /// parameters the compiler optimised away).
    ///
    /// # Errors
    /// If functions of that name (static ones in several files) have different parameters.
    pub fn function(&self, name: &str) -> Result<Option<Vec<Parameter>>, BtfError> {
        let mut agreed: Option<Vec<Parameter>> = None;
        for &id in &self.named(name)?.functions {
            let parameters = self.parameters(id)?;
            agreed = match agreed {
                None => Some(parameters),
                Some(other) => Some(
                    one_prototype(other, parameters).ok_or_else(|| BtfError::Ambiguous {
                        what: format!("function {name}"),
                    })?,
                ),
            };
        }
        Ok(agreed)
    }

    fn named(&self, name: &str) -> Result<&Named, BtfError> {
        self.named.get(name).ok_or_else(|| BtfError::NotIndexed {
            name: name.to_owned(),
        })
    }

    fn member_in(&self, aggregate: u32, members: &str, path: &str) -> Result<Option<Member>, BtfError> {
        let damaged = |why| BtfError::Damaged { id: aggregate, why };
        let mut holder = aggregate;
        let mut bits: u64 = 0;
        let mut visited = 0;
        let mut names = members.split('.').peekable();
        while let Some(name) = names.next() {
            if name.is_empty() {
                // An empty name would match the anonymous members.
                return Ok(None);
            }
            let Some(found) = self.find_member(holder, name, &mut visited)? else {
                return Ok(None);
            };
            bits += found.bits;
            if names.peek().is_some() {
                holder = self.strip(found.type_id)?;
                if !self.is_aggregate(holder)? {
                    return Ok(None);
                }
                continue;
            }
            if found.bitfield || !bits.is_multiple_of(8) || self.is_partial_integer(found.type_id)? {
                return Err(BtfError::Bitfield {
                    path: path.to_owned(),
                });
            }
            return Ok(Some(Member {
                offset: u32::try_from(bits / 8).map_err(|_| damaged("a member lies beyond 4 GiB"))?,
                size: self.size_of(found.type_id)?,
            }));
        }
        Ok(None)
    }

    /// Looks for a member in a struct and in the anonymous ones inside it, in order of declaration.
    fn find_member(
        &self,
        aggregate: u32,
        name: &str,
        visited: &mut usize,
    ) -> Result<Option<FoundMember>, BtfError> {
        let mut pending = vec![(aggregate, 0_u64)];
        while let Some((id, base)) = pending.pop() {
            let (header, tail) = self.type_at(id)?;
            let mut anonymous = Vec::new();
            for entry in tail.chunks_exact(12).take(header.elements) {
                *visited += 1;
                if *visited > MAX_MEMBERS_VISITED {
                    return Err(BtfError::Damaged {
                        id,
                        why: "its members never end",
                    });
                }
                let [member_name, type_id, offset] = [0, 4, 8].map(|at| u32_at(entry, at).unwrap_or(0));
                // With the kind flag the upper 8 bits are the width of a bit field, 0 for an ordinary member.
                let (width, offset) = if header.kind_flag {
                    (offset >> 24, offset & 0x00ff_ffff)
                } else {
                    (0, offset)
                };
                let bits = base + u64::from(offset);
                let found = self.string(member_name);
                if found == name.as_bytes() {
                    return Ok(Some(FoundMember {
                        bits,
                        type_id,
                        bitfield: width != 0,
                    }));
                }
                if found.is_empty() {
                    let inner = self.strip(type_id)?;
                    if self.is_aggregate(inner)? {
                        anonymous.push((inner, bits));
                    }
                }
            }
            pending.extend(anonymous.into_iter().rev());
        }
        Ok(None)
    }

    fn parameters(&self, function: u32) -> Result<Vec<Parameter>, BtfError> {
        let prototype = self.header(function)?.size_or_type;
        let (header, tail) = self.type_at(prototype)?;
        if header.kind != kind::FUNC_PROTO {
            return Err(BtfError::Damaged {
                id: function,
                why: "a function without a prototype",
            });
        }
        tail.chunks_exact(8)
            .take(header.elements)
            .map(|entry| {
                let [name, type_id] = [0, 4].map(|at| u32_at(entry, at).unwrap_or(0));
                let name = String::from_utf8_lossy(self.string(name)).into_owned();
                if type_id == 0 {
                    // A variadic function ends with a parameter of no name and no type.
                    return Ok(Parameter {
                        name: "...".to_owned(),
                        size: 0,
                        by_value: false,
                    });
                }
                let by_value = self.is_aggregate(self.strip(type_id)?)?;
                Ok(Parameter {
                    name,
                    size: self.size_of(type_id)?,
                    by_value,
                })
            })
            .collect()
    }

    fn size_of(&self, type_id: u32) -> Result<u32, BtfError> {
        let damaged = |why| BtfError::Damaged { id: type_id, why };
        let mut count: u64 = 1;
        let mut id = type_id;
        for _ in 0..MAX_CHAIN {
            id = self.strip(id)?;
            let (header, tail) = self.type_at(id)?;
            let unit = match header.kind {
                kind::PTR => POINTER_BYTES,
                kind::INT | kind::STRUCT | kind::UNION | kind::ENUM | kind::ENUM64 | kind::FLOAT => {
                    u64::from(header.size_or_type)
                }
                kind::ARRAY => {
                    let [element, elements] = [0, 8].map(|at| u32_at(tail, at).unwrap_or(0));
                    count = count
                        .checked_mul(u64::from(elements))
                        .ok_or(damaged("an array without end"))?;
                    id = element;
                    continue;
                }
                _ => return Err(damaged("a type that has no size")),
            };
            return count
                .checked_mul(unit)
                .and_then(|size| u32::try_from(size).ok())
                .ok_or(damaged("larger than 4 GiB"));
        }
        Err(damaged("arrays nested without end"))
    }

    /// The type behind typedefs and qualifiers.
    fn strip(&self, type_id: u32) -> Result<u32, BtfError> {
        let mut id = type_id;
        for _ in 0..MAX_CHAIN {
            let header = self.header(id)?;
            match header.kind {
                kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => {
                    id = header.size_or_type;
                }
                _ => return Ok(id),
            }
        }
        Err(BtfError::Damaged {
            id: type_id,
            why: "typedefs that never end",
        })
    }

    fn is_aggregate(&self, id: u32) -> Result<bool, BtfError> {
        Ok(matches!(self.header(id)?.kind, kind::STRUCT | kind::UNION))
    }

    /// Compilers before the kind flag described a bit field by an integer narrower than its bytes.
    fn is_partial_integer(&self, type_id: u32) -> Result<bool, BtfError> {
        let (header, tail) = self.type_at(self.strip(type_id)?)?;
        let encoding = u32_at(tail, 0).unwrap_or(0);
        let (bits, offset) = (encoding & 0xff, (encoding >> 16) & 0xff);
        Ok(header.kind == kind::INT && (offset != 0 || Some(bits) != header.size_or_type.checked_mul(8)))
    }

    fn header(&self, id: u32) -> Result<Header, BtfError> {
        Ok(self.type_at(id)?.0)
    }

    /// A type's header and all bytes from there to the end of the section. `void` (id 0) has kind 0.
    pub(super) fn type_at(&self, id: u32) -> Result<(Header, &'a [u8]), BtfError> {
        if id == 0 {
            let void = Header {
                name: 0,
                kind: 0,
                elements: 0,
                kind_flag: false,
                size_or_type: 0,
            };
            return Ok((void, &[]));
        }
        let nowhere = BtfError::Damaged {
            id,
            why: "a reference leads to no type",
        };
        let at = *self.starts.get(id as usize).ok_or(nowhere.clone())? as usize;
        let header = read_header(self.types, at).ok_or(nowhere)?;
        Ok((header, &self.types[at + TYPE_BYTES..]))
    }

    /// The string at an offset of the string section; empty where there is none.
    pub(super) fn string(&self, offset: u32) -> &'a [u8] {
        c_string(self.strings, offset)
    }
}

struct FoundMember {
    bits: u64,
    type_id: u32,
    bitfield: bool,
}
