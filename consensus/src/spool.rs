//! Where a snapshot arrives: chunk by chunk in a file, of which nothing is installed before all of it is there and checked.
//!
//! The file of a transfer that comes in bears the transfer's number, so that it goes on where it was after a break, even over a
//! restart of this server. Once sum and end are checked and the file is durable it waits, whole, for its installation; from its
//! beginning on it is the promise that an installation which a crash cut short is done again at the next start.

use crate::codec::{self, pb};
use crate::error::{CodecError, ConsensusError};
use crate::high_water::sync_dir;
use crate::meters::SnapshotMeters;
use crate::snapshot_form::{Sum, chunk_sum, family, ranges};
use crate::types::{GroupId, group_name};
use bytes::Bytes;
use hanse_state::StoreError;
use hanse_state::engine::{SharedEngine, WriteBatch};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Largest chunk that is accepted: a chunk and one row of the largest request.
const MAX_CHUNK_BYTES: usize = 4 * 1024 * 1024;
/// Bytes before each chunk in a file: its length.
const LENGTH_BYTES: u64 = 4;

fn file_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ConsensusError {
    let path = path.display().to_string();
    move |source| ConsensusError::File { what, path, source }
}

fn senseless<T>(what: &'static str, fault: String) -> Result<T, ConsensusError> {
    Err(CodecError::Invalid { what, fault }.into())
}

/// Where received snapshots of a group lie.
#[derive(Clone, Debug)]
pub struct Spool {
    group: GroupId,
    dir: PathBuf,
    meters: Arc<SnapshotMeters>,
}

impl Spool {
    /// In `dir`, which must exist.
    pub fn new(dir: &Path, group: GroupId) -> Self {
        Self {
            group,
            dir: dir.to_owned(),
            meters: Arc::default(),
        }
    }

    /// What is counted of the group's snapshots.
    pub fn meters(&self) -> &Arc<SnapshotMeters> {
        &self.meters
    }

    fn name(&self, ending: &str) -> String {
        format!("snapshot-{}.{ending}", group_name(self.group))
    }

    fn path(&self, ending: &str) -> PathBuf {
        self.dir.join(self.name(ending))
    }

    /// Of a transfer that comes in. Its number is in its name: what is there of another one is never taken for it.
    fn part(&self, transfer: u64) -> PathBuf {
        self.path(&format!("part-{transfer:016x}"))
    }

    /// Removes the files whose ending begins so.
    fn clean(&self, ending: &str) -> Result<(), ConsensusError> {
        let begin = self.name(ending);
        for entry in fs::read_dir(&self.dir).map_err(file_error("list", &self.dir))? {
            let path = entry.map_err(file_error("list", &self.dir))?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            if name.is_some_and(|name| name.starts_with(&begin)) {
                fs::remove_file(&path).map_err(file_error("remove", &path))?;
            }
        }
        Ok(())
    }

    /// Begins to receive. What came in of another transfer, or before of this one, is dropped.
    pub fn receive(&self, transfer: u64) -> Result<Incoming, ConsensusError> {
        self.clean("part")?;
        let path = self.part(transfer);
        let file = File::create(&path).map_err(file_error("create", &path))?;
        Ok(self.incoming(path, file))
    }

    fn incoming(&self, path: PathBuf, file: File) -> Incoming {
        Incoming {
            file: BufWriter::new(file),
            path,
            sum: Sum::new(),
            bytes: 0,
            broken: false,
            meters: Arc::clone(&self.meters),
        }
    }

    /// A complete snapshot whose installation was cut short. For the start of a server: one that was complete but not being
    /// installed is dropped, since nobody knows any more what it is.
    pub fn unfinished(&self) -> Result<Option<Spooled>, ConsensusError> {
        self.clean("whole")?;
        let path = self.path("install");
        let found = path.exists();
        Ok(found.then_some(Spooled { path, keep: true }))
    }

    /// Makes a received snapshot the one that is being installed.
    fn promote(&self, mut spooled: Spooled) -> Result<Spooled, ConsensusError> {
        let path = self.path("install");
        if spooled.path != path {
            fs::rename(&spooled.path, &path).map_err(file_error("rename", &spooled.path))?;
            spooled.keep = true;
            sync_dir(&path).map_err(file_error("sync", &path))?;
        }
        Ok(Spooled { path, keep: true })
    }

