//! A relay before each member's peer address, which makes one link long. Members dial each other at advertised addresses,
//! so each link passes one; who dialled is found by the kernel's table of sockets.

use anyhow::{Context as _, Result};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Bytes that are taken over at once.
const CHUNK: usize = 64 << 10;
/// Chunks under way in one direction of a connection; more wait with their sender, as on a link that is full.
const UNDER_WAY: usize = 1024;

/// The link that is long, between two members, and how long one way of it takes.
#[derive(Clone, Copy, Debug)]
pub struct LongLink {
    /// Its ends.
    pub ends: [usize; 2],
    /// One way; the round trip takes twice that.
    pub one_way: Duration,
}

impl LongLink {
    fn joins(&self, from: Option<usize>, to: usize) -> bool {
        from.is_some_and(|from| self.ends == [from, to] || self.ends == [to, from])
    }
}

/// What the relays of one cluster share.
#[derive(Debug, Default)]
pub struct Links {
    long: Mutex<Option<LongLink>>,
    /// Process of each member.
    pids: Mutex<Vec<Option<u32>>>,
    /// Dialler and dialled of each connection that is there.
    carried: Mutex<Vec<(Option<usize>, usize)>>,
}

impl Links {
    /// Makes one link long, for connections that are there and for new ones; gives how many are there.
    pub fn lengthen(&self, link: LongLink) -> usize {
        *self.long.lock().unwrap_or_else(PoisonError::into_inner) = Some(link);
        let carried = self.carried.lock().unwrap_or_else(PoisonError::into_inner);
        carried.iter().filter(|(from, to)| link.joins(*from, *to)).count()
    }

    pub(crate) fn is_process_of(&self, member: usize, pid: u32) {
        let mut pids = self.pids.lock().unwrap_or_else(PoisonError::into_inner);
        let length = pids.len().max(member + 1);
        pids.resize(length, None);
        pids[member] = Some(pid);
    }

    fn begins(&self, connection: (Option<usize>, usize)) {
        let mut carried = self.carried.lock().unwrap_or_else(PoisonError::into_inner);
        carried.push(connection);
    }

    fn ends(&self, connection: (Option<usize>, usize)) {
        let mut carried = self.carried.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = carried.iter().position(|other| *other == connection) {
            carried.swap_remove(place);
        }
    }

    /// One way from `from` to `to` or back.
    fn delay(&self, from: Option<usize>, to: usize) -> Duration {
        let long = *self.long.lock().unwrap_or_else(PoisonError::into_inner);
        long.filter(|link| link.joins(from, to))
            .map_or(Duration::ZERO, |link| link.one_way)
    }

    /// The member that holds the socket from `source` to `target`.
    fn dialer(&self, source: SocketAddr, target: SocketAddr) -> Option<usize> {
        let table = std::fs::read_to_string("/proc/net/tcp").ok()?;
        let inode = inode(&table, source.port(), target.port())?;
        let name = format!("socket:[{inode}]");
        let pids = self.pids.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let holds = |pid: u32| {
            let files = std::fs::read_dir(format!("/proc/{pid}/fd"))
                .into_iter()
                .flatten()
                .flatten();
            files
                .filter_map(|file| std::fs::read_link(file.path()).ok())
                .any(|link| link.as_os_str() == name.as_str())
        };
        pids.iter().position(|pid| pid.is_some_and(holds))
    }
}

/// Inode of the socket with these ports at its own and the other end, proc_net_tcp in the kernel's documentation.
fn inode(table: &str, own: u16, other: u16) -> Option<u64> {
    let port = |field: &str| u16::from_str_radix(field.rsplit_once(':')?.1, 16).ok();
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let ends = (port(fields.get(1)?)?, port(fields.get(2)?)?);
        let inode = fields.get(9)?.parse().ok().filter(|inode| *inode != 0);
        inode.filter(|_| ends == (own, other))
    })
}

