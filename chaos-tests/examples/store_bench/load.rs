//! Clients of a store: closed loops over its members.

use anyhow::Result;
use hanse_chaos_tests::bench::{Ask, Figures, Window};
use hanse_chaos_tests::store_cluster::Cluster;
use rand::SeedableRng as _;
use rand::rngs::SmallRng;
use tonic::transport::Channel;

/// Clients share connections beyond this many, as the replicas of an API server do.
pub const CONNECTIONS: usize = 32;

/// One client: its number, its connection, its randomness.
pub struct Client {
    pub number: usize,
    pub channel: Channel,
    pub rng: SmallRng,
}

/// Runs `clients` of them, spread over the members.
pub async fn closed_loop(
    cluster: &Cluster,
    clients: usize,
    window: Window,
    ask: impl Ask<Client, Error = tonic::Status>,
) -> Result<Figures> {
    let channels: Vec<Channel> = (0..clients.min(CONNECTIONS))
        .map(|n| cluster.any_channel(n))
        .collect::<Result<_>>()?;
    let client = |number: usize| Client {
        number,
        channel: channels[number % channels.len()].clone(),
        rng: SmallRng::seed_from_u64(number as u64 + 1),
    };
    let clients = (0..clients).map(client).collect();
    hanse_chaos_tests::bench::closed_loop(&cluster.processes(), clients, window, ask).await
}
