//! Denials on their way to the trail. What is the same within a moment becomes one event with a number, so that a flood of
//! them is neither lost nor a flood of writes that pushes everything else out of the trail.

use super::event;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

/// Kinds of denials that are told apart between two writes. More are counted together, by their code.
pub(crate) const MAX_KINDS: usize = 128;
/// Time between two writes.
pub(crate) const PAUSE: Duration = Duration::from_secs(1);

/// What makes two denials the same.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) user: String,
    pub(crate) source: IpAddr,
    pub(crate) verb: String,
    pub(crate) what: String,
    pub(crate) code: u16,
}

/// A request that was refused.
pub(crate) struct Denial {
    pub(crate) key: Key,
    pub(crate) event: Value,
    /// How many it stands for.
    pub(crate) times: u64,
}

struct Counted {
    event: Value,
    times: u64,
}

/// Denials that are not written yet. Pure: time is an argument.
#[derive(Default)]
pub(crate) struct Folded {
    kinds: BTreeMap<Key, Counted>,
    /// Those beyond the bound, by code.
    others: BTreeMap<u16, Counted>,
    /// When some were taken last, on the monotonic clock.
    taken: Option<Duration>,
}

impl Folded {
    /// Takes in one; false if it was counted with others that are not like it.
    pub(crate) fn add(&mut self, denial: Denial) -> bool {
        let Denial { key, event, times } = denial;
        let room = self.kinds.len() < MAX_KINDS;
        let code = key.code;
        if let Some(same) = self.kinds.get_mut(&key) {
            same.again(&event, times);
            return true;
        }
        if room {
            self.kinds.insert(key, Counted { event, times });
            return true;
        }
        match self.others.get_mut(&code) {
            Some(others) => others.again(&event, times),
            None => {
                self.others.insert(code, Counted { event, times });
            }
        }
        false
    }

    /// How long until some may be taken; none when there are none.
    pub(crate) fn due(&self, now: Duration) -> Option<Duration> {
        if self.kinds.is_empty() && self.others.is_empty() {
            return None;
        }
        let next = self.taken.map_or(Duration::ZERO, |taken| taken + PAUSE);
        Some(next.saturating_sub(now))
    }

    /// Takes all, as events.
    pub(crate) fn take(&mut self, now: Duration) -> Vec<String> {
        self.taken = Some(now);
        let kinds = std::mem::take(&mut self.kinds).into_values().map(Counted::text);
        let others = std::mem::take(&mut self.others)
            .into_values()
            .map(Counted::text_of_many);
        kinds.chain(others).collect()
    }
}

impl Counted {
    fn again(&mut self, event: &Value, times: u64) {
        self.times = self.times.saturating_add(times);
        self.event["stageTimestamp"] = event["stageTimestamp"].clone();
    }

    fn text(mut self) -> String {
        if self.times > 1 {
            self.event["annotations"]["hanse.dev/times"] = self.times.to_string().into();
        }
        event::bounded(self.event)
    }

    /// What differs among many is not said of one.
    fn text_of_many(self) -> String {
        let Self { event, times } = self;
        let mut many = json!({
            "user": { "username": "system:hanse:several" },
            "requestURI": "",
            "verb": "",
            "annotations": {
                "authorization.k8s.io/decision": "forbid",
                "hanse.dev/times": times.to_string(),
                "hanse.dev/several": format!("more than {MAX_KINDS} kinds of denials at once; these are counted only"),
            },
        });
        for field in [
            "apiVersion",
            "kind",
            "level",
            "auditID",
            "stage",
            "responseStatus",
            "requestReceivedTimestamp",
            "stageTimestamp",
        ] {
            many[field] = event[field].clone();
        }
        many.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hanse_api::Timestamp;

    fn at(millis: i64) -> Value {
        Timestamp::from_millis(millis).micros().into()
    }

    fn denial(user: &str, code: u16, millis: i64) -> Denial {
        Denial {
            key: Key {
                user: user.into(),
                source: "127.0.0.1".parse().unwrap(),
                verb: "get".into(),
                what: "/x".into(),
                code,
            },
            event: json!({ "user": { "username": user }, "stageTimestamp": at(millis), "annotations": {} }),
            times: 1,
        }
    }

    #[test]
    fn the_same_is_counted_and_nothing_is_lost() {
        let mut folded = Folded::default();
        for n in 0..3 {
            assert!(folded.add(denial("a", 403, n)));
        }
        assert!(folded.add(denial("a", 401, 9)));
        let events: Vec<Value> = folded
            .take(PAUSE)
            .iter()
            .map(|e| serde_json::from_str(e).unwrap())
            .collect();
        assert_eq!(events.len(), 2);
        let thrice = events
            .iter()
            .find(|e| e["annotations"]["hanse.dev/times"] == "3")
            .unwrap();
        assert_eq!(thrice["stageTimestamp"], at(2));
        assert_eq!(folded.due(PAUSE), None);
    }

    #[test]
    fn a_flood_of_different_ones_is_bounded_and_counted() {
        let mut folded = Folded::default();
        let total = 10 * MAX_KINDS;
        for n in 0..total {
            folded.add(denial(&format!("u{n}"), 403, 1));
        }
        let events: Vec<Value> = folded
            .take(PAUSE)
            .iter()
            .map(|e| serde_json::from_str(e).unwrap())
            .collect();
        assert_eq!(events.len(), MAX_KINDS + 1);
        let count = |e: &Value| {
            e["annotations"]["hanse.dev/times"]
                .as_str()
                .map_or(1, |t| t.parse().unwrap())
        };
        assert_eq!(events.iter().map(count).sum::<usize>(), total);
        assert_eq!(events.last().unwrap()["user"]["username"], "system:hanse:several");
    }

    #[test]
    fn writes_of_denials_keep_their_distance() {
        let mut folded = Folded::default();
        folded.add(denial("a", 403, 1));
        assert_eq!(folded.due(PAUSE), Some(Duration::ZERO), "the first is written at once");
        folded.take(PAUSE);
        folded.add(denial("a", 403, 1));
        assert_eq!(folded.due(PAUSE), Some(PAUSE));
        assert_eq!(folded.due(PAUSE * 3), Some(Duration::ZERO));
    }
}
