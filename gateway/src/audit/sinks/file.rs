//! Events into a file, one in each line, as `hanse audit export` writes them.
//!
//! What was taken is on the disk. A file that has grown to its size is put aside under the time of that moment
//! (`audit.log` as `audit-2026-11-21T17-43-50.123.log`), and the oldest of those go, by number and age. One that somebody else
//! moved away is made anew, and half a line at the end, which a crash has left, is cut off: its event comes again.

use super::Way;
use crate::audit::settings::FileSink;
use async_trait::async_trait;
use hanse_api::Timestamp;
use hanse_runtime::clock::SharedClock;
use parking_lot::Mutex;
use serde_json::Value;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Nobody but the owner reads it.
const MODE: u32 = 0o600;
/// A line is not longer than this: an event, and what its export adds.
const MAX_LINE: u64 = 64 * 1024;
/// Names that are tried for a file that is put aside, one for each millisecond.
const NAME_TRIES: u64 = 1000;
const DAY: Duration = Duration::from_secs(86_400);

/// A file and those that came before it.
#[derive(Clone)]
pub(super) struct Log {
    settings: FileSink,
    clock: SharedClock,
}

impl Log {
    pub(super) fn new(settings: FileSink, clock: SharedClock) -> Self {
        Self { settings, clock }
    }
}

/// Way into a file.
pub(super) struct ToFile {
    log: Log,
    open: Arc<Mutex<Option<File>>>,
}

impl ToFile {
    pub(super) fn new(log: Log) -> Self {
        Self {
            log,
            open: Arc::default(),
        }
    }
}

#[async_trait]
impl Way for ToFile {
    async fn deliver(&mut self, events: &[Value]) -> Result<(), String> {
        let lines: String = events.iter().map(|event| format!("{event}\n")).collect();
        let (open, settings) = (Arc::clone(&self.open), self.log.settings.clone());
        let now = self.log.clock.wall();
        // The file is locked as long as it is written, also when nobody waits for that any more.
        let work = move || append(&mut open.lock(), &settings, &lines, now);
        let path = self.log.settings.path.display();
        match tokio::task::spawn_blocking(work).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(format!("{path}: {error}")),
            Err(error) => Err(format!("{path}: {error}")),
        }
    }
}

/// Appends whole lines, all or none, and puts the file aside before when it would grow beyond its size.
fn append(open: &mut Option<File>, settings: &FileSink, lines: &str, now: Timestamp) -> io::Result<()> {
    let path = settings.path.as_path();
    let mut file = match open.take().filter(|file| is_at(file, path)) {
        Some(file) => file,
        None => open_whole(path)?,
    };
    let (size, more) = (file.metadata()?.len(), lines.len() as u64);
    let most = settings.max_mib.saturating_mul(1024 * 1024);
    if size > 0 && size.saturating_add(more) > most {
        fs::rename(path, aside(path, now)?)?;
        file = open_whole(path)?;
        remove_old(settings, now)?;
    }
    let before = file.metadata()?.len();
    let written = file.write_all(lines.as_bytes()).and_then(|()| file.sync_data());
    if written.is_err() {
        // What is there of the lines would be there twice.
        file.set_len(before)?;
    } else {
        *open = Some(file);
    }
    written
}

/// Whether `file` is still what lies at `path`.
fn is_at(file: &File, path: &Path) -> bool {
    let same = |(one, other): (fs::Metadata, fs::Metadata)| (one.dev(), one.ino()) == (other.dev(), other.ino());
    file.metadata().ok().zip(fs::metadata(path).ok()).is_some_and(same)
}

/// Opens a file for appending, which ends with a whole line.
fn open_whole(path: &Path) -> io::Result<File> {
    let made = !path.exists();
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .read(true)
        .mode(MODE)
        .open(path)?;
    if made {
        sync_folder(path)?;
    }
    let size = file.metadata()?.len();
    let tail = size.min(MAX_LINE);
    file.seek(SeekFrom::Start(size - tail))?;
    let mut last = Vec::new();
    (&mut file).take(tail).read_to_end(&mut last)?;
    let whole = match last.iter().rposition(|byte| *byte == b'\n') {
        Some(at) => size - tail + at as u64 + 1,
        None if tail == size => 0,
        None => return Err(io::Error::other("it holds something else than events: move it away")),
    };
    if whole < size {
        file.set_len(whole)?;
    }
    Ok(file)
}

fn folder(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

/// A rename or a new name is on the disk after this.
fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(folder(path))?.sync_all()
}

/// What names of files begin and end with that were put aside.
fn around(path: &Path) -> (String, String) {
    let text = |part: Option<&std::ffi::OsStr>| part.unwrap_or_default().to_string_lossy().into_owned();
    let end = path.extension().map(|end| format!(".{}", text(Some(end))));
    (format!("{}-", text(path.file_stem())), end.unwrap_or_default())
}

/// A moment as part of a name. The order of names is that of moments.
fn stamp(at: Timestamp) -> String {
    let text = at.micros().replace(':', "-");
    text.trim_end_matches("000Z").to_owned()
}

/// A name for the file that is put aside now: after those of all that are there, even when the clock stood.
fn aside(path: &Path, now: Timestamp) -> io::Result<PathBuf> {
    let (there, (begin, end)) = (stamps(path)?, around(path));
    let stamp = |n| stamp(now.plus(Duration::from_millis(n)));
    let latest = |stamp: &String| there.iter().all(|other| other < stamp);
    // A clock that was set back leaves names of the future behind.
    let next = (0..NAME_TRIES).map(stamp).find(latest);
    let next = next.or_else(|| (0..NAME_TRIES).map(stamp).find(|stamp| !there.contains(stamp)));
    let next = next.ok_or_else(|| io::Error::other("no name is free to put it aside"))?;
    Ok(path.with_file_name(format!("{begin}{next}{end}")))
}

