//! A UDP relay that can be cut: how a server looks whose host loses its power.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::UdpSocket;
use tokio::sync::watch;

pub(super) struct Relay {
    pub(super) address: SocketAddr,
    target: watch::Sender<Option<SocketAddr>>,
    task: tokio::task::JoinHandle<()>,
}

impl Relay {
    pub(super) async fn to(server: SocketAddr) -> Self {
        let front = Arc::new(UdpSocket::bind(super::any_port()).await.unwrap());
        let address = front.local_addr().unwrap();
        let target = watch::Sender::new(Some(server));
        let task = tokio::spawn(forward(front, target.subscribe()));
        Self { address, target, task }
    }

    /// From now on everything is lost.
    pub(super) fn cut(&self) {
        self.target.send_replace(None);
    }

    /// From now on everything goes to another server.
    pub(super) fn turn_to(&self, server: SocketAddr) {
        self.target.send_replace(Some(server));
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn forward(front: Arc<UdpSocket>, target: watch::Receiver<Option<SocketAddr>>) {
    let mut backs: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
    let mut buffer = vec![0; 65536];
    loop {
        let (len, client) = front.recv_from(&mut buffer).await.unwrap();
        let Some(server) = *target.borrow() else { continue };
        if let Entry::Vacant(entry) = backs.entry(client) {
            let back = Arc::new(UdpSocket::bind(super::any_port()).await.unwrap());
            entry.insert(Arc::clone(&back));
            tokio::spawn(answer(Arc::clone(&front), back, client, target.clone()));
        }
        // A refused datagram is a lost one.
        let _sent = backs[&client].send_to(&buffer[..len], server).await.is_ok();
    }
}

async fn answer(
    front: Arc<UdpSocket>,
    back: Arc<UdpSocket>,
    client: SocketAddr,
    mut target: watch::Receiver<Option<SocketAddr>>,
) {
    let mut buffer = vec![0; 65536];
    loop {
        tokio::select! {
            // Ends with the relay.
            changed = target.changed() => if changed.is_err() { return },
            got = back.recv_from(&mut buffer) => {
                let Ok((len, from)) = got else { continue };
                if *target.borrow() == Some(from) {
                    let _sent = front.send_to(&buffer[..len], client).await.is_ok();
                }
            }
        }
    }
}
