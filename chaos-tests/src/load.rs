//! A client that writes one thing after the other and notes each acknowledgement. What was acknowledged must be there
//! afterwards, and the longest time between two acknowledgements is how long the fault was felt.

use crate::standstill::Standstills;
use anyhow::{Result, bail};
use futures::future::BoxFuture;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// A try that takes longer is given up. Well above what the tests allow: a request that hangs must show in the figures.
const TRY_LIMIT: Duration = Duration::from_secs(10);
/// Between two writes, so that the clients leave the machine to the servers.
const PAUSE: Duration = Duration::from_millis(25);
/// For a recovery, before the test gives up: far above what it asserts.
const WAIT_LIMIT: Duration = Duration::from_secs(60);

/// What came of one try.
#[derive(Debug)]
pub enum Outcome {
    /// Acknowledged.
    Done,
    /// It is there already: an earlier try was acknowledged to nobody.
    Exists,
    /// Failed, for this reason.
    Failed(String),
}

/// A write of the thing called so.
pub type Write = Box<dyn Fn(String) -> BoxFuture<'static, Outcome> + Send + Sync>;

#[derive(Debug, Default)]
struct Record {
    acknowledged: Vec<(String, Instant)>,
    failures: Vec<(Instant, String)>,
}

/// A running client.
#[derive(Debug)]
pub struct Load {
    title: String,
    record: Arc<Mutex<Record>>,
    standstills: Standstills,
    count: watch::Receiver<usize>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Load {
    /// Starts to write `prefix-0`, `prefix-1`, ...
    pub fn start(title: &str, prefix: &str, write: Write) -> Self {
        let record: Arc<Mutex<Record>> = Arc::default();
        let (counted, count) = watch::channel(0);
        let (stop, stopped) = watch::channel(false);
        let (prefix, own) = (prefix.to_owned(), record.clone());
        let task = tokio::spawn(async move {
            let mut number = 0;
            while !*stopped.borrow() {
                let name = format!("{prefix}-{number}");
                let outcome = tokio::time::timeout(TRY_LIMIT, write(name.clone())).await;
                let done = match outcome {
                    Ok(Outcome::Done | Outcome::Exists) => Ok(name),
                    Ok(Outcome::Failed(why)) => Err(why),
                    Err(_) => Err(format!("no answer within {TRY_LIMIT:?}")),
                };
                if note(&own, done) {
                    number += 1;
                    counted.send_replace(number);
                }
                tokio::time::sleep(PAUSE).await;
            }
        });
        Self {
            title: title.to_owned(),
            record,
            standstills: Standstills::watch(),
            count,
            stop,
            task,
        }
    }

    fn record(&self) -> std::sync::MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for `more` acknowledgements from now on.
    pub async fn more(&mut self, more: usize) -> Result<()> {
        let wanted = *self.count.borrow() + more;
        let reached = tokio::time::timeout(WAIT_LIMIT, self.count.wait_for(|n| *n >= wanted))
            .await
            .is_ok_and(|seen| seen.is_ok());
        if reached {
            return Ok(());
        }
        let record = self.record();
        let last = record.failures.last().map(|(_, why)| why.as_str()).unwrap_or("none");
        bail!(
            "{}: no {more} more acknowledgements within {WAIT_LIMIT:?}; last failure: {last}",
            self.title
        )
    }

    /// The longest time without an acknowledgement that had not ended by `fault`.
    pub fn outage(&self, fault: Instant) -> Duration {
        self.longest_gap(fault).0
    }

    /// The same, and when it ended.
    fn longest_gap(&self, fault: Instant) -> (Duration, Instant) {
        let record = self.record();
        let times: Vec<Instant> = record.acknowledged.iter().map(|(_, at)| *at).collect();
        let gaps = times
            .windows(2)
            .filter(|pair| pair[1] > fault)
            .map(|pair| (pair[1] - pair[0], pair[1]));
        gaps.max().unwrap_or((Duration::ZERO, fault))
    }

    /// Prints how long the fault at `fault` was felt, and fails when that was longer than `limit`, unless the machine stood still then.
    pub fn judge(&self, what: &str, fault: Instant, limit: Duration) -> Result<()> {
        let (outage, ended) = self.longest_gap(fault);
        let record = self.record();
        let failures: Vec<&str> = record
            .failures
            .iter()
            .filter(|(at, _)| *at >= fault)
            .map(|(_, why)| why.as_str())
            .collect();
        println!(
            "{what}: {} went on after {outage:.2?}, {} tries failed",
            self.title,
            failures.len()
        );
        if outage > limit && self.standstills.excuse(ended, outage) {
            println!("{what}: longer than {limit:?}, but the machine stood still meanwhile");
        } else if outage > limit {
            bail!(
                "{what}: {} took {outage:.2?}, more than {limit:?}; failures: {failures:?}",
                self.title
            );
        }
        Ok(())
    }

    /// Why tries failed so far.
    pub fn failures(&self) -> Vec<String> {
        self.record().failures.iter().map(|(_, why)| why.clone()).collect()
    }

    /// The same, without those at times when the machine stood still: no server can do anything about those.
    pub fn faults(&self) -> Vec<String> {
        let record = self.record();
        let (excused, faults): (Vec<_>, Vec<_>) = record
            .failures
            .iter()
            .partition(|(at, _)| self.standstills.excuse(*at, TRY_LIMIT));
        if !excused.is_empty() {
            println!(
                "{}: the machine stood still; {} tries failed then: {excused:?}",
                self.title,
                excused.len()
            );
        }
        faults.into_iter().map(|(_, why)| why.clone()).collect()
    }

    /// The names that were acknowledged so far.
    pub fn acknowledged(&self) -> Vec<String> {
        self.record()
            .acknowledged
            .iter()
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// Ends it; gives the names that were acknowledged.
    pub async fn stop(self) -> Result<Vec<String>> {
        self.stop.send_replace(true);
        self.task.await?;
        let record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(record.acknowledged.iter().map(|(name, _)| name.clone()).collect())
    }
}

/// Notes what came of a try; says whether it was acknowledged.
fn note(record: &Mutex<Record>, done: std::result::Result<String, String>) -> bool {
    let mut record = record.lock().unwrap_or_else(PoisonError::into_inner);
    let now = Instant::now();
    let well = done.is_ok();
    match done {
        Ok(name) => record.acknowledged.push((name, now)),
        Err(why) => record.failures.push((now, why)),
    }
    well
}

/// Fails when one of `acknowledged` is not among `found`.
pub fn none_missing(what: &str, acknowledged: &[String], found: &[String]) -> Result<()> {
    let missing: Vec<&String> = acknowledged.iter().filter(|name| !found.contains(name)).collect();
    if !missing.is_empty() {
        bail!(
            "{what}: {} of {} acknowledged writes are missing: {missing:?}",
            missing.len(),
            acknowledged.len()
        );
    }
    println!("{what}: all {} acknowledged writes are there", acknowledged.len());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;

    #[tokio::test]
    async fn failures_are_tried_again_under_the_same_name_and_count_as_outage() {
        let begun = Instant::now();
        let write: Write = Box::new(move |name| {
            async move {
                let broken = name == "w-3" && begun.elapsed() < Duration::from_millis(400);
                if broken {
                    Outcome::Failed("broken".into())
                } else {
                    Outcome::Done
                }
            }
            .boxed()
        });
        let mut load = Load::start("test", "w", write);
        load.more(6).await.unwrap();
        load.standstills = Standstills::only(&[]);
        assert!(
            load.outage(begun) >= Duration::from_millis(200),
            "{:?}",
            load.outage(begun)
        );
        assert!(load.judge("test", begun, Duration::from_millis(1)).is_err());
        assert!(!load.failures().is_empty());
        assert_eq!(load.faults(), load.failures(), "nothing excuses them");
        load.standstills = Standstills::only(&[begun]);
        assert_eq!(load.faults(), Vec::<String>::new());
        let names = load.stop().await.unwrap();
        assert_eq!(names[..5], ["w-0", "w-1", "w-2", "w-3", "w-4"]);
        assert!(none_missing("test", &names, &names[1..]).is_err());
    }
}