/// When those files were put aside that are there.
fn stamps(path: &Path) -> io::Result<Vec<String>> {
    let (begin, end) = around(path);
    let mut stamps = Vec::new();
    for entry in fs::read_dir(folder(path))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let stamp = name.strip_prefix(&begin).and_then(|rest| rest.strip_suffix(&end));
        stamps.extend(stamp.filter(|stamp| is_stamp(stamp)).map(str::to_owned));
    }
    Ok(stamps)
}

fn remove_old(settings: &FileSink, now: Timestamp) -> io::Result<()> {
    let path = settings.path.as_path();
    let (begin, end) = around(path);
    let age = (settings.max_days > 0).then(|| DAY * settings.max_days);
    for stamp in surplus(stamps(path)?, settings.max_files, age, now) {
        fs::remove_file(path.with_file_name(format!("{begin}{stamp}{end}")))?;
    }
    sync_folder(path)
}

fn is_stamp(text: &str) -> bool {
    let form = "0000-00-00T00-00-00.000";
    let fits = |(byte, form): (u8, u8)| {
        if form == b'0' {
            byte.is_ascii_digit()
        } else {
            byte == form
        }
    };
    text.len() == form.len() && text.bytes().zip(form.bytes()).all(fits)
}

/// Which of those that were put aside go. Pure.
fn surplus(mut stamps: Vec<String>, keep: usize, age: Option<Duration>, now: Timestamp) -> Vec<String> {
    stamps.sort();
    let days = age.map(|age| i64::try_from(age.as_millis()).unwrap_or(i64::MAX));
    let oldest = days.map(|age| stamp(Timestamp::from_millis(now.as_millis().saturating_sub(age))));
    let too_many = stamps.len().saturating_sub(keep);
    let old = |stamp: &String| oldest.as_ref().is_some_and(|oldest| stamp < oldest);
    let goes = |(n, stamp): (usize, String)| (n < too_many || old(&stamp)).then_some(stamp);
    stamps.into_iter().enumerate().filter_map(goes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    const DAY_MILLIS: i64 = 86_400_000;

    fn at(days: i64) -> Timestamp {
        Timestamp::from_millis(1_700_000_000_000 + days * DAY_MILLIS)
    }

    fn settings(dir: &tempfile::TempDir) -> FileSink {
        FileSink {
            path: dir.path().join("audit.log"),
            max_mib: 1,
            max_files: 3,
            max_days: 30,
        }
    }

    fn names(dir: &tempfile::TempDir) -> Vec<String> {
        let entries = fs::read_dir(dir.path()).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn what_is_too_old_or_too_many_goes() {
        let stamps: Vec<String> = (0..6).map(|day| stamp(at(day))).collect();
        let goes = |keep, days: Option<u32>| surplus(stamps.clone(), keep, days.map(|d| DAY * d), at(6)).len();
        assert_eq!(goes(10, None), 0);
        assert_eq!(goes(4, None), 2);
        assert_eq!(goes(10, Some(3)), 3);
        assert_eq!(goes(4, Some(3)), 3);
        assert_eq!(surplus(stamps.clone(), 5, None, at(6)), [stamps[0].clone()]);
        assert!(is_stamp(&stamps[0]) && !is_stamp("2026-11-21"), "{stamps:?}");
    }

    #[test]
    fn a_full_file_is_put_aside_and_the_oldest_go() {
        let dir = tempfile::tempdir().unwrap();
        let settings = settings(&dir);
        let mut open = None;
        let half = format!("{}\n", "x".repeat(600 * 1024));
        fs::write(dir.path().join("audit-notes.log"), "not ours").unwrap();
        for _ in 0..6 {
            append(&mut open, &settings, &half, at(0)).unwrap();
        }
        let names = names(&dir);
        assert_eq!(names.len(), 5, "{names:?}");
        assert!(names.contains(&"audit.log".to_owned()) && names.contains(&"audit-notes.log".to_owned()));
        // Those of one moment have names of their own, and the first went.
        assert_eq!(
            names[0],
            format!("audit-{}.log", stamp(at(0).plus(Duration::from_millis(2))))
        );
        let mode = fs::metadata(&settings.path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, MODE);
        append(&mut open, &settings, &half, at(40)).unwrap();
        assert_eq!(
            self::names(&dir).len(),
            3,
            "only the newest is young enough: {:?}",
            self::names(&dir)
        );
    }

    #[test]
    fn half_a_line_is_cut_off_and_a_file_that_was_moved_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let settings = settings(&dir);
        fs::write(&settings.path, "one\ntw").unwrap();
        let mut open = None;
        append(&mut open, &settings, "two\n", at(0)).unwrap();
        assert_eq!(fs::read_to_string(&settings.path).unwrap(), "one\ntwo\n");
        fs::rename(&settings.path, dir.path().join("moved")).unwrap();
        append(&mut open, &settings, "three\n", at(0)).unwrap();
        assert_eq!(fs::read_to_string(&settings.path).unwrap(), "three\n");
        fs::write(&settings.path, "x").unwrap();
        append(&mut None, &settings, "four\n", at(0)).unwrap();
        assert_eq!(fs::read_to_string(&settings.path).unwrap(), "four\n");
    }

    #[test]
    fn a_folder_that_is_not_there_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let mut settings = settings(&dir);
        settings.path = dir.path().join("none/audit.log");
        assert!(append(&mut None, &settings, "one\n", at(0)).is_err());
    }
}
