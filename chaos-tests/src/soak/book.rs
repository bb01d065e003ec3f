//! What was acknowledged, what was seen, and what must hold between the two. Pure.
//!
//! Every object has one writer, which drives each request to a known end before it sends the next one. So its record is
//! the whole history of the object, and whatever else is seen of it is a fault.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

/// Faults of one check that are told; the rest is counted.
const TOLD: usize = 10;

/// One object as its writer knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Life {
    /// Told by the server.
    pub uid: String,
    /// The revision of its creation, and of each update.
    pub revisions: Vec<u64>,
    /// Its deletion was acknowledged, or it expired.
    pub ended: bool,
    /// When the first request for it was sent.
    pub born: Option<Instant>,
    /// A request that would create it failed in a way that leaves open whether it will yet be carried out: another object
    /// of this name, which nobody was told of, may come late.
    pub doubtful: bool,
}

/// Objects of one kind by name.
pub type Book = BTreeMap<String, Life>;

/// What a watch tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// ADDED.
    Added,
    /// MODIFIED.
    Modified,
    /// DELETED.
    Deleted,
    /// BOOKMARK: everything up to this revision was told.
    Mark,
}

/// One event of a watch.
#[derive(Clone, Debug)]
pub struct Seen {
    /// What.
    pub change: Change,
    /// Of which object; empty for a bookmark.
    pub name: String,
    /// The same.
    pub uid: String,
    /// At which revision.
    pub revision: u64,
    /// When it came.
    pub at: Instant,
}

/// The follower was told that its revision is gone (410), and listed anew.
#[derive(Clone, Debug)]
pub struct Relist {
    /// The last revision before it.
    pub from: u64,
    /// The revision of the list.
    pub to: u64,
    /// What the list held: names and revisions.
    pub present: BTreeMap<String, u64>,
}

/// All that one follower saw.
#[derive(Clone, Debug, Default)]
pub struct Log {
    /// The revision of its first list.
    pub begun: u64,
    /// In the order of arrival.
    pub seen: Vec<Seen>,
    /// What came last before each break of the stream.
    pub breaks: Vec<Option<Change>>,
    /// In the order of time.
    pub relists: Vec<Relist>,
}

impl Log {
    fn gap(&self, revision: u64) -> bool {
        let within = |relist: &Relist| relist.from < revision && revision <= relist.to;
        revision <= self.begun || self.relists.iter().any(within)
    }

    /// Whether a list between two watches did not hold it any more.
    fn listed_without(&self, name: &str, last: u64) -> bool {
        let gone = |relist: &Relist| relist.to >= last && !relist.present.contains_key(name);
        self.relists.iter().any(gone)
    }
}

/// Faults of one check.
#[derive(Debug, Default)]
pub struct Faults {
    told: Vec<String>,
    more: usize,
}

impl Faults {
    fn add(&mut self, fault: String) {
        if self.told.len() < TOLD {
            self.told.push(fault);
        } else {
            self.more += 1;
        }
    }

    /// As lines; none if all is well.
    pub fn lines(mut self) -> Vec<String> {
        if self.more > 0 {
            self.told.push(format!("and {} more", self.more));
        }
        self.told
    }
}

/// What is wrong with `present` (name to uid and revision), read when nothing was under way. The names of `book` are all
/// that may be there.
pub fn state_faults(book: &Book, present: &BTreeMap<String, (String, u64)>) -> Faults {
    let mut faults = Faults::default();
    for (name, life) in book {
        match present.get(name) {
            None if !life.ended => faults.add(format!("{name} was acknowledged and is gone: {life:?}")),
            Some((uid, _)) if life.ended && !(life.doubtful && *uid != life.uid) => {
                faults.add(format!("{name} was deleted and is there"));
            }
            Some((uid, revision)) if !life.ended => {
                let last = life.revisions.last().copied().unwrap_or_default();
                if (uid, *revision) != (&life.uid, last) {
                    faults.add(format!(
                        "{name} is {uid} at {revision}, acknowledged was {} at {last}",
                        life.uid
                    ));
                }
            }
            _ => {}
        }
    }
    for name in present.keys().filter(|name| !book.contains_key(*name)) {
        faults.add(format!("{name} is there and nobody made it"));
    }
    faults
}

