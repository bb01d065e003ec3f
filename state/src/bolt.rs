//! Writes a database file in the format of bbolt, which etcd keeps its data in: so that what leaves this store can be opened
//! by etcd's own tools, and an etcd be started from it.
//!
//! Written once and in order, with nothing in memory but one page of each level of a tree. The format: pages of one size, two
//! of them with meta data at the start, a free list, and B+ trees whose branch pages have the first key of each child. Numbers
//! are little endian. <https://github.com/etcd-io/bbolt>, `internal/common`.

use std::io::{self, Seek, SeekFrom, Write};

/// Bytes of a page.
pub const PAGE: usize = 4096;
const HEAD: usize = 16;
const ELEMENT: usize = 16;

const BRANCH: u16 = 0x01;
const LEAF: u16 = 0x02;
const META: u16 = 0x04;
const FREE_LIST: u16 = 0x10;
/// Flag of an element whose value is a bucket.
const BUCKET: u32 = 1;

const MAGIC: u32 = 0xED0C_DAED;
const FORMAT: u32 = 2;

struct Element {
    key: Vec<u8>,
    /// Of a leaf.
    value: Vec<u8>,
    flags: u32,
    /// Of a branch.
    child: u64,
}

impl Element {
    fn bytes(&self) -> usize {
        ELEMENT + self.key.len() + self.value.len()
    }
}

/// One page while it fills.
#[derive(Default)]
struct Filling {
    elements: Vec<Element>,
    bytes: usize,
}

impl Filling {
    fn fits(&self, element: &Element) -> bool {
        self.elements.is_empty() || HEAD + self.bytes + element.bytes() <= PAGE
    }

    fn add(&mut self, element: Element) {
        self.bytes += element.bytes();
        self.elements.push(element);
    }
}

/// Writes pages one after the other.
pub struct BoltWriter<W> {
    out: W,
    pages: u64,
    buckets: Vec<(Vec<u8>, u64)>,
}

/// A bucket while it is written.
pub struct Tree {
    leaf: Filling,
    /// Branches, from the one above the leaves up.
    levels: Vec<Filling>,
    last: Option<Vec<u8>>,
}

fn too_large(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidInput,
        format!("{what} is too large for a bbolt page"),
    )
}

fn number32(number: usize) -> io::Result<u32> {
    u32::try_from(number).map_err(|_| too_large("a key or value"))
}

impl<W: Write + Seek> BoltWriter<W> {
    /// Starts a file; `out` must be empty.
    pub fn new(mut out: W) -> io::Result<Self> {
        // The meta pages are written when everything else is in its place.
        out.write_all(&[0; 2 * PAGE])?;
        Ok(Self {
            out,
            pages: 2,
            buckets: Vec::new(),
        })
    }

    /// A page, with as many further ones as its content needs.
    fn page(&mut self, flags: u16, elements: &[Element]) -> io::Result<u64> {
        let content: usize = elements.iter().map(Element::bytes).sum();
        let pages = (HEAD + content).div_ceil(PAGE);
        let mut page = Vec::with_capacity(pages * PAGE);
        page.extend_from_slice(&self.pages.to_le_bytes());
        page.extend_from_slice(&flags.to_le_bytes());
        let count = u16::try_from(elements.len()).map_err(|_| too_large("a page"))?;
        page.extend_from_slice(&count.to_le_bytes());
        page.extend_from_slice(&number32(pages - 1)?.to_le_bytes());
        // Where the bytes of an element are, counted from the element's own place.
        let mut data = elements.len() * ELEMENT;
        for (at, element) in elements.iter().enumerate() {
            let position = number32(data - at * ELEMENT)?.to_le_bytes();
            let key = number32(element.key.len())?.to_le_bytes();
            if flags == LEAF {
                page.extend_from_slice(&element.flags.to_le_bytes());
                page.extend_from_slice(&position);
                page.extend_from_slice(&key);
                page.extend_from_slice(&number32(element.value.len())?.to_le_bytes());
            } else {
                page.extend_from_slice(&position);
                page.extend_from_slice(&key);
                page.extend_from_slice(&element.child.to_le_bytes());
            }
            data += element.key.len() + element.value.len();
        }
        for element in elements {
            page.extend_from_slice(&element.key);
            page.extend_from_slice(&element.value);
        }
        page.resize(pages * PAGE, 0);
        self.out.write_all(&page)?;
        let id = self.pages;
        self.pages += pages as u64;
        Ok(id)
    }

