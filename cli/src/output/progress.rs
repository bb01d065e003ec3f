//! One line per step with the time it took: redrawn on a terminal, plain lines elsewhere.

use super::Output;
use hanse_runtime::clock::SharedClock;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::time::Duration;

/// How often the spinner turns.
const TICK: Duration = Duration::from_millis(120);

/// A step that is being worked on. Dropped without [`Step::done`], it shows as failed.
pub(crate) struct Step {
    name: String,
    output: Output,
    clock: SharedClock,
    started: Duration,
    bar: Option<ProgressBar>,
    said: String,
    ended: bool,
}

impl Step {
    /// Begins the step `name`.
    pub(crate) fn start(output: Output, clock: &SharedClock, name: &str) -> Self {
        let bar = output.live.then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            if let Ok(style) = ProgressStyle::with_template("  {spinner} {msg} {elapsed}") {
                bar.set_style(style);
            }
            bar.set_message(name.to_owned());
            bar.enable_steady_tick(TICK);
            bar
        });
        Self {
            name: name.to_owned(),
            output,
            clock: clock.clone(),
            started: clock.mono(),
            bar,
            said: String::new(),
            ended: false,
        }
    }

    /// Says what it waits for. The same words twice are said once.
    pub(crate) fn say(&mut self, what: &str) {
        if what.is_empty() || what == self.said {
            return;
        }
        what.clone_into(&mut self.said);
        match &self.bar {
            Some(bar) => bar.set_message(format!("{}: {what}", self.name)),
            None => eprintln!("  {}: {what}", self.name),
        }
    }

    /// Ends it well with a word about the outcome.
    pub(crate) fn done(mut self, outcome: &str) {
        self.end(true, outcome);
    }

    /// How long it has run.
    pub(crate) fn elapsed(&self) -> Duration {
        self.clock.mono().saturating_sub(self.started)
    }

    fn end(&mut self, well: bool, outcome: &str) {
        self.ended = true;
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        let paint = self.output.err;
        let mark = if well { paint.green("✓") } else { paint.red("✗") };
        let time = paint.dim(&format!("({})", seconds(self.elapsed())));
        let colon = if outcome.is_empty() { "" } else { ": " };
        eprintln!("  {mark} {}{colon}{outcome} {time}", self.name);
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if !self.ended {
            let said = std::mem::take(&mut self.said);
            self.end(false, &said);
        }
    }
}

/// A span of time for people.
pub(crate) fn seconds(span: Duration) -> String {
    if span < Duration::from_secs(100) {
        format!("{:.1} s", span.as_secs_f64())
    } else {
        format!("{} min {:02} s", span.as_secs() / 60, span.as_secs() % 60)
    }
}

/// The age of something, as kubectl writes it.
pub(crate) fn age(span: Duration) -> String {
    let s = span.as_secs();
    match s {
        0..120 => format!("{s}s"),
        120..7200 => format!("{}m", s / 60),
        7200..172_800 => format!("{}h", s / 3600),
        _ => format!("{}d", s / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_for_people() {
        assert_eq!(seconds(Duration::from_millis(1234)), "1.2 s");
        assert_eq!(seconds(Duration::from_secs(125)), "2 min 05 s");
        assert_eq!(age(Duration::from_secs(90)), "90s");
        assert_eq!(age(Duration::from_secs(180)), "3m");
        assert_eq!(age(Duration::from_secs(10_800)), "3h");
        assert_eq!(age(Duration::from_secs(200_000)), "2d");
    }
}
