//! Removal of what a floor made unreadable, in small steps beside everything else.
//!
//! Not part of the replicated state: members may be at different points of it and still agree on all that can be read.

use crate::engine::{Cf, WriteBatch};
use crate::error::StoreError;
use crate::keys;
use crate::machine::Machine;
use crate::machine::space::Space;
use crate::store::Access;
use bytes::Bytes;

impl Machine {
    /// Looks at no more than `budget` keys and removes versions that no reader and no watch can ask for any more.
    /// Answers whether there is more to do. To be called after compactions, and once after the start.
    pub fn prune(&self, budget: usize) -> Result<bool, StoreError> {
        let _gate = self.shared.gate.read();
        for space in self.shared.all_spaces() {
            if let Some(batch) = step(&space, budget) {
                if !batch.is_empty() {
                    self.shared.engine.write(batch, false)?;
                }
                let done = space.pruning.lock().done;
                space
                    .pruned
                    .send_if_modified(|known| std::mem::replace(known, done) != done);
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl Machine {
    /// Waits until what a compaction at `floor` made unreadable is removed here.
    pub async fn pruned(&self, access: &Access, floor: i64) -> Result<(), StoreError> {
        let mut pruned = self.space_of(access)?.pruned.subscribe();
        let waited = pruned.wait_for(|done| *done >= floor).await;
        waited.map(|_| ()).map_err(|_| StoreError::Stopped)
    }
}

impl Machine {
    /// Whether everything that compactions made unreadable is removed here.
    pub fn is_pruned(&self, access: &Access) -> Result<bool, StoreError> {
        let space = self.space_of(access)?;
        let done = space.pruning.lock().done;
        Ok(done >= space.floor())
    }
}

/// One step in one space; none if there is nothing to do.
fn step(space: &Space, budget: usize) -> Option<WriteBatch> {
    let mut pruning = space.pruning.lock();
    let (floor, from) = match pruning.running.take() {
        Some(running) => running,
        None if space.floor() > pruning.done => (space.floor(), Bytes::new()),
        None => return None,
    };
    let (removed, next) = space.change_index(|index| index.prune(&from, floor, budget));
    let mut batch = WriteBatch::new();
    for (key, version) in removed {
        batch.delete(Cf::Key, space.version_key(&key, version.modified));
    }
    match next {
        Some(next) => pruning.running = Some((floor, next)),
        None => {
            let end = keys::event_key(&space.prefix, floor, 0);
            batch.delete_range(Cf::Rev, keys::event_key(&space.prefix, 0, 0), end);
            pruning.done = floor;
        }
    }
    Some(batch)
}