    /// Begins a bucket.
    pub fn tree(&self) -> Tree {
        Tree {
            leaf: Filling::default(),
            levels: Vec::new(),
            last: None,
        }
    }

    /// Ends a bucket.
    pub fn bucket(&mut self, name: &str, tree: Tree) -> io::Result<()> {
        let root = tree.finish(self)?;
        self.buckets.push((name.as_bytes().to_vec(), root));
        Ok(())
    }

    /// Ends the file. Answers its writer, at its end, and its length.
    pub fn finish(mut self) -> io::Result<(W, u64)> {
        let mut buckets = std::mem::take(&mut self.buckets);
        buckets.sort();
        let mut top = self.tree();
        for (name, root) in buckets {
            // Root page and sequence.
            let head = [root.to_le_bytes(), 0u64.to_le_bytes()].concat();
            top.add(&mut self, &name, head, BUCKET)?;
        }
        let root = top.finish(&mut self)?;
        let free_list = self.page(FREE_LIST, &[])?;
        let end = self.pages;
        self.out.seek(SeekFrom::Start(0))?;
        for txid in 0..2u64 {
            let mut page = Vec::with_capacity(PAGE);
            page.extend_from_slice(&txid.to_le_bytes());
            page.extend_from_slice(&META.to_le_bytes());
            page.resize(HEAD, 0);
            for number in [MAGIC, FORMAT, number32(PAGE)?, 0] {
                page.extend_from_slice(&number.to_le_bytes());
            }
            for number in [root, 0, free_list, end, txid] {
                page.extend_from_slice(&number.to_le_bytes());
            }
            let sum = fnv1a(&page[HEAD..]);
            page.extend_from_slice(&sum.to_le_bytes());
            page.resize(PAGE, 0);
            self.out.write_all(&page)?;
        }
        self.out.seek(SeekFrom::End(0))?;
        Ok((self.out, end * PAGE as u64))
    }
}

