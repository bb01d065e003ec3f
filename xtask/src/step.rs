//! Steps with elapsed time: a spinner on a terminal, plain lines elsewhere.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How many of a failed command's last lines are shown.
const TAIL: usize = 200;
/// How lines begin that only tell what cargo does: of no use after a failure.
const CHATTER: &[&str] = &["Compiling ", "Checking ", "Downloading ", "Downloaded "];
/// How often a running step says so where there is no terminal.
const PLAIN_EVERY: Duration = Duration::from_secs(30);

static PLAIN: AtomicBool = AtomicBool::new(false);

/// Two steps that run at once would overwrite each other's spinner.
pub(crate) fn force_plain() {
    PLAIN.store(true, Ordering::Relaxed);
}

fn spinner_wanted() -> bool {
    !PLAIN.load(Ordering::Relaxed) && std::io::stderr().is_terminal() && std::env::var_os("CI").is_none()
}

/// One line of `up`, from its start to its result.
pub(crate) struct Step {
    name: &'static str,
    began: Instant,
    log: RefCell<Option<PathBuf>>,
    status: Arc<Mutex<String>>,
    done: Arc<AtomicBool>,
    painter: Option<thread::JoinHandle<()>>,
}

impl Step {
    /// Starts the step. `what` says what is about to happen and how long it may take.
    pub(crate) fn start(name: &'static str, what: &str) -> Self {
        let status = Arc::new(Mutex::new(what.to_owned()));
        let done = Arc::new(AtomicBool::new(false));
        if !spinner_wanted() && !what.is_empty() {
            eprintln!("{name}: {what}");
        }
        let began = Instant::now();
        let painter = {
            let (status, done) = (Arc::clone(&status), Arc::clone(&done));
            thread::spawn(move || paint(name, began, &status, &done))
        };
        Self {
            name,
            began,
            log: RefCell::new(None),
            status,
            done,
            painter: Some(painter),
        }
    }

    /// Where the output of the step's commands is kept.
    pub(crate) fn log_to(&self, path: &Path) {
        let _first_run_has_none = fs::remove_file(path).is_ok();
        self.log.replace(Some(path.to_owned()));
    }

    /// Changes what the running step shows.
    pub(crate) fn say(&self, text: &str) {
        text.clone_into(&mut lock(&self.status));
        if !spinner_wanted() {
            eprintln!("{}: {text}", self.name);
        }
    }

    /// Runs a command to its end, its output in the step's log, its last line on show.
    pub(crate) fn run(&self, command: &mut Command) -> Result<()> {
        let shown = format!("{command:?}").replace('"', "");
        let (reader, writer) = std::io::pipe().context("create a pipe")?;
        let mut child = command
            .stdin(Stdio::null())
            .stdout(writer.try_clone().context("create a pipe")?)
            .stderr(writer)
            .spawn()
            .with_context(|| format!("start `{shown}`"))?;
        // The command object keeps our write ends open: let them go, or the read never ends.
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let tail = self.follow(reader)?;
        let status = child.wait().with_context(|| format!("wait for `{shown}`"))?;
        if status.success() {
            return Ok(());
        }
        let log = self
            .log
            .borrow()
            .as_ref()
            .map(|p| format!("\nall of it: {}", p.display()));
        bail!(
            "`{shown}` failed ({status}); its last lines:\n{}{}",
            tail.into_iter()
                .map(|l| format!("    {l}"))
                .collect::<Vec<_>>()
                .join("\n"),
            log.unwrap_or_default()
        )
    }

    /// Copies the output to the log; ninja and cargo end lines by `\r` at times.
    fn follow(&self, output: impl Read) -> Result<VecDeque<String>> {
        let mut log = match self.log.borrow().as_deref() {
            Some(path) => Some(open_log(path)?),
            None => None,
        };
        let mut tail = VecDeque::with_capacity(TAIL);
        for line in BufReader::new(output).split(b'\n') {
            let line = line.context("read a command's output")?;
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            if let Some(log) = &mut log {
                writeln!(log, "{line}").context("write the log")?;
            }
            let text = line.trim();
            if text.is_empty() {
                continue;
            }
            text.clone_into(&mut lock(&self.status));
            if !CHATTER.iter().any(|start| text.starts_with(start)) {
                if tail.len() == TAIL {
                    tail.pop_front();
                }
                tail.push_back(line);
            }
        }
        Ok(tail)
    }

    /// Ends the step well and shows how long it took.
    pub(crate) fn finish(mut self, result: &str) {
        self.stop();
        eprintln!("{}: {result} ({})", self.name, elapsed(self.began.elapsed()));
    }

    fn stop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
        if let Some(painter) = self.painter.take() {
            painter.thread().unpark();
            if painter.join().is_err() {
                eprintln!("{}: the progress thread panicked", self.name);
            }
        }
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if self.painter.is_some() {
            self.stop();
            eprintln!("{}: FAILED after {}", self.name, elapsed(self.began.elapsed()));
        }
    }
}

fn open_log(path: &Path) -> Result<File> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
    }
    File::options()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| format!("open {}", path.display()))
}

fn paint(name: &str, began: Instant, status: &Mutex<String>, done: &AtomicBool) {
    const FRAMES: [char; 4] = ['|', '/', '-', '\\'];
    let spinner = spinner_wanted();
    let pause = if spinner {
        Duration::from_millis(200)
    } else {
        PLAIN_EVERY
    };
    let mut frame = 0;
    loop {
        if spinner {
            let line = format!(
                "{} {name} {}  {}",
                FRAMES[frame % FRAMES.len()],
                elapsed(began.elapsed()),
                lock(status)
            );
            let line: String = line.chars().take(terminal_width() - 1).collect();
            eprint!("\r\x1b[2K{line}");
        } else if frame > 0 {
            eprintln!("{name}: {}: {}", elapsed(began.elapsed()), lock(status));
        }
        frame += 1;
        let until = Instant::now() + pause;
        while Instant::now() < until && !done.load(Ordering::Relaxed) {
            thread::park_timeout(until.saturating_duration_since(Instant::now()));
        }
        if done.load(Ordering::Relaxed) {
            break;
        }
    }
    if spinner {
        eprint!("\r\x1b[2K");
    }
}

/// A line that wraps cannot be erased by `\r`.
fn terminal_width() -> usize {
    let columns = std::env::var("COLUMNS").ok().and_then(|c| c.parse().ok());
    columns.filter(|c| *c > 20).unwrap_or(80)
}

fn lock(text: &Mutex<String>) -> std::sync::MutexGuard<'_, String> {
    text.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `0.4 s`, `12 s`, `5 min 41 s`.
pub(crate) fn elapsed(time: Duration) -> String {
    match time.as_secs() {
        0..10 => format!("{:.1} s", time.as_secs_f64()),
        s @ 10..60 => format!("{s} s"),
        s => format!("{} min {:02} s", s / 60, s % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elapsed_reads_well() {
        assert_eq!(elapsed(Duration::from_millis(420)), "0.4 s");
        assert_eq!(elapsed(Duration::from_secs(12)), "12 s");
        assert_eq!(elapsed(Duration::from_secs(341)), "5 min 41 s");
    }

    #[test]
    fn failed_command_shows_its_last_lines() {
        let step = Step::start("test", "");
        let error = step
            .run(Command::new("sh").args(["-c", "echo one; echo two >&2; exit 3"]))
            .unwrap_err()
            .to_string();
        assert!(error.contains("    one\n    two"), "{error}");
        assert!(error.contains("exit status: 3"), "{error}");
        step.finish("ok");
    }
}
