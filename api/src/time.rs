//! Wall-clock time as a value. Reading a clock is `runtime`'s work.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

/// A point in wall-clock time, in whole milliseconds since the Unix epoch.
///
/// Serialised the way Kubernetes writes `metav1.Time`: RFC 3339 in UTC with whole seconds.
/// Use it to say *when*; order between writes is a revision's work, never a timestamp's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

impl Timestamp {
    /// From milliseconds since the Unix epoch.
    pub const fn from_millis(millis: i64) -> Self {
        Self(millis)
    }

    /// Milliseconds since the Unix epoch.
    pub const fn as_millis(self) -> i64 {
        self.0
    }

    /// The time that lies `by` later, or the last representable one.
    pub fn plus(self, by: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(by.as_millis()).unwrap_or(i64::MAX)))
    }

    /// As Kubernetes writes `metav1.MicroTime`.
    pub fn micros(self) -> String {
        let millis = self.0.rem_euclid(1000);
        let seconds = self.to_string();
        format!("{}.{millis:03}000Z", seconds.trim_end_matches('Z'))
    }

    /// How long after `earlier` this is; zero when it is not after it.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.div_euclid(1000);
        match jiff::Timestamp::from_second(seconds) {
            Ok(time) => write!(f, "{time}"),
            Err(_) => write!(f, "@{seconds}"),
        }
    }
}

impl JsonSchema for Timestamp {
    fn schema_name() -> Cow<'static, str> {
        "Time".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "format": "date-time" })
    }
}

impl Serialize for Timestamp {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let time: jiff::Timestamp = text.parse().map_err(serde::de::Error::custom)?;
        Ok(Self(time.as_millisecond()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_as_kubernetes_writes_times() {
        let time = Timestamp::from_millis(1_700_000_000_999);
        assert_eq!(serde_json::to_string(&time).unwrap(), "\"2023-11-14T22:13:20Z\"");
        let back: Timestamp = serde_json::from_str("\"2023-11-14T22:13:20Z\"").unwrap();
        assert_eq!(back.as_millis(), 1_700_000_000_000);
    }

    #[test]
    fn parts_of_seconds_are_written_as_kubernetes_does() {
        assert_eq!(
            Timestamp::from_millis(1_700_000_000_045).micros(),
            "2023-11-14T22:13:20.045000Z"
        );
        assert_eq!(Timestamp::from_millis(-1).micros(), "1969-12-31T23:59:59.999000Z");
    }

    #[test]
    fn since_never_runs_backwards() {
        let (a, b) = (Timestamp::from_millis(1000), Timestamp::from_millis(4000));
        assert_eq!(b.since(a), Duration::from_secs(3));
        assert_eq!(a.since(b), Duration::ZERO);
    }
}
