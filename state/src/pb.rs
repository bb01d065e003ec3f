//! Messages and services of the etcd v3 API, generated from our own `.proto` files, and the store's commands.

#[expect(
    missing_docs,
    clippy::all,
    clippy::allow_attributes_without_reason,
    unreachable_pub,
    reason = "generated code"
)]
mod generated {
    pub mod mvccpb {
        tonic::include_proto!("mvccpb");
    }
    pub mod etcdserverpb {
        tonic::include_proto!("etcdserverpb");
    }
    pub mod v3lockpb {
        tonic::include_proto!("v3lockpb");
    }
    pub mod v3electionpb {
        tonic::include_proto!("v3electionpb");
    }
    pub mod grpc {
        pub mod health {
            pub mod v1 {
                tonic::include_proto!("grpc.health.v1");
            }
        }
    }
    pub mod hanse {
        pub mod backup {
            pub mod v1 {
                tonic::include_proto!("hanse.backup.v1");
            }
        }
        pub mod state {
            pub mod v1 {
                tonic::include_proto!("hanse.state.v1");
            }
        }
    }
}

pub use command::{Command, Outcome};
pub use generated::etcdserverpb::*;
/// gRPC's health check.
pub use generated::grpc::health::v1 as health;
/// What a backup file holds.
pub use generated::hanse::backup::v1 as backup;
/// What goes through a group's log, and what it answers.
pub use generated::hanse::state::v1 as command;
pub use generated::mvccpb::{Event, KeyValue, event};
/// etcd's election service.
pub use generated::v3electionpb as election;
/// etcd's lock service.
pub use generated::v3lockpb as lock;
