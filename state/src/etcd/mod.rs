//! The etcd v3 API (gRPC) on top of any [`Store`].
//!
//! The services see one key space: that of the [`Access`] which the door (a tunnel stream, an operator's port) put into the
//! request's extensions. Without one every call is refused. What is not served answers UNIMPLEMENTED, as clients expect.
//!
//! | service | served |
//! |---|---|
//! | KV | Range, Put, DeleteRange, Txn, Compact |
//! | Watch | all: filters, fragments, previous values, chosen ids, progress on request and of its own accord |
//! | Lease | all |
//! | Maintenance | Status, Alarm (get: never any), HashKV (at the present revision) |
//! | Cluster | MemberList: this member alone, as tenants see nothing of the others |

mod kv;
mod lease;
mod maintenance;
mod watch;

use crate::pb;
use crate::pb::cluster_server::ClusterServer;
use crate::pb::kv_server::KvServer;
use crate::pb::lease_server::LeaseServer;
use crate::pb::maintenance_server::MaintenanceServer;
use crate::pb::watch_server::WatchServer;
use crate::store::{Access, Store};
use hanse_runtime::clock::SharedClock;
use std::sync::{Arc, OnceLock};
use tonic::service::Routes;
use tonic::{Request, Status};

/// Largest request: etcd's 1.5 MiB and its allowance of 512 KiB for gRPC.
pub const MAX_REQUEST: usize = 2 << 20;
/// Version of etcd whose behaviour this is. Kubernetes asks for progress of watches from 3.5.13 on, and expects nothing of 3.7.
pub const ETCD_VERSION: &str = "3.6.11";

/// What all services share.
#[derive(Clone)]
struct Etcd {
    store: Arc<dyn Store>,
    clock: SharedClock,
    ids: Arc<OnceLock<(u64, u64)>>,
}

impl Etcd {
    /// Completes a header. The ids never change, so they are asked for once; the term is left to `Maintenance.Status`, since
    /// asking costs more than many a request.
    fn header(&self, header: Option<pb::ResponseHeader>) -> Option<pb::ResponseHeader> {
        let (cluster_id, member_id) = *self.ids.get_or_init(|| {
            let status = self.store.status();
            (status.cluster_id, status.member_id)
        });
        let revision = header.map_or_else(|| self.store.revision(), |header| header.revision);
        Some(pb::ResponseHeader { cluster_id, member_id, revision, raft_term: 0 })
    }

    fn header_at(&self, revision: i64) -> Option<pb::ResponseHeader> {
        self.header(Some(pb::ResponseHeader { revision, ..Default::default() }))
    }
}

/// The key space that the door allows.
fn access<T>(request: &Request<T>) -> Result<Access, Status> {
    let access = request.extensions().get::<Access>().cloned();
    access.ok_or_else(|| Status::permission_denied("etcdserver: permission denied"))
}

/// All services, to be called in process or served on a port; requests must carry an [`Access`] among their extensions.
pub fn routes(store: Arc<dyn Store>, clock: SharedClock) -> Routes {
    let etcd = Etcd { store, clock, ids: Arc::default() };
    // Answers have no limit, as with etcd: a list of everything is one message.
    let mut routes = Routes::builder();
    routes
        .add_service(
            KvServer::new(etcd.clone()).max_decoding_message_size(MAX_REQUEST).max_encoding_message_size(usize::MAX),
        )
        .add_service(
            WatchServer::new(etcd.clone()).max_decoding_message_size(MAX_REQUEST).max_encoding_message_size(usize::MAX),
        )
        .add_service(LeaseServer::new(etcd.clone()).max_decoding_message_size(MAX_REQUEST))
        .add_service(MaintenanceServer::new(etcd.clone()).max_decoding_message_size(MAX_REQUEST))
        .add_service(ClusterServer::new(etcd).max_decoding_message_size(MAX_REQUEST));
    routes.routes()
}
