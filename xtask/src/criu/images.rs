//! The part of CRIU's images that says which pages were written and what they hold.
//!
//! An image is two magic numbers and then records, each a 32-bit length and a protobuf message (CRIU's
//! `images/pagemap.proto`). The messages are decoded by the crate prost; what is written here are their field numbers.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use prost::Message;

use crate::workload::proc::PAGE;

/// `IMG_COMMON_MAGIC`, of every image since version 1.1.
const COMMON_MAGIC: u32 = 0x5456_4319;
/// `PAGEMAP_MAGIC`.
const PAGEMAP_MAGIC: u32 = 0x5608_4025;

/// `PE_PARENT`: the page is in the image before.
const IN_PARENT: u32 = 1 << 0;
/// `PE_PRESENT`: the page is in this image.
const PRESENT: u32 = 1 << 2;

#[derive(Clone, PartialEq, Message)]
struct PagemapHead {
    #[prost(uint32, required, tag = "1")]
    pages_id: u32,
}

#[derive(Clone, PartialEq, Message)]
struct PagemapEntry {
    #[prost(uint64, required, tag = "1")]
    vaddr: u64,
    /// Up to 4.1; later versions write the wider field 5.
    #[prost(uint32, optional, tag = "2")]
    pages_32: Option<u32>,
    /// Older versions say so here instead of in the flags.
    #[prost(bool, optional, tag = "3")]
    in_parent: Option<bool>,
    #[prost(uint32, optional, tag = "4")]
    flags: Option<u32>,
    #[prost(uint64, optional, tag = "5")]
    pages_64: Option<u64>,
}

/// Where a page of an image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The n-th page of this image's own file.
    Here(u64),
    /// Not written again: as in the image before.
    Parent,
}

/// The pages of one address space (or of one piece of shared memory) in one image.
#[derive(Clone, Debug, Default)]
pub struct Image {
    /// By address.
    pub pages: BTreeMap<u64, Place>,
    contents: PathBuf,
}

impl Image {
    /// Reads `pagemap-WHAT.img` of a folder.
    ///
    /// # Errors
    /// If it is missing or no such image.
    pub fn read(folder: &Path, what: &str) -> Result<Self> {
        let path = folder.join(format!("pagemap-{what}.img"));
        let bytes = fs::read(&path).with_context(|| path.display().to_string())?;
        let (pages_id, pages) = decode(&bytes).with_context(|| path.display().to_string())?;
        Ok(Self {
            pages,
            contents: folder.join(format!("pages-{pages_id}.img")),
        })
    }

    /// Addresses of the pages that were written into this image.
    pub fn written(&self) -> impl Iterator<Item = u64> {
        self.pages
            .iter()
            .filter(|(_, place)| matches!(place, Place::Here(_)))
            .map(|(address, _)| *address)
    }

    /// The first eight bytes of the n-th page of this image's own file.
    fn content(&self, at: u64) -> Result<u64> {
        let file = File::open(&self.contents).with_context(|| self.contents.display().to_string())?;
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, at * PAGE as u64)
            .with_context(|| format!("page {at} of {}", self.contents.display()))?;
        Ok(u64::from_ne_bytes(bytes))
    }
}

/// What a restore would put at the beginning of a page: its newest content in a chain of images, the newest first.
///
/// # Errors
/// If an image cannot be read, or if one refers to a page that the one before does not have.
pub fn restored(chain: &[Image], address: u64) -> Result<Option<u64>> {
    for (back, image) in chain.iter().enumerate() {
        match image.pages.get(&address) {
            Some(Place::Here(at)) => return image.content(*at).map(Some),
            Some(Place::Parent) => {}
            None if back == 0 => return Ok(None),
            None => bail!("page {address:#x} should be in the image before, which does not have it"),
        }
    }
    bail!("no image of the chain has page {address:#x}")
}

