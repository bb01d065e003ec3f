//! The last intent, kept on disk: an agent that is cut off, or that restarts while cut off, works through it.
//!
//! It holds keys of tenants, so the file is private. An intent takes effect only after it is on disk: a restart
//! never goes back to an older one.

use crate::error::AgentError;
use crate::files;
use hanse_api::intent::Intent;
use std::path::PathBuf;

/// Largest intent that is taken.
pub const INTENT_MAX: usize = 64 << 20;

/// What became of an intent that came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// It is the newest and on disk.
    Taken,
    /// It is known already, or older.
    Stale,
}

/// The last intent.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    cluster: String,
    last: Option<Intent>,
}

/// Whether `new` replaces `old`: a higher epoch always does, within one epoch a higher revision.
pub fn supersedes(new: &Intent, old: Option<&Intent>) -> bool {
    old.is_none_or(|old| (new.epoch, new.revision) > (old.epoch, old.revision))
}

impl Journal {
    /// Reads the journal of `cluster` at `path`.
    pub fn open(path: PathBuf, cluster: &str) -> Result<Self, AgentError> {
        let last = match files::read_optional(&path)? {
            None => None,
            Some(bytes) => Some(parse(&bytes, cluster).map_err(|fault| AgentError::Damaged {
                path: path.clone(),
                fault,
                loss: "tenants stop until a server sends the next intent",
            })?),
        };
        Ok(Self {
            path,
            cluster: cluster.to_owned(),
            last,
        })
    }

    /// The last intent.
    pub fn last(&self) -> Option<&Intent> {
        self.last.as_ref()
    }

    /// Takes an intent in, unless it is stale.
    pub fn accept(&mut self, bytes: &[u8]) -> Result<Accepted, AgentError> {
        let malformed = |fault| AgentError::Malformed { what: "intent", fault };
        if bytes.len() > INTENT_MAX {
            return Err(malformed(format!(
                "it has {} bytes, more than {INTENT_MAX}",
                bytes.len()
            )));
        }
        let intent = parse(bytes, &self.cluster).map_err(malformed)?;
        if !supersedes(&intent, self.last.as_ref()) {
            return Ok(Accepted::Stale);
        }
        files::write_atomic(&self.path, bytes)?;
        self.last = Some(intent);
        Ok(Accepted::Taken)
    }
}

fn parse(bytes: &[u8], cluster: &str) -> Result<Intent, String> {
    // Only where, never what: the text holds keys.
    let intent: Intent = serde_json::from_slice(bytes)
        .map_err(|error| format!("line {} column {}: not an intent", error.line(), error.column()))?;
    if intent.cluster != cluster {
        return Err(format!(
            "it is for cluster {:?}, this agent is of {cluster:?}",
            intent.cluster
        ));
    }
    Ok(intent)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn intent(epoch: i64, revision: i64) -> Vec<u8> {
        let intent = Intent {
            cluster: "eu".into(),
            epoch,
            revision,
            ..Intent::default()
        };
        serde_json::to_vec(&intent).unwrap()
    }

    #[test]
    fn only_newer_intents_count_and_they_survive() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.json");
        let mut journal = Journal::open(path.clone(), "eu").unwrap();
        assert!(journal.last().is_none());
        let cases = [
            ((5, 10), Accepted::Taken),
            ((5, 10), Accepted::Stale),
            ((5, 9), Accepted::Stale),
            ((4, 99), Accepted::Stale),
            ((5, 11), Accepted::Taken),
            ((6, 1), Accepted::Taken),
            ((5, 12), Accepted::Stale),
        ];
        for ((epoch, revision), expected) in cases {
            assert_eq!(
                journal.accept(&intent(epoch, revision)).unwrap(),
                expected,
                "{epoch}/{revision}"
            );
        }
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let again = Journal::open(path, "eu").unwrap();
        assert_eq!(again.last().map(|i| (i.epoch, i.revision)), Some((6, 1)));
    }

    #[test]
    fn foreign_and_damaged_intents_are_refused_without_quoting_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.json");
        let mut journal = Journal::open(path.clone(), "us").unwrap();
        assert!(
            journal
                .accept(&intent(1, 1))
                .unwrap_err()
                .to_string()
                .contains("this agent is of \"us\"")
        );
        let text = journal
            .accept(br#"{"cluster": "us", "epoch": "SECRET"}"#)
            .unwrap_err()
            .to_string();
        assert!(!text.contains("SECRET"), "{text}");
        std::fs::write(&path, "{").unwrap();
        assert!(matches!(Journal::open(path, "us"), Err(AgentError::Damaged { .. })));
    }
}