    /// Replaces the group's rows in the engine by those of `spooled`. Must run while nobody reads the state. May be repeated.
    pub fn install(&self, spooled: Spooled, engine: &SharedEngine) -> Result<(), ConsensusError> {
        let _under_way = self.meters.installing.begin();
        let spooled = self.promote(spooled)?;
        let mut batch = WriteBatch::new();
        for (cf, from, to) in ranges(self.group) {
            batch.delete_range(cf, from, to);
        }
        engine.write(batch, false).map_err(StoreError::from)?;
        spooled.for_each(|chunk| {
            self.meters.installed_bytes.add(chunk.len() as u64);
            let mut batch = WriteBatch::new();
            for row in codec::decode::<pb::SnapshotChunk>("snapshot chunk", chunk)?.rows {
                batch.put(family(row.family)?, row.key, row.value);
            }
            engine.write(batch, false).map_err(StoreError::from)?;
            Ok(())
        })?;
        engine.sync().map_err(StoreError::from)?;
        self.meters.installed.add(1);
        fs::remove_file(&spooled.path).map_err(file_error("remove", &spooled.path))?;
        sync_dir(&spooled.path).map_err(file_error("sync", &spooled.path))
    }
}

/// A snapshot that is being received.
pub struct Incoming {
    file: BufWriter<File>,
    path: PathBuf,
    sum: Sum,
    bytes: u64,
    /// A write failed, so the file holds an unknown part of a chunk.
    broken: bool,
    meters: Arc<SnapshotMeters>,
}

/// How far a transfer is that comes in, or broke off.
pub struct Half {
    transfer: u64,
    incoming: Incoming,
}

impl Half {
    /// Begins the transfer of `head` in `place`, or goes on with what is there of it. None: it is not held as far as the head says.
    pub fn of<'a>(
        spool: &Spool,
        head: &pb::SnapshotHead,
        place: &'a mut Option<Self>,
    ) -> Result<Option<&'a mut Incoming>, ConsensusError> {
        let transfer = head.transfer;
        if head.from == 0 {
            // First: what it has not written yet would go into the new file, which may have the same name.
            drop(place.take());
            let incoming = spool.receive(transfer)?;
            return Ok(Some(&mut place.insert(Self { transfer, incoming }).incoming));
        }
        let held = place.as_mut().filter(|half| half.has(transfer) == head.from);
        Ok(held.map(|half| &mut half.incoming))
    }

    /// What came in of a transfer before this server was restarted: as many whole chunks as the file begins with. That they are
    /// the right ones the sum over all of them shows, at the end.
    pub fn found(spool: &Spool, transfer: u64) -> Result<Option<Self>, ConsensusError> {
        let path = spool.part(transfer);
        if transfer == 0 || !path.exists() {
            return Ok(None);
        }
        let opened = OpenOptions::new().read(true).write(true).open(&path);
        let file = opened.map_err(file_error("open", &path))?;
        let copy = file.try_clone().map_err(file_error("open", &path))?;
        let mut incoming = spool.incoming(path, file);
        let mut reader = BufReader::new(copy);
        let mut length = 0;
        // A chunk that cannot be read ends what is usable: it comes in once more.
        while let Ok(Some(chunk)) = next_chunk(&mut reader, &incoming.path) {
            length += LENGTH_BYTES + chunk.len() as u64;
            incoming.took(&chunk);
        }
        let file = incoming.file.get_mut();
        let cut = file.set_len(length).and_then(|()| file.seek(SeekFrom::Start(length)));
        cut.map_err(file_error("shorten", &incoming.path))?;
        Ok(Some(Self { transfer, incoming }))
    }

    /// Whole chunks of a transfer.
    pub fn has(&self, transfer: u64) -> u64 {
        let usable = transfer != 0 && self.transfer == transfer && !self.incoming.broken;
        if usable { self.incoming.sum.chunks } else { 0 }
    }

    /// What came in, when nothing more is to come.
    pub fn into_incoming(self) -> Incoming {
        self.incoming
    }
}