/// The id of the file with the contents, and the pages.
fn decode(bytes: &[u8]) -> Result<(u32, BTreeMap<u64, Place>)> {
    let mut rest = bytes;
    let magics = [number(&mut rest)?, number(&mut rest)?];
    ensure!(
        magics == [COMMON_MAGIC, PAGEMAP_MAGIC],
        "the magic numbers are {magics:#x?}"
    );
    let head = PagemapHead::decode(record(&mut rest)?)?;
    let mut pages = BTreeMap::new();
    let mut next = 0;
    while !rest.is_empty() {
        let entry = PagemapEntry::decode(record(&mut rest)?)?;
        let count = entry.pages_64.or(entry.pages_32.map(u64::from));
        let flags = entry.flags.unwrap_or(0);
        let parent = flags & IN_PARENT != 0 || entry.in_parent == Some(true);
        // Images from before the flags hold every page that is not in the parent.
        let present = flags & PRESENT != 0 || (entry.flags.is_none() && !parent);
        for page in 0..count.context("an entry without a number of pages")? {
            let address = entry.vaddr + page * PAGE as u64;
            let place = match (present, parent) {
                (true, false) => {
                    next += 1;
                    Place::Here(next - 1)
                }
                (false, true) => Place::Parent,
                other => bail!("page {address:#x} has the flags {flags:#x} {other:?}"),
            };
            ensure!(
                pages.insert(address, place).is_none(),
                "page {address:#x} comes twice"
            );
        }
    }
    Ok((head.pages_id, pages))
}

fn number(rest: &mut &[u8]) -> Result<u32> {
    let (bytes, after) = rest.split_first_chunk().context("the image ends too early")?;
    *rest = after;
    Ok(u32::from_le_bytes(*bytes))
}

fn record<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8]> {
    let length = usize::try_from(number(rest)?)?;
    let (bytes, after) = rest
        .split_at_checked(length)
        .context("the image ends too early")?;
    *rest = after;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The beginning of an image that CRIU 4.1.1 wrote.
    const REAL: &[u8] = &[
        0x19, 0x43, 0x56, 0x54, 0x25, 0x40, 0x08, 0x56, 0x02, 0, 0, 0, 0x08, 0x01, 0x09, 0, 0, 0, 0x08, 0x80,
        0xa0, 0x80, 0x02, 0x10, 0x01, 0x20, 0x04, 0x09, 0, 0, 0, 0x08, 0x80, 0xa0, 0xfc, 0x02, 0x10, 0x03,
        0x20, 0x01,
    ];

    #[test]
    fn a_real_image_is_read() {
        let (id, pages) = decode(REAL).unwrap();
        assert_eq!(id, 1);
        let expected = [
            (0x40_1000, Place::Here(0)),
            (0x5f_1000, Place::Parent),
            (0x5f_2000, Place::Parent),
            (0x5f_3000, Place::Parent),
        ];
        assert_eq!(pages.into_iter().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn what_is_cut_or_something_else_is_refused() {
        for cut in [3, 7, 10, 13, 20, REAL.len() - 1] {
            assert!(decode(&REAL[..cut]).is_err(), "{cut}");
        }
        let mut other = REAL.to_vec();
        other[4] = 0;
        assert!(decode(&other).is_err());
    }

    #[test]
    fn a_restore_takes_the_newest_content() {
        let folder = tempfile::tempdir().unwrap();
        let image = |name: &str, pages: &[(u64, Place)], content: u64| {
            let contents = folder.path().join(name);
            fs::write(&contents, [&content.to_ne_bytes()[..], &[0; PAGE - 8]].concat()).unwrap();
            Image {
                pages: pages.iter().copied().collect(),
                contents,
            }
        };
        let older = image("older", &[(0x1000, Place::Here(0))], 7);
        let newer = image("newer", &[(0x1000, Place::Parent), (0x2000, Place::Parent)], 8);
        let newest = image("newest", &[(0x1000, Place::Here(0))], 9);
        let chain = [newer, older];
        assert_eq!(restored(&chain, 0x1000).unwrap(), Some(7));
        assert_eq!(restored(&chain, 0x3000).unwrap(), None);
        assert!(restored(&chain, 0x2000).is_err(), "a hole");
        let [newer, older] = chain;
        assert_eq!(restored(&[newest, newer, older], 0x1000).unwrap(), Some(9));
    }
}
