//! Cuts a kernel's BTF down to the types that the layout needs, so that the layouts of many kernels can be
//! committed as test fixtures of a few kilobytes. Offsets, sizes, nesting and names stay as they are; members,
//! enumerators and types that nobody asks for go.

use std::collections::{HashMap, HashSet};

use super::build::{Builder, info};
use super::raw::u32_at;
use super::{Btf, BtfError, kind};
use crate::kernel::layout;

/// Cuts BTF down to what [`layout::Layout::resolve`] looks at. The layout of the result is that of the whole.
///
/// # Errors
/// If the BTF cannot be read.
pub fn cut(bytes: &[u8]) -> Result<Vec<u8>, BtfError> {
    let btf = Btf::parse(bytes, layout::wanted_names())?;
    let mut cutter = Cutter {
        btf: &btf,
        kept: HashSet::new(),
        ids: HashMap::new(),
        queue: Vec::new(),
    };
    for path in layout::wanted_paths() {
        let mut members = path.split('.');
        let roots = btf.named(members.next().unwrap_or_default())?.aggregates.clone();
        for root in roots {
            cutter.new_id(Item::Whole(root));
            let mut holder = root;
            for member in members.clone() {
                let Some(type_id) = cutter.keep_member(holder, member)? else {
                    break;
                };
                holder = btf.strip(type_id)?;
            }
        }
    }
    let wanted: HashSet<&str> = layout::wanted_names().collect();
    let id_beyond_last = btf.starts.len();
    for id in 1..id_beyond_last {
        let id = u32::try_from(id).unwrap_or(u32::MAX);
        let (header, _) = btf.type_at(id)?;
        let is_wanted = |name| std::str::from_utf8(btf.string(name)).is_ok_and(|name| wanted.contains(name));
        let keep = match header.kind {
            kind::FUNC => is_wanted(header.name),
            kind::ENUM | kind::ENUM64 => cutter.elements(id)?.iter().any(|entry| is_wanted(entry[0])),
            _ => false,
        };
        if keep {
            cutter.new_id(Item::Whole(id));
        }
    }
    cutter.write(&wanted)
}

/// One type of the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Item {
    /// This type of the original, with what is wanted of its members.
    Whole(u32),
    /// Only the name of this struct or union, for pointers to it.
    Forward(u32),
}

struct Cutter<'b, 'a> {
    btf: &'b Btf<'a>,
    /// Wanted members, by struct and index.
    kept: HashSet<(u32, usize)>,
    /// New ids, which are positions in the queue plus 1.
    ids: HashMap<Item, u32>,
    queue: Vec<Item>,
}