/// Takes connections for member `to` at `at`, and hands them on to `target`, for as long as the runtime lives.
pub(crate) async fn relay(links: Arc<Links>, to: usize, at: SocketAddr, target: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(at).await.with_context(|| format!("listen on {at}"))?;
    tokio::spawn(async move {
        while let Ok((incoming, source)) = listener.accept().await {
            let links = links.clone();
            tokio::spawn(async move {
                let from = links.dialer(source, at);
                // Whoever dialled sees the end of its connection when the member is away.
                let Ok(outgoing) = TcpStream::connect(target).await else {
                    return;
                };
                if incoming
                    .set_nodelay(true)
                    .and_then(|()| outgoing.set_nodelay(true))
                    .is_err()
                {
                    return;
                }
                let (in_read, in_write) = incoming.into_split();
                let (out_read, out_write) = outgoing.into_split();
                links.begins((from, to));
                tokio::join!(
                    carry(&links, (from, to), in_read, out_write),
                    carry(&links, (from, to), out_read, in_write),
                );
                links.ends((from, to));
            });
        }
    });
    Ok(())
}

/// Carries one direction until either end is gone.
async fn carry(links: &Links, (from, to): (Option<usize>, usize), mut read: OwnedReadHalf, mut write: OwnedWriteHalf) {
    let (sender, mut chunks) = mpsc::channel::<(Instant, Vec<u8>)>(UNDER_WAY);
    let take = async move {
        let mut buffer = vec![0; CHUNK];
        while let Ok(length) = read.read(&mut buffer).await {
            let due = Instant::now() + links.delay(from, to);
            if length == 0 || sender.send((due, buffer[..length].to_vec())).await.is_err() {
                break;
            }
        }
    };
    let give = async move {
        while let Some((due, bytes)) = chunks.recv().await {
            if due > Instant::now() {
                tokio::time::sleep_until(due).await;
            }
            if write.write_all(&bytes).await.is_err() {
                break;
            }
        }
    };
    tokio::join!(take, give);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_long_link_is_slow_and_nothing_is_lost() {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = server.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = server.accept().await {
                let (mut read, mut write) = stream.into_split();
                tokio::spawn(async move { tokio::io::copy(&mut read, &mut write).await });
            }
        });
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = free.local_addr().unwrap();
        drop(free);
        let links = Arc::new(Links::default());
        // This process plays member 1, which dials member 0.
        links.is_process_of(1, std::process::id());
        relay(links.clone(), 0, at, target).await.unwrap();
        let mut client = TcpStream::connect(at).await.unwrap();
        let mut there_and_back = async |text: &[u8]| {
            let begun = Instant::now();
            client.write_all(text).await.unwrap();
            let mut echo = vec![0; text.len()];
            client.read_exact(&mut echo).await.unwrap();
            assert_eq!(echo, text);
            begun.elapsed()
        };
        there_and_back(b"first").await;
        let one_way = Duration::from_millis(150);
        assert_eq!(links.lengthen(LongLink { ends: [0, 1], one_way }), 1);
        let took = there_and_back(&[7; 300_000]).await;
        assert!(took >= one_way * 2, "{took:?}");
        assert_eq!(links.lengthen(LongLink { ends: [0, 2], one_way }), 0);
        assert_eq!(links.delay(Some(1), 0), Duration::ZERO);
        there_and_back(b"last").await;
    }

    #[test]
    fn sockets_are_found_by_both_ends() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
            0: 0100007F:9C40 0100007F:0050 01 00000000:00000000 00:00000000 00000000     0        0 12345 1 0\n   \
            1: 0100007F:0050 0100007F:9C40 01 00000000:00000000 00:00000000 00000000     0        0 54321 1 0\n";
        assert_eq!(inode(table, 40000, 80), Some(12345));
        assert_eq!(inode(table, 80, 40000), Some(54321));
        assert_eq!(inode(table, 80, 81), None);
    }
}