impl Incoming {
    /// The next chunk, with its sum; 0: an older sender gave none. A damaged one is refused and changes nothing.
    pub fn add(&mut self, chunk: &[u8], sum: u64) -> Result<(), ConsensusError> {
        if chunk.is_empty() || chunk.len() > MAX_CHUNK_BYTES {
            return senseless("snapshot", format!("a chunk of {} bytes", chunk.len()));
        }
        if sum != 0 && sum != chunk_sum(chunk) {
            return senseless("snapshot", format!("chunk {} does not match its sum", self.sum.chunks));
        }
        let length = u32::try_from(chunk.len()).unwrap_or(u32::MAX).to_be_bytes();
        let written = self.file.write_all(&length).and_then(|()| self.file.write_all(chunk));
        self.broken |= written.is_err();
        written.map_err(file_error("write", &self.path))?;
        self.took(chunk);
        self.meters.received_bytes.add(chunk.len() as u64);
        Ok(())
    }

    fn took(&mut self, chunk: &[u8]) {
        self.sum.add(chunk);
        self.bytes += chunk.len() as u64;
        self.meters.held_bytes.store(self.bytes, Ordering::Relaxed);
    }

    /// Checks the sum and makes the file durable. What does not match its sum is dropped: it is of no use to go on with.
    pub fn finish(self, tail: &pb::SnapshotTail) -> Result<Spooled, ConsensusError> {
        if self.sum.tail() != *tail {
            fs::remove_file(&self.path).map_err(file_error("remove", &self.path))?;
            return senseless("snapshot", "its sum does not match its content".to_owned());
        }
        let Self { file, path, .. } = self;
        let file = file
            .into_inner()
            .map_err(|error| file_error("write", &path)(error.into_error()))?;
        file.sync_all().map_err(file_error("sync", &path))?;
        // Another name: what arrives next leaves alone what waits for its installation.
        let name = path.to_string_lossy().replace(".part-", ".whole-");
        fs::rename(&path, &name).map_err(file_error("rename", &path))?;
        Ok(Spooled {
            path: name.into(),
            keep: false,
        })
    }
}

/// A complete snapshot in a file.
#[derive(Debug)]
pub struct Spooled {
    path: PathBuf,
    /// It is being installed. If it is not, and is not wanted any more, its file goes.
    keep: bool,
}

impl Drop for Spooled {
    fn drop(&mut self) {
        if !self.keep
            && let Err(error) = fs::remove_file(&self.path)
        {
            let path = self.path.display();
            tracing::warn!(%path, %error, "a snapshot that is not wanted could not be removed");
        }
    }
}

impl Spooled {
    fn for_each(&self, mut each: impl FnMut(Bytes) -> Result<(), ConsensusError>) -> Result<(), ConsensusError> {
        let file = File::open(&self.path).map_err(file_error("open", &self.path))?;
        let mut file = BufReader::new(file);
        while let Some(chunk) = next_chunk(&mut file, &self.path)? {
            each(chunk.into())?;
        }
        Ok(())
    }
}

/// The next chunk of a file; none at its end.
fn next_chunk(file: &mut impl Read, path: &Path) -> Result<Option<Vec<u8>>, ConsensusError> {
    let mut length = [0; LENGTH_BYTES as usize];
    match file.read_exact(&mut length) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(file_error("read", path)(error)),
    }
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if length == 0 || length > MAX_CHUNK_BYTES {
        return senseless("snapshot file", format!("a chunk of {length} bytes"));
    }
    let mut chunk = vec![0; length];
    file.read_exact(&mut chunk).map_err(file_error("read", path))?;
    Ok(Some(chunk))
}

#[cfg(test)]
mod tests {
    use super::*;
    use hanse_state::engine::{Cf, MemoryEngine};

    const CHUNKS: [&[u8]; 3] = [b"first", b"second", b"third"];