/// What is wrong with what a follower saw. `expires`: objects end by themselves, many at one revision.
pub fn watch_faults(book: &Book, log: &Log, expires: bool) -> Faults {
    let mut faults = Faults::default();
    order(log, expires, &mut faults);
    let mut by_name: HashMap<&str, Vec<&Seen>> = HashMap::new();
    for seen in log.seen.iter().filter(|seen| seen.change != Change::Mark) {
        by_name.entry(&seen.name).or_default().push(seen);
    }
    for (name, life) in book {
        let seen = by_name.remove(name.as_str()).unwrap_or_default();
        one(name, life, &seen, log, expires, &mut faults);
    }
    for (name, seen) in by_name {
        faults.add(format!("{name} was told and nobody made it: {seen:?}"));
    }
    faults
}

/// Revisions only rise, and nothing comes after the bookmark that says it came. Only what expired together shares one.
fn order(log: &Log, expires: bool, faults: &mut Faults) {
    for pair in log.seen.windows(2) {
        let [before, after] = pair else { continue };
        let both_expired = expires && [before, after].iter().all(|seen| seen.change == Change::Deleted);
        let fine = if after.change == Change::Mark || both_expired {
            before.revision <= after.revision
        } else {
            before.revision < after.revision
        };
        if !fine {
            faults.add(format!("out of order: {before:?}, then {after:?}"));
        }
    }
}

fn one(name: &str, life: &Life, seen: &[&Seen], log: &Log, expires: bool, faults: &mut Faults) {
    let (own, others): (Vec<&Seen>, Vec<&Seen>) = seen.iter().partition(|seen| seen.uid == life.uid);
    if !others.is_empty() && !life.doubtful {
        faults.add(format!("{name} came back as another: {others:?}, made was {life:?}"));
    }
    let made = life.revisions.iter().copied().filter(|revision| !log.gap(*revision));
    let first = life.revisions.first().copied();
    let made: Vec<(Change, u64)> = made
        .map(|revision| match first == Some(revision) {
            true => (Change::Added, revision),
            false => (Change::Modified, revision),
        })
        .collect();
    let deletions = own.iter().filter(|seen| seen.change == Change::Deleted).count();
    let told: Vec<(Change, u64)> = own
        .iter()
        .filter(|seen| seen.change != Change::Deleted)
        .map(|seen| (seen.change, seen.revision))
        .collect();
    if told != made {
        faults.add(format!("{name}: told {told:?}, made {made:?}"));
    }
    let last = life.revisions.last().copied().unwrap_or_default();
    // A watch goes on after a revision: of several deletions at one, those behind the break are told to nobody. That is
    // how Kubernetes' watches are, whatever store is below.
    let excused = log.listed_without(name, last) || expires && log.breaks.contains(&Some(Change::Deleted));
    match (life.ended, deletions) {
        (true, 1) if own.last().is_some_and(|seen| seen.change == Change::Deleted) => {}
        (true, 0) if excused => {}
        (false, 0) => {}
        _ => faults.add(format!("{name}: {deletions} deletions told, made was {life:?}")),
    }
}

