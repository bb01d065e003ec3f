//! `KV.RangeStream` (etcd 3.7): a long list in parts, all of one revision, so that neither side holds it as a whole.

use super::{Service, refused};
use crate::pb::{self, range_request::SortOrder, range_request::SortTarget};
use crate::store::Access;
use bytes::{BufMut, Bytes, BytesMut};
use futures::stream::{BoxStream, StreamExt};
use prost::Message;
use tonic::Status;

/// The answers of one call.
pub(super) type Parts = BoxStream<'static, Result<pb::RangeStreamResponse, Status>>;

/// Keys in the first part; etcd's.
const FIRST_PART: i64 = 10;
/// Bytes that a part is to have, within half and double; etcd's.
const PART_BYTES: usize = crate::machine::MAX_REQUEST_BYTES;

struct List {
    service: Service,
    access: Access,
    /// What is still to be read; its limit is that of the next part.
    request: pb::RangeRequest,
    /// Keys that may still be sent.
    left: i64,
    /// Keys in the whole range and the revision of the store, as the first part found them.
    found: Option<(i64, i64)>,
    ended: bool,
}

/// Starts a list. Order and filters need the whole list at once, so they are refused, as by etcd.
pub(super) fn parts(service: Service, access: Access, mut request: pb::RangeRequest) -> Result<Parts, Status> {
    let ascending =
        request.sort_target == i32::from(SortTarget::Key) && request.sort_order == i32::from(SortOrder::Ascend);
    if request.sort_order != i32::from(SortOrder::None) && !ascending {
        return Err(Status::unimplemented("RangeStream does not support custom sort orders"));
    }
    let bounds = [
        request.min_mod_revision,
        request.max_mod_revision,
        request.min_create_revision,
        request.max_create_revision,
    ];
    if bounds.iter().any(|bound| *bound != 0) {
        return Err(Status::unimplemented("RangeStream does not support revision filters"));
    }
    let left = if request.limit > 0 { request.limit } else { i64::MAX };
    request.limit = FIRST_PART.min(left);
    let list = List {
        service,
        access,
        request,
        left,
        found: None,
        ended: false,
    };
    let parts = futures::stream::unfold(list, |mut list| async move {
        if list.ended {
            return None;
        }
        let part = list.next().await;
        list.ended |= part.is_err();
        Some((part, list))
    });
    Ok(parts.boxed())
}

impl List {
    async fn next(&mut self) -> Result<pb::RangeStreamResponse, Status> {
        let read = self.service.store.range(&self.access, self.request.clone());
        let mut answer = read.await.map_err(refused)?;
        let now = answer.header.as_ref().map_or(0, |header| header.revision);
        let (count, revision) = *self.found.get_or_insert((answer.count, now));
        if self.request.revision == 0 {
            self.request.revision = revision;
        }
        // What this member has read once it has; nobody need be asked again how far it must be.
        self.request.serializable = true;
        self.left -= i64::try_from(answer.kvs.len()).unwrap_or(i64::MAX);
        let last = answer.kvs.last().map(|kv| kv.key.clone());
        match last.filter(|_| answer.more && self.left > 0) {
            Some(last) => {
                self.request.key = after(&last);
                self.request.limit = next_limit(self.request.limit, answer.encoded_len()).min(self.left);
                answer = pb::RangeResponse {
                    kvs: answer.kvs,
                    ..Default::default()
                };
            }
            None => {
                self.ended = true;
                answer.header = self.service.header_at(revision);
                answer.count = count;
            }
        }
        Ok(pb::RangeStreamResponse {
            range_response: Some(answer),
        })
    }
}

/// The first key after another.
fn after(key: &[u8]) -> Bytes {
    let mut next = BytesMut::with_capacity(key.len() + 1);
    next.put_slice(key);
    next.put_u8(0);
    next.freeze()
}

fn next_limit(limit: i64, bytes: usize) -> i64 {
    let next = match bytes {
        _ if bytes < PART_BYTES / 2 => limit.saturating_mul(2),
        _ if bytes > PART_BYTES * 2 => limit / 2,
        _ => limit,
    };
    next.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_grow_and_shrink_towards_their_size() {
        assert_eq!(next_limit(10, 100), 20);
        assert_eq!(next_limit(10, PART_BYTES), 10);
        assert_eq!(next_limit(10, 3 * PART_BYTES), 5);
        assert_eq!(next_limit(1, 3 * PART_BYTES), 1);
        assert_eq!(next_limit(i64::MAX, 0), i64::MAX);
        assert_eq!(after(b"a"), Bytes::from_static(b"a\0"));
    }
}
