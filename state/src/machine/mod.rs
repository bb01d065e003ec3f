//! skeleton
/// Most operations in one transaction, in any of its three lists; etcd's default.
pub const MAX_TXN_OPS: usize = 128;
/// Largest request in bytes; etcd's default.
pub const MAX_REQUEST_BYTES: usize = 1_572_864;
/// Longest time to live of a lease in seconds; etcd's.
pub const MAX_LEASE_TTL: i64 = 9_000_000_000;
