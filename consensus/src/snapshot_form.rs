//! What a snapshot is made of, for those who send and those who receive it: rows of some families, in chunks, with sums.

use crate::codec::pb;
use crate::error::CodecError;
use crate::types::GroupId;
use aws_lc_rs::digest::{Context, SHA256, digest};
use bytes::Bytes;
use hanse_state::engine::Cf;
use hanse_state::keys::{META_MACHINE, meta_key, prefix_end};

/// What a snapshot of a group is made of, in this order: the machine's records come last, so that a state is never marked
/// complete before it is.
pub(crate) fn ranges(group: GroupId) -> [(Cf, Bytes, Bytes); 4] {
    let prefix = group.prefix();
    let all = |cf| (cf, Bytes::copy_from_slice(&prefix), Bytes::from(prefix_end(&prefix)));
    let machine = meta_key(group, META_MACHINE);
    let end = prefix_end(&machine);
    [
        all(Cf::Rev),
        all(Cf::Key),
        all(Cf::Lease),
        (Cf::Meta, machine.into(), end.into()),
    ]
}

/// Its number in a row.
pub(crate) fn family_number(cf: Cf) -> u32 {
    match cf {
        Cf::Log => 0,
        Cf::Rev => 1,
        Cf::Key => 2,
        Cf::Lease => 3,
        Cf::Meta => 4,
    }
}

/// The family of a number.
pub(crate) fn family(number: u32) -> Result<Cf, CodecError> {
    let found = [Cf::Rev, Cf::Key, Cf::Lease, Cf::Meta]
        .into_iter()
        .find(|cf| family_number(*cf) == number);
    found.ok_or_else(|| CodecError::Invalid {
        what: "family of a snapshot row",
        fault: format!("{number} is unknown"),
    })
}

/// The sum over all chunks.
pub(crate) struct Sum {
    digest: Context,
    /// Their number.
    pub(crate) chunks: u64,
}

impl Sum {
    pub(crate) fn new() -> Self {
        Self {
            digest: Context::new(&SHA256),
            chunks: 0,
        }
    }

    pub(crate) fn add(&mut self, chunk: &[u8]) {
        self.digest.update(&(chunk.len() as u64).to_be_bytes());
        self.digest.update(chunk);
        self.chunks += 1;
    }

    pub(crate) fn tail(&self) -> pb::SnapshotTail {
        let sha256 = Bytes::copy_from_slice(self.digest.clone().finish().as_ref());
        pb::SnapshotTail {
            chunks: self.chunks,
            sha256,
        }
    }
}

/// The sum over one chunk; never 0, which says that there is none.
pub(crate) fn chunk_sum(chunk: &[u8]) -> u64 {
    let digest = digest(&SHA256, chunk);
    let first = digest
        .as_ref()
        .first_chunk()
        .map_or(0, |first| u64::from_be_bytes(*first));
    first.max(1)
}
