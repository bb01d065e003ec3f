//! Watchers of one prefix while writes come at a steady rate.

use crate::load::CONNECTIONS;
use crate::works::{VALUE, key, put};
use anyhow::{Context as _, Result, ensure};
use hanse_chaos_tests::bench::fan_out::{FanOut, PATIENCE, Watcher};
use hanse_chaos_tests::bench::{Figures, Window};
use hanse_chaos_tests::store_cluster::Cluster;
use hanse_state::pb;
use hanse_state::pb::kv_client::KvClient;
use hanse_state::pb::watch_client::WatchClient;
use hanse_state::pb::watch_request::RequestUnion;
use tonic::transport::Channel;

const PREFIX: &str = "/watch/";
const KEYS: u64 = 10_000;
/// Of those who write.
const WRITERS: usize = 4;

/// Runs it.
pub async fn run(cluster: &Cluster, watchers: usize, rate: u32, window: Window) -> Result<Figures> {
    let channels = |count: usize| (0..count).map(|n| cluster.any_channel(n)).collect::<Result<Vec<_>>>();
    let (channels, writers) = (channels(watchers.min(CONNECTIONS))?, channels(WRITERS)?);
    let fan_out = FanOut { watchers, rate, window };
    let follow = |n: usize, watcher| follow(channels[n % channels.len()].clone(), watcher);
    let write = |n: usize, stamp: u64| {
        let mut value = vec![b'v'; VALUE];
        value[..8].copy_from_slice(&stamp.to_le_bytes());
        let request = put(key(PREFIX, n as u64 % KEYS), value);
        let mut kv = KvClient::new(writers[n % WRITERS].clone());
        async move { kv.put(request).await.map(|_| ()).context("put") }
    };
    fan_out.run(&cluster.processes(), follow, write).await
}

/// One watcher on a stream of its own; it ends with the last write.
async fn follow(channel: Channel, mut watcher: Watcher) -> Result<Watcher> {
    let create = pb::WatchCreateRequest {
        key: PREFIX.into(),
        range_end: "/watch0".into(),
        ..Default::default()
    };
    let request = pb::WatchRequest {
        request_union: Some(RequestUnion::CreateRequest(create)),
    };
    let requests = futures::StreamExt::chain(futures::stream::iter([request]), futures::stream::pending());
    let mut answers = WatchClient::new(channel).watch(requests).await?.into_inner();
    let mut last = 0;
    while !watcher.is_done() {
        let answer = tokio::time::timeout(PATIENCE, answers.message()).await;
        let answer = answer.with_context(|| watcher.progress())??;
        let answer = answer.context("the server ended a watch")?;
        ensure!(!answer.canceled, "a watch was cancelled: {}", answer.cancel_reason);
        if answer.created {
            watcher.is_on();
        }
        for kv in answer.events.iter().filter_map(|event| event.kv.as_ref()) {
            ensure!(kv.mod_revision > last, "revision {} came after {last}", kv.mod_revision);
            last = kv.mod_revision;
            let stamp = kv.value.first_chunk::<8>().context("a value without its time")?;
            watcher.saw(u64::from_le_bytes(*stamp));
        }
    }
    Ok(watcher)
}
