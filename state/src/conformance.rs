//! What every store must do: run by each implementation against itself (feature `testing`).
//!
//! All cases share one store of the tenants' group; each has a tenant of its own, and none expects a particular
//! revision to start at. They compare revisions with what the store itself said before.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "this is test code that other crates run"
)]

mod helpers;
mod kv;
mod lease;
mod registry;
mod spaces;
mod watch;

pub use helpers::Tenant;

use crate::store::Store;
use std::sync::Arc;

/// Runs every case of the registry against a store of the council's group. What `prefix` starts must not be there yet.
pub async fn registry_suite(store: Arc<dyn Store>, prefix: &str) {
    registry::both_or_neither(&store, &format!("/{prefix}-audited")).await;
    registry::writers_share_one_chain(&store, &format!("/{prefix}-shared")).await;
}

/// Runs every case against a store of the tenants' group, in which `prefix` starts the names of tenants that are not
/// used otherwise. Panics at the first thing that is not as it must be.
pub async fn store_suite(store: Arc<dyn Store>, prefix: &str) {
    let tenant = |case: &str| Tenant::new(store.clone(), format!("{prefix}-{case}"));
    let quick = async {
        kv::revisions_and_versions(&tenant("kv-revisions")).await;
        kv::ranges(&tenant("kv-ranges")).await;
        kv::large_ranges(&tenant("kv-large")).await;
        kv::transactions(&tenant("kv-txn")).await;
        kv::kubernetes_forms(&tenant("kv-kubernetes")).await;
        kv::refusals(&tenant("kv-refusals")).await;
        kv::compaction(&tenant("kv-compaction")).await;
        kv::concurrent_writers(&tenant("kv-concurrent")).await;
        lease::life_of_a_lease(&tenant("lease")).await;
        watch::past_and_present(&tenant("watch-past")).await;
        watch::atomic_and_filtered(&tenant("watch-atomic")).await;
        watch::compacted(&tenant("watch-compacted")).await;
        watch::future(&tenant("watch-future")).await;
        watch::slow_reader(&tenant("watch-slow")).await;
        watch::many_watches_under_load(&tenant("watch-load")).await;
        spaces::spaces_are_apart(&tenant("space-a"), &tenant("space-b")).await;
        spaces::fence(&tenant("space-fence")).await;
        spaces::dropped(&tenant("space-dropped")).await;
        spaces::hashes(&tenant("hash-a"), &tenant("hash-b")).await;
        spaces::restored(&tenant("restored-a"), &tenant("restored-b")).await;
        spaces::limits(&tenant("limits-a"), &tenant("limits-b")).await;
        spaces::alarms(&tenant("alarm-a"), &tenant("alarm-b")).await;
    };
    // These wait for time to pass.
    let (lease, watch) = (tenant("lease-expiry"), tenant("watch-progress"));
    futures::join!(lease::expiry(&lease), watch::progress(&watch), quick);
}
