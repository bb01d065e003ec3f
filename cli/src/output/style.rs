//! Colours, or none.

/// Paints text for one stream.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Paint {
    on: bool,
}

impl Paint {
    /// Paints when `on`, otherwise gives texts back as they are.
    pub(crate) const fn new(on: bool) -> Self {
        Self { on }
    }

    fn with(self, code: &str, text: &str) -> String {
        if self.on {
            format!("\u{1b}[{code}m{text}\u{1b}[0m")
        } else {
            text.to_owned()
        }
    }

    /// For faults.
    pub(crate) fn red(self, text: &str) -> String {
        self.with("31", text)
    }

    /// For what is well.
    pub(crate) fn green(self, text: &str) -> String {
        self.with("32", text)
    }

    /// For what needs a look.
    pub(crate) fn yellow(self, text: &str) -> String {
        self.with("33", text)
    }

    /// For what matters less.
    pub(crate) fn dim(self, text: &str) -> String {
        self.with("2", text)
    }

    /// For headings and commands.
    pub(crate) fn bold(self, text: &str) -> String {
        self.with("1", text)
    }

    /// By what a state's name means.
    pub(crate) fn state(self, padded: &str) -> String {
        match padded.trim_end() {
            "Ready" | "Initialized" | "Leader" | "True" | "yes" | "running" => self.green(padded),
            "Failed" | "False" | "no" | "stopped" => self.red(padded),
            "Pending" | "Terminating" | "Candidate" | "Sleeping" | "Unknown" => self.yellow(padded),
            _ => padded.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_added_when_off() {
        assert_eq!(Paint::new(false).red("x"), "x");
        assert_eq!(Paint::new(true).red("x"), "\u{1b}[31mx\u{1b}[0m");
        assert_eq!(Paint::new(true).state("Ready   "), "\u{1b}[32mReady   \u{1b}[0m");
    }
}