/// Objects that ended before `ttl` was over.
pub fn early_ends(book: &Book, log: &Log, ttl: Duration) -> Faults {
    let mut faults = Faults::default();
    for seen in log.seen.iter().filter(|seen| seen.change == Change::Deleted) {
        let born = book.get(&seen.name).and_then(|life| life.born);
        let lived = born.map(|born| seen.at.saturating_duration_since(born));
        if lived.is_some_and(|lived| lived < ttl) {
            faults.add(format!("{} was to live {ttl:?} and ended after {lived:?}", seen.name));
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;
    use Change::{Added, Deleted, Mark, Modified};

    fn life(uid: &str, revisions: &[u64], ended: bool) -> Life {
        Life {
            uid: uid.into(),
            revisions: revisions.to_vec(),
            ended,
            ..Life::default()
        }
    }

    fn seen(change: Change, name: &str, uid: &str, revision: u64) -> Seen {
        Seen {
            change,
            name: name.into(),
            uid: uid.into(),
            revision,
            at: Instant::now(),
        }
    }

    fn book() -> Book {
        Book::from([
            ("a".into(), life("1", &[5, 7], true)),
            ("b".into(), life("2", &[6], false)),
        ])
    }

    fn log() -> Log {
        Log {
            begun: 4,
            seen: vec![
                seen(Added, "a", "1", 5),
                seen(Added, "b", "2", 6),
                seen(Modified, "a", "1", 7),
                seen(Mark, "", "", 7),
                seen(Deleted, "a", "1", 8),
            ],
            ..Log::default()
        }
    }

    fn said(book: &Book, log: &Log) -> String {
        watch_faults(book, log, false).lines().join("; ")
    }

    #[test]
    fn a_watch_that_tells_everything_once_is_right() {
        assert_eq!(said(&book(), &log()), "");
    }

    #[test]
    fn a_watch_that_skips_repeats_or_reorders_is_wrong() {
        for lost in 0..5 {
            let mut wrong = log();
            let gone = wrong.seen.remove(lost);
            assert_eq!(
                said(&book(), &wrong).is_empty(),
                gone.change == Mark,
                "without {gone:?}"
            );
        }
        for twice in 0..5 {
            let mut wrong = log();
            wrong.seen.insert(twice, wrong.seen[twice].clone());
            assert_eq!(said(&book(), &wrong).is_empty(), twice == 3, "{twice}");
        }
        for at in 0..4 {
            let mut wrong = log();
            wrong.seen.swap(at, at + 1);
            assert!(!said(&book(), &wrong).is_empty(), "{at}");
        }
        let mut wrong = log();
        wrong.seen.push(seen(Added, "a", "9", 9));
        assert!(said(&book(), &wrong).contains("came back"));
        wrong = log();
        wrong.seen.push(seen(Added, "c", "9", 9));
        assert!(said(&book(), &wrong).contains("nobody made it"));
    }

    #[test]
    fn what_a_list_covered_need_not_be_told() {
        let mut log = log();
        log.seen.drain(2..);
        assert!(!said(&book(), &log).is_empty());
        log.relists.push(Relist {
            from: 6,
            to: 8,
            present: BTreeMap::from([("b".into(), 6)]),
        });
        assert_eq!(said(&book(), &log), "");
    }

    #[test]
    fn a_late_creation_is_excused_only_where_one_is_possible() {
        let (mut book, mut log) = (book(), log());
        log.seen.push(seen(Added, "a", "9", 9));
        assert!(!said(&book, &log).is_empty());
        book.get_mut("a").unwrap().doubtful = true;
        assert_eq!(said(&book, &log), "");
    }

    #[test]
    fn the_state_at_the_end_is_what_was_acknowledged() {
        let present = |entries: &[(&str, &str, u64)]| {
            let entries = entries.iter();
            entries
                .map(|(name, uid, revision)| ((*name).to_owned(), ((*uid).to_owned(), *revision)))
                .collect()
        };
        let faults = |entries: &[(&str, &str, u64)]| state_faults(&book(), &present(entries)).lines();
        assert!(faults(&[("b", "2", 6)]).is_empty());
        let wrong = [
            &[][..],
            &[("b", "2", 5)],
            &[("b", "3", 6)],
            &[("b", "2", 6), ("a", "1", 7)],
            &[("b", "2", 6), ("c", "1", 7)],
        ];
        for entries in wrong {
            assert_eq!(faults(entries).len(), 1, "{entries:?}");
        }
    }

    #[test]
    fn what_expired_together_may_share_a_revision_and_not_end_early() {
        let book = Book::from([("a".into(), life("1", &[5], true)), ("b".into(), life("2", &[6], true))]);
        let begun = Instant::now();
        let mut log = log();
        log.seen = vec![seen(Added, "a", "1", 5), seen(Added, "b", "2", 6)];
        log.seen
            .extend([seen(Deleted, "a", "1", 9), seen(Deleted, "b", "2", 9)]);
        assert!(watch_faults(&book, &log, true).lines().is_empty());
        assert!(!watch_faults(&book, &log, false).lines().is_empty());
        let mut book = book;
        book.get_mut("a").unwrap().born = Some(begun);
        assert_eq!(early_ends(&book, &log, Duration::from_secs(9)).lines().len(), 1);
        log.seen[2].at = begun + Duration::from_secs(9);
        assert!(early_ends(&book, &log, Duration::from_secs(9)).lines().is_empty());
    }
}
