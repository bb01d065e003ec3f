//! One thread that makes writes durable: it drains its queue into one batch, syncs once, then answers in order.
//!
//! Requests that arrive while a sync runs share the next one, so throughput grows with load while a lone request
//! waits for one sync only. Log entries, votes and `LocalStore`'s commits all go through it, in one order.
//!
//! Fail-stop: after one failed write or sync nobody knows what the disk holds, so nothing is retried and every later
//! request is refused until the process is started anew.

use super::{EngineError, SharedEngine, WriteBatch};
use crate::meters::WriterMeters;
use parking_lot::Mutex;
use std::sync::Arc;
use std::thread::JoinHandle;
use tokio::sync::{mpsc, oneshot};

/// Called on the writer's thread once the batch is durable or failed: must not block.
pub type Done = Box<dyn FnOnce(Result<(), EngineError>) + Send>;

/// Bounds of the writer.
#[derive(Clone, Copy, Debug)]
pub struct WriterOptions {
    /// Requests that may wait; a further one waits for room.
    pub queue: usize,
    /// Requests that share one sync.
    pub max_requests: usize,
    /// Bytes that share one sync; a single larger request goes alone.
    pub max_bytes: usize,
}

impl Default for WriterOptions {
    fn default() -> Self {
        Self {
            queue: 8192,
            max_requests: 4096,
            max_bytes: 16 << 20,
        }
    }
}

struct Request {
    batch: WriteBatch,
    done: Done,
}

/// Handle to the writer's thread. Dropping the last clone waits until the thread has finished its queue and ended.
#[derive(Clone)]
pub struct LogWriter {
    queue: mpsc::Sender<Request>,
    failed: Arc<Mutex<Option<EngineError>>>,
    engine: SharedEngine,
    meters: Arc<WriterMeters>,
    // Last, because fields are dropped in order: who waits for the thread must have let go of the queue.
    thread: Arc<Thread>,
}

/// The writer's thread, joined when the last handle goes: it holds the engine, and a process that exits while another thread closes
/// RocksDB aborts in RocksDB's own destructors.
struct Thread(Mutex<Option<JoinHandle<()>>>);

impl Thread {
    fn join(&self) {
        let thread = self.0.lock().take();
        // The last handle may be one that a callback held, on that very thread.
        let other = thread.filter(|thread| thread.thread().id() != std::thread::current().id());
        if other.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the log writer's thread panicked");
        }
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.join();
    }
}

impl std::fmt::Debug for LogWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogWriter")
            .field("waiting", &(self.queue.max_capacity() - self.queue.capacity()))
            .finish()
    }
}

impl LogWriter {
    /// Starts the thread.
    pub fn start(engine: SharedEngine, options: WriterOptions) -> Result<Self, EngineError> {
        let (queue, requests) = mpsc::channel(options.queue);
        let failed = Arc::new(Mutex::new(None));
        let meters = Arc::new(WriterMeters::default());
        let worker = Worker {
            engine: engine.clone(),
            meters: Arc::clone(&meters),
            requests,
            options,
            failed: failed.clone(),
        };
        let thread = std::thread::Builder::new()
            .name("log-writer".to_owned())
            .spawn(move || worker.run())
            .map_err(|error| EngineError::Stopped(format!("cannot start the log writer's thread: {error}")))?;
        Ok(Self {
            queue,
            failed,
            engine,
            meters,
            thread: Arc::new(Thread(Mutex::new(Some(thread)))),
        })
    }

    /// The engine that it writes to.
    pub fn engine(&self) -> &SharedEngine {
        &self.engine
    }

    /// What it counts of itself.
    pub fn meters(&self) -> &Arc<WriterMeters> {
        &self.meters
    }

    /// Queues a batch; `done` is called, in the order of submission, when it is durable or has failed. Waits while the
    /// queue is full. An empty batch is a barrier: what was written to the engine before is durable with it.
    pub async fn submit(&self, batch: WriteBatch, done: Done) {
        match self.queue.reserve().await {
            Ok(room) => room.send(Request { batch, done }),
            Err(_) => done(Err(self.why_stopped())),
        }
    }

    /// The same for a thread that may block.
    pub fn submit_blocking(&self, batch: WriteBatch, done: Done) {
        if let Err(mpsc::error::SendError(request)) = self.queue.blocking_send(Request { batch, done }) {
            (request.done)(Err(self.why_stopped()));
        }
    }

    /// Queues a batch and waits until it is durable.
    pub async fn write(&self, batch: WriteBatch) -> Result<(), EngineError> {
        let (done, wait) = oneshot::channel();
        let done: Done = Box::new(move |result| {
            // A caller that went away no longer wants the answer.
            done.send(result).ok();
        });
        self.submit(batch, done).await;
        wait.await.unwrap_or_else(|_| Err(self.why_stopped()))
    }

    /// Makes the batch readable at once and calls `done` when it is durable: the form that a Raft log wants. The
    /// order among such appends is the caller's.
    pub async fn append(&self, batch: WriteBatch, done: Done) -> Result<(), EngineError> {
        self.check()?;
        self.engine.write(batch, false)?;
        self.submit(WriteBatch::new(), done).await;
        Ok(())
    }

    /// Whether writes are still taken.
    pub fn check(&self) -> Result<(), EngineError> {
        match &*self.failed.lock() {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }

    /// Waits until everything queued is durable and the thread has ended, once every other clone is gone. Blocks.
    pub fn close(self) {
        let Self { queue, thread, .. } = self;
        drop(queue);
        thread.join();
    }

    fn why_stopped(&self) -> EngineError {
        let failed = self.failed.lock().clone();
        failed.unwrap_or_else(|| EngineError::Stopped("the log writer has ended".to_owned()))
    }
}

struct Worker {
    engine: SharedEngine,
    meters: Arc<WriterMeters>,
    requests: mpsc::Receiver<Request>,
    options: WriterOptions,
    failed: Arc<Mutex<Option<EngineError>>>,
}

impl Worker {
    fn run(mut self) {
        while let Some(first) = self.requests.blocking_recv() {
            let mut batch = first.batch;
            let mut waiting = vec![first.done];
            while waiting.len() < self.options.max_requests && batch.bytes() < self.options.max_bytes {
                match self.requests.try_recv() {
                    Ok(next) => {
                        batch.append(next.batch);
                        waiting.push(next.done);
                    }
                    Err(_) => break,
                }
            }
            self.meters.requests.add(waiting.len() as u64);
            let result = self.write(batch);
            for done in waiting {
                done(result.clone());
            }
        }
    }

    fn write(&self, batch: WriteBatch) -> Result<(), EngineError> {
        if let Some(error) = &*self.failed.lock() {
            return Err(error.clone());
        }
        let WriterMeters { stopwatch, sync, .. } = self.meters.as_ref();
        let result = stopwatch.time(sync, || {
            if batch.is_empty() {
                self.engine.sync()
            } else {
                self.engine.write(batch, true)
            }
        });
        if let Err(error) = &result {
            tracing::error!(%error, "storage failed, no more writes are taken until this process is started anew");
            *self.failed.lock() = Some(EngineError::Stopped(error.to_string()));
        }
        result
    }
}
