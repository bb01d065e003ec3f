//! Copies bytes both ways between two raw streams.

use crate::api::TunnelIo;
use crate::error::TunnelError;
use hanse_runtime::clock::Clock;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;

/// How long the second direction may stay silent after the first has ended.
pub const LINGER: Duration = Duration::from_secs(10);
/// Bytes in flight per direction.
const BUFFER: usize = 32 << 10;

/// Copies between `a` and `b` until both directions have ended. The end of one direction is passed on as a half-close; the other
/// goes on until it ends too, or has been silent for [`LINGER`]. When either stream fails, both are dropped and so
/// broken off. There is no other time limit: an idle shell is fine.
pub async fn splice(a: TunnelIo, b: TunnelIo, clock: &dyn Clock) -> Result<(), TunnelError> {
    let (mut a_read, mut a_write) = tokio::io::split(a);
    let (mut b_read, mut b_write) = tokio::io::split(b);
    let progress = Progress::default();
    let forth = copy(&mut a_read, &mut b_write, &progress);
    let back = copy(&mut b_read, &mut a_write, &progress);
    let both = async {
        tokio::try_join!(forth, back)
            .map(|((), ())| ())
            .map_err(TunnelError::Io)
    };
    tokio::pin!(both);
    tokio::select! {
        biased;
        outcome = &mut both => return outcome,
        () = progress.half_closed.notified() => {}
    }
    loop {
        let before = progress.moved.load(Ordering::Relaxed);
        tokio::select! {
            biased;
            outcome = &mut both => return outcome,
            () = clock.sleep(LINGER) => {}
        }
        if progress.moved.load(Ordering::Relaxed) == before {
            return Err(TunnelError::Deadline {
                what: "the open half of a switched connection".into(),
            });
        }
    }
}

#[derive(Default)]
struct Progress {
    half_closed: Notify,
    moved: AtomicU64,
}

async fn copy<R, W>(from: &mut R, to: &mut W, progress: &Progress) -> io::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut buffer = vec![0; BUFFER];
    loop {
        let len = from.read(&mut buffer).await?;
        if len == 0 {
            break;
        }
        to.write_all(&buffer[..len]).await?;
        to.flush().await?;
        progress.moved.fetch_add(len as u64, Ordering::Relaxed);
    }
    to.shutdown().await?;
    progress.half_closed.notify_one();
    Ok(())
}