fn fnv1a(bytes: &[u8]) -> u64 {
    let step = |sum: u64, byte: &u8| (sum ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

impl Tree {
    /// Adds a key; keys must ascend.
    pub fn push<W: Write + Seek>(&mut self, out: &mut BoltWriter<W>, key: &[u8], value: Vec<u8>) -> io::Result<()> {
        self.add(out, key, value, 0)
    }

    fn add<W: Write + Seek>(
        &mut self,
        out: &mut BoltWriter<W>,
        key: &[u8],
        value: Vec<u8>,
        flags: u32,
    ) -> io::Result<()> {
        if self.last.as_deref().is_some_and(|last| last >= key) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "keys of a bucket must ascend",
            ));
        }
        self.last = Some(key.to_vec());
        let element = Element {
            key: key.to_vec(),
            value,
            flags,
            child: 0,
        };
        if !self.leaf.fits(&element) {
            let full = std::mem::take(&mut self.leaf);
            self.flush(out, 0, LEAF, &full)?;
        }
        self.leaf.add(element);
        Ok(())
    }

    /// Writes a full page and notes it in the branch of `level`.
    fn flush<W: Write + Seek>(
        &mut self,
        out: &mut BoltWriter<W>,
        level: usize,
        flags: u16,
        full: &Filling,
    ) -> io::Result<()> {
        let child = out.page(flags, &full.elements)?;
        let key = full.elements.first().map(|first| first.key.clone()).unwrap_or_default();
        if self.levels.len() == level {
            self.levels.push(Filling::default());
        }
        let element = Element {
            key,
            value: Vec::new(),
            flags: 0,
            child,
        };
        if !self.levels[level].fits(&element) {
            let full = std::mem::take(&mut self.levels[level]);
            self.flush(out, level + 1, BRANCH, &full)?;
        }
        self.levels[level].add(element);
        Ok(())
    }

    /// Writes what is left; answers the root.
    fn finish<W: Write + Seek>(mut self, out: &mut BoltWriter<W>) -> io::Result<u64> {
        let leaf = std::mem::take(&mut self.leaf);
        if self.levels.is_empty() {
            return out.page(LEAF, &leaf.elements);
        }
        self.flush(out, 0, LEAF, &leaf)?;
        let mut level = 0;
        loop {
            let filled = std::mem::take(&mut self.levels[level]);
            if level + 1 == self.levels.len() {
                return out.page(BRANCH, &filled.elements);
            }
            self.flush(out, level + 1, BRANCH, &filled)?;
            level += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    fn word(page: &[u8], at: usize, bytes: usize) -> u64 {
        let mut out = [0; 8];
        out[..bytes].copy_from_slice(&page[at..at + bytes]);
        u64::from_le_bytes(out)
    }

    /// All keys and values below a page, in order: a reader of the format that shares nothing with the writer.
    fn read(file: &[u8], page: u64, out: &mut Vec<(Vec<u8>, Vec<u8>)>) -> usize {
        let start = usize::try_from(page).unwrap() * PAGE;
        assert_eq!(word(file, start, 8), page);
        let (flags, count) = (word(file, start + 8, 2), word(file, start + 10, 2));
        let mut depth = 1;
        for n in 0..usize::try_from(count).unwrap() {
            let at = start + HEAD + n * ELEMENT;
            let field = |offset, bytes| usize::try_from(word(file, at + offset, bytes)).unwrap();
            if flags == u64::from(LEAF) {
                let (key, value) = (at + field(4, 4), field(8, 4));
                let end = key + value + field(12, 4);
                out.push((file[key..key + value].to_vec(), file[key + value..end].to_vec()));
            } else {
                assert_eq!(flags, u64::from(BRANCH));
                let (key, len) = (at + field(0, 4), field(4, 4));
                let first = out.len();
                depth = depth.max(1 + read(file, word(file, at + 8, 8), out));
                assert_eq!(
                    out[first].0,
                    file[key..key + len],
                    "a branch has the first key of each child"
                );
            }
        }
        depth
    }

    fn written(items: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
        let mut writer = BoltWriter::new(Cursor::new(Vec::new())).unwrap();
        let mut tree = writer.tree();
        for (key, value) in items {
            tree.push(&mut writer, key, value.clone()).unwrap();
        }
        writer.bucket("things", tree).unwrap();
        let empty = writer.tree();
        writer.bucket("a", empty).unwrap();
        let (out, length) = writer.finish().unwrap();
        let file = out.into_inner();
        assert_eq!(file.len() as u64, length);
        file
    }

    #[test]
    fn what_goes_in_comes_out_at_any_size() {
        for (count, deep) in [(0, 1), (1, 1), (50, 1), (5_000, 2), (60_000, 3)] {
            let item = |n: usize| {
                let size = if n.is_multiple_of(997) { 3 * PAGE } else { n % 60 };
                (format!("key-{n:08}").into_bytes(), vec![b'v'; size])
            };
            let items: Vec<_> = (0..count).map(item).collect();
            let file = written(&items);
            for meta in 0..2 {
                let at = meta * PAGE + HEAD;
                assert_eq!(word(&file, at, 4), u64::from(MAGIC));
                assert_eq!(word(&file, at + 56, 8), fnv1a(&file[at..at + 56]));
                assert_eq!(word(&file, at + 40, 8), (file.len() / PAGE) as u64);
            }
            let mut buckets = Vec::new();
            read(&file, word(&file, PAGE + HEAD + 16, 8), &mut buckets);
            let names: Vec<_> = buckets.iter().map(|(name, _)| name.as_slice()).collect();
            assert_eq!(names, [b"a".as_slice(), b"things"]);
            let mut found = Vec::new();
            let depth = read(&file, word(&buckets[1].1, 0, 8), &mut found);
            assert_eq!(found, items);
            assert!(depth >= deep, "{count} items in {depth} levels");
        }
    }

    #[test]
    fn keys_out_of_order_are_refused() {
        let mut writer = BoltWriter::new(Cursor::new(Vec::new())).unwrap();
        let mut tree = writer.tree();
        tree.push(&mut writer, b"b", Vec::new()).unwrap();
        assert!(tree.push(&mut writer, b"b", Vec::new()).is_err());
        assert!(tree.push(&mut writer, b"a", Vec::new()).is_err());
    }
}
