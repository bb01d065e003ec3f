//! Watchers of all objects while some are changed at a steady rate.

use super::Plan;
use super::client::{Call, Connection};
use super::sides::{PROJECTS, Side};
use super::works::{MERGE, connections, name, revision};
use crate::bench::fan_out::{FanOut, PATIENCE, Watcher};
use crate::bench::{Figures, Window};
use anyhow::{Context as _, Result, ensure};
use http::Method;
use http_body_util::BodyExt as _;
use serde_json::json;

/// Of those who write.
const WRITERS: usize = 4;
/// Most bytes of an event; a line without an end would otherwise fill the memory.
const LINE: usize = 4 << 20;
/// How long the servers let a watch be, in seconds: longer than any run.
const LIFE: u32 = 7200;
/// Before the stamp of a write, in the field that it changes. The record of who set which field has no such text.
const MARK: &str = r#""displayName":"@"#;

/// Runs it.
pub(super) async fn run(side: &Side, plan: &Plan, window: Window) -> Result<Figures> {
    let (watching, writing) = (
        connections(side, plan.watchers).await?,
        connections(side, WRITERS).await?,
    );
    let mut first = writing.first().context("no connection")?.clone();
    let list = first.send(Call::get(format!("{PROJECTS}?limit=1"))).await?;
    let from = revision(&list)?;
    let follow = |n: usize, watcher| follow(watching[n % watching.len()].clone(), from.clone(), watcher);
    let put = |n: usize, stamp: u64| {
        let mut connection = writing[n % writing.len()].clone();
        let call = Call {
            method: Method::PATCH,
            path: format!("{PROJECTS}/{}?fieldManager=writer", name(n % plan.objects)),
            media: MERGE,
            body: json!({ "spec": { "displayName": format!("@{stamp}") } }).to_string(),
        };
        async move { connection.send(call).await.map(|_| ()) }
    };
    let fan_out = FanOut {
        watchers: plan.watchers,
        rate: plan.rate,
        window,
    };
    fan_out.run(&side.processes(), follow, put).await
}

/// One watcher; it ends with the last write.
async fn follow(mut connection: Connection, from: String, mut watcher: Watcher) -> Result<Watcher> {
    let path = format!("{PROJECTS}?watch=true&resourceVersion={from}&timeoutSeconds={LIFE}");
    let mut stream = connection.watch(path).await.context("watch")?;
    watcher.is_on();
    let mut lines = Lines::default();
    while !watcher.is_done() {
        let frame = tokio::time::timeout(PATIENCE, stream.frame()).await;
        let frame = frame.with_context(|| watcher.progress())?;
        let frame = frame.context("the server ended a watch")?.context("a watch broke")?;
        if let Some(data) = frame.data_ref() {
            lines.take(data, |stamp| watcher.saw(stamp))?;
        }
    }
    Ok(watcher)
}

/// A stream of events, cut anywhere.
#[derive(Default)]
struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    /// Tells `saw` the stamp of each event that is whole by now.
    fn take(&mut self, data: &[u8], mut saw: impl FnMut(u64)) -> Result<()> {
        let mut data = data;
        while let Some(end) = data.iter().position(|byte| *byte == b'\n') {
            self.rest.extend_from_slice(&data[..end]);
            data = &data[end + 1..];
            let stamp = stamp(&self.rest)?;
            self.rest.clear();
            stamp.into_iter().for_each(&mut saw);
        }
        self.rest.extend_from_slice(data);
        ensure!(self.rest.len() <= LINE, "an event has more than {LINE} bytes");
        Ok(())
    }
}

/// When the write that an event tells of was sent; none for an event without.
fn stamp(line: &[u8]) -> Result<Option<u64>> {
    let text = std::str::from_utf8(line).context("an event")?;
    ensure!(!text.contains(r#""type":"ERROR""#), "a watch failed: {text}");
    let Some((_, rest)) = text.split_once(MARK) else {
        return Ok(None);
    };
    let digits = rest.split_once('"').context("an event")?.0;
    Ok(Some(digits.parse().context("the stamp of an event")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_are_found_wherever_the_stream_is_cut() {
        let event = |stamp: u64| {
            let fields = r#"{"fieldsV1":{"f:spec":{"f:displayName":{}}}}"#;
            format!(r#"{{"type":"MODIFIED","object":{{"metadata":{fields},"spec":{{"displayName":"@{stamp}"}}}}}}"#)
                + "\n"
        };
        let other = "{\"type\":\"BOOKMARK\",\"object\":{}}\n";
        let text = [event(7).as_str(), other, &event(12_345)].concat();
        for cut in 0..text.len() {
            let (mut lines, mut seen) = (Lines::default(), Vec::new());
            for part in [&text[..cut], &text[cut..]] {
                lines.take(part.as_bytes(), |stamp| seen.push(stamp)).unwrap();
            }
            assert_eq!(seen, [7, 12_345], "cut at {cut}");
        }
    }

    #[test]
    fn errors_and_endless_events_end_a_watch() {
        let error = "{\"type\":\"ERROR\",\"object\":{\"code\":410}}\n";
        assert!(Lines::default().take(error.as_bytes(), |_| {}).is_err());
        assert!(Lines::default().take(&vec![b'x'; LINE + 1], |_| {}).is_err());
    }
}