    fn files(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn tail() -> pb::SnapshotTail {
        let mut sum = Sum::new();
        CHUNKS.iter().for_each(|chunk| sum.add(chunk));
        sum.tail()
    }

    /// A transfer that broke off after two chunks, when its server died: what is in its file.
    fn broken_off(spool: &Spool, transfer: u64) -> PathBuf {
        let mut incoming = spool.receive(transfer).unwrap();
        for chunk in &CHUNKS[..2] {
            incoming.add(chunk, chunk_sum(chunk)).unwrap();
        }
        incoming.path.clone()
    }

    #[test]
    fn a_transfer_goes_on_after_a_restart_from_its_last_whole_chunk() {
        let (group, dir) = (GroupId(5), tempfile::tempdir().unwrap());
        let spool = Spool::new(dir.path(), group);
        let path = broken_off(&spool, 7);
        // The third was being written.
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(&[0, 0, 0, 5, b't', b'h']).unwrap();
        let spool = Spool::new(dir.path(), group);
        assert!(spool.unfinished().unwrap().is_none());
        for other in [0, 8] {
            assert!(Half::found(&spool, other).unwrap().is_none(), "{other}");
        }
        let half = Half::found(&spool, 7).unwrap().unwrap();
        assert_eq!((half.has(7), half.has(8)), (2, 0));
        let mut incoming = half.into_incoming();
        incoming.add(CHUNKS[2], chunk_sum(CHUNKS[2])).unwrap();
        assert_eq!(spool.meters().received_bytes.get(), 5, "only the third came in again");
        assert_eq!(spool.meters().held_bytes.load(Ordering::Relaxed), 16);
        let spooled = incoming.finish(&tail()).unwrap();
        let mut read = Vec::new();
        let each = |chunk: Bytes| {
            read.push(chunk);
            Ok(())
        };
        spooled.for_each(each).unwrap();
        assert_eq!(read, CHUNKS);
    }

    #[test]
    fn a_file_that_was_damaged_meanwhile_is_dropped_at_the_end() {
        let (group, dir) = (GroupId(5), tempfile::tempdir().unwrap());
        let spool = Spool::new(dir.path(), group);
        let path = broken_off(&spool, 7);
        let mut bytes = fs::read(&path).unwrap();
        bytes[6] ^= 1;
        fs::write(&path, bytes).unwrap();
        let mut incoming = Half::found(&spool, 7).unwrap().unwrap().into_incoming();
        incoming.add(CHUNKS[2], chunk_sum(CHUNKS[2])).unwrap();
        assert!(incoming.finish(&tail()).is_err());
        assert!(Half::found(&spool, 7).unwrap().is_none(), "it begins anew");
        // A length that makes no sense ends what is usable.
        let path = broken_off(&spool, 7);
        let mut bytes = fs::read(&path).unwrap();
        bytes[9] = 0xff;
        fs::write(&path, bytes).unwrap();
        assert_eq!(Half::found(&spool, 7).unwrap().unwrap().has(7), 1);
    }

    #[test]
    fn what_is_of_no_use_any_more_does_not_stay() {
        let (group, dir) = (GroupId(5), tempfile::tempdir().unwrap());
        let spool = Spool::new(dir.path(), group);
        broken_off(&Spool::new(dir.path(), GroupId(6)), 7);
        let other = files(dir.path());
        broken_off(&spool, 7);
        broken_off(&spool, 8);
        assert_eq!(
            files(dir.path()).len(),
            2,
            "of this group only the last: {:?}",
            files(dir.path())
        );
        let mut whole = spool.receive(9).unwrap();
        CHUNKS.iter().for_each(|chunk| whole.add(chunk, 0).unwrap());
        let whole = whole.finish(&tail()).unwrap();
        broken_off(&spool, 10);
        assert!(
            whole.path.exists(),
            "what waits for its installation is left alone by what comes next"
        );
        drop(whole);
        spool.clean("part").unwrap();
        assert_eq!(files(dir.path()), other);
        fs::write(spool.path("whole-0000000000000001"), "x").unwrap();
        assert!(spool.unfinished().unwrap().is_none());
        assert_eq!(files(dir.path()), other, "nobody knows after a restart what it is");
    }

    #[test]
    fn an_installation_that_was_cut_short_is_found_again() {
        let (group, dir) = (GroupId(5), tempfile::tempdir().unwrap());
        let spool = Spool::new(dir.path(), group);
        let incoming = spool.receive(1).unwrap();
        let spooled = incoming.finish(&Sum::new().tail()).unwrap();
        spool.promote(spooled).unwrap();
        let found = spool.unfinished().unwrap().unwrap();
        let engine: SharedEngine = Arc::new(MemoryEngine::new());
        let key = [group.prefix().as_slice(), b"a"].concat();
        let mut batch = WriteBatch::new();
        batch.put(Cf::Key, key.clone(), "x");
        engine.write(batch, false).unwrap();
        spool.install(found, &engine).unwrap();
        assert!(engine.get(Cf::Key, &key).unwrap().is_none());
        assert!(spool.unfinished().unwrap().is_none());
    }
}