impl Cutter<'_, '_> {
    /// Marks a member and the anonymous structs on the way to it; returns its type.
    fn keep_member(&mut self, aggregate: u32, name: &str) -> Result<Option<u32>, BtfError> {
        for (index, entry) in self.elements(aggregate)?.into_iter().enumerate() {
            let [member_name, type_id, _] = entry[..] else {
                continue;
            };
            let found = match self.btf.string(member_name) {
                found if found == name.as_bytes() => Some(type_id),
                [] => {
                    let inner = self.btf.strip(type_id)?;
                    if self.btf.is_aggregate(inner)? {
                        self.keep_member(inner, name)?
                    } else {
                        None
                    }
                }
                _ => None,
            };
            if found.is_some() {
                self.kept.insert((aggregate, index));
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// The elements of a type as words.
    fn elements(&self, id: u32) -> Result<Vec<Vec<u32>>, BtfError> {
        let (header, tail) = self.btf.type_at(id)?;
        let bytes = match header.kind {
            kind::STRUCT | kind::UNION | kind::ENUM64 => 12,
            kind::ENUM | kind::FUNC_PROTO => 8,
            _ => return Ok(Vec::new()),
        };
        Ok(tail
            .chunks_exact(bytes)
            .take(header.elements)
            .map(words)
            .collect())
    }

    fn new_id(&mut self, item: Item) -> u32 {
        if let Some(&id) = self.ids.get(&item) {
            return id;
        }
        self.queue.push(item);
        let id = u32::try_from(self.queue.len()).unwrap_or(u32::MAX);
        self.ids.insert(item, id);
        id
    }

    fn new_type(&mut self, id: u32) -> u32 {
        if id == 0 { 0 } else { self.new_id(Item::Whole(id)) }
    }

    fn write(mut self, wanted: &HashSet<&str>) -> Result<Vec<u8>, BtfError> {
        let mut builder = Builder::default();
        let mut next = 0;
        while let Some(&item) = self.queue.get(next) {
            match item {
                Item::Whole(id) => self.write_type(&mut builder, id, wanted)?,
                Item::Forward(id) => {
                    let (header, _) = self.btf.type_at(id)?;
                    let is_union = header.kind == kind::UNION;
                    builder.push(self.btf.string(header.name), info(kind::FWD, 0, is_union), 0, &[]);
                }
            }
            next += 1;
        }
        Ok(builder.finish())
    }

    fn write_type(&mut self, builder: &mut Builder, id: u32, wanted: &HashSet<&str>) -> Result<(), BtfError> {
        let (header, tail) = self.btf.type_at(id)?;
        let name = self.btf.string(header.name);
        let same_info = info(header.kind, header.elements, header.kind_flag);
        match header.kind {
            kind::INT => {
                builder.push(name, same_info, header.size_or_type, &words(&tail[..4]));
            }
            kind::PTR => {
                let target = self.btf.strip(header.size_or_type)?;
                let (pointed, _) = self.btf.type_at(target)?;
                let has_name = !self.btf.string(pointed.name).is_empty();
                let target = match pointed.kind {
                    kind::STRUCT | kind::UNION if has_name => self.new_id(Item::Forward(target)),
                    kind::FWD => self.new_type(target),
                    _ => 0,
                };
                builder.push(name, same_info, target, &[]);
            }
            kind::ARRAY => {
                let [element, index, count] = words(&tail[..12])[..] else {
                    return Ok(());
                };
                let new = [self.new_type(element), self.new_type(index), count];
                builder.push(name, same_info, header.size_or_type, &new);
            }
            kind::STRUCT | kind::UNION => {
                let mut members = Vec::new();
                for (index, entry) in self.elements(id)?.into_iter().enumerate() {
                    if self.kept.contains(&(id, index)) {
                        members.extend([
                            builder.string(self.btf.string(entry[0])),
                            self.new_type(entry[1]),
                            entry[2],
                        ]);
                    }
                }
                let info = info(header.kind, members.len() / 3, header.kind_flag);
                builder.push(name, info, header.size_or_type, &members);
            }
            kind::ENUM | kind::ENUM64 => {
                let mut values = Vec::new();
                let mut count = 0;
                for entry in self.elements(id)? {
                    let name = self.btf.string(entry[0]);
                    if std::str::from_utf8(name).is_ok_and(|name| wanted.contains(name)) {
                        values.push(builder.string(name));
                        values.extend_from_slice(&entry[1..]);
                        count += 1;
                    }
                }
                builder.push(
                    name,
                    info(header.kind, count, header.kind_flag),
                    header.size_or_type,
                    &values,
                );
            }
            kind::FUNC_PROTO => {
                let mut parameters = Vec::new();
                for entry in self.elements(id)? {
                    parameters.push(builder.string(self.btf.string(entry[0])));
                    parameters.push(self.new_type(entry[1]));
                }
                let returned = self.new_type(header.size_or_type);
                builder.push(name, same_info, returned, &parameters);
            }
            kind::FWD | kind::FLOAT => {
                builder.push(name, same_info, header.size_or_type, &[]);
            }
            // Typedefs, qualifiers, tags of types, functions: a header that points to another type.
            _ => {
                let new = self.new_type(header.size_or_type);
                builder.push(name, same_info, new, &[]);
            }
        }
        Ok(())
    }
}

fn words(bytes: &[u8]) -> Vec<u32> {
    (0..bytes.len() / 4)
        .map(|word| u32_at(bytes, word * 4).unwrap_or(0))
        .collect()
}
