//! Writes BTF: for the cut-down kernels that are test fixtures, and for tests of the reader.

use std::collections::HashMap;

/// BTF that is being written, type by type.
#[derive(Debug)]
pub(crate) struct Builder {
    types: Vec<u8>,
    strings: Vec<u8>,
    known_strings: HashMap<Vec<u8>, u32>,
    last_id: u32,
}

impl Default for Builder {
    fn default() -> Self {
        // The empty string comes first, and stands for "no name".
        let known_strings = HashMap::from([(Vec::new(), 0)]);
        Self {
            types: Vec::new(),
            strings: vec![0],
            known_strings,
            last_id: 0,
        }
    }
}

impl Builder {
    /// The offset of a string, written once however often it is used.
    pub fn string(&mut self, text: &[u8]) -> u32 {
        if let Some(&offset) = self.known_strings.get(text) {
            return offset;
        }
        let offset = u32::try_from(self.strings.len()).expect("a fixture is far below 4 GiB");
        self.strings.extend_from_slice(text);
        self.strings.push(0);
        self.known_strings.insert(text.to_vec(), offset);
        offset
    }

    /// Writes one type and returns its id. `info` is as in `struct btf_type`; `tail` is what follows it.
    pub fn push(&mut self, name: &[u8], info: u32, size_or_type: u32, tail: &[u32]) -> u32 {
        let name = self.string(name);
        for word in [name, info, size_or_type].iter().chain(tail) {
            self.types.extend_from_slice(&word.to_le_bytes());
        }
        self.last_id += 1;
        self.last_id
    }

    /// The finished BTF.
    pub fn finish(self) -> Vec<u8> {
        let [types, strings] = [&self.types, &self.strings]
            .map(|section| u32::try_from(section.len()).expect("a fixture is far below 4 GiB"));
        let mut bytes = vec![0x9f, 0xeb, 1, 0];
        for word in [24, 0, types, types, strings] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes.extend(self.types);
        bytes.extend(self.strings);
        bytes
    }
}

/// The `info` word of a type.
pub(crate) fn info(kind: u32, elements: usize, kind_flag: bool) -> u32 {
    let elements = u32::try_from(elements).expect("a count of elements has 24 bits");
    (u32::from(kind_flag) << 31) | (kind << 24) | elements
}
