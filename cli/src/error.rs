//! What a command may fail with: one sentence of what failed and where, one of what to do, and an exit code.

use std::fmt;
use std::process::ExitCode;

/// Class of a failure. Fixes the exit code, which scripts may rely on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Something else went wrong.
    Failed,
    /// The command line or an input was wrong.
    Usage,
    /// A named thing does not exist.
    NotFound,
    /// Not logged in, or not allowed.
    Denied,
    /// The thing exists already or changed meanwhile.
    Conflict,
    /// Nothing answers at the address.
    Unreachable,
    /// It did not happen in the time given.
    TimedOut,
}

impl Kind {
    /// The process' exit code.
    pub(crate) const fn exit_code(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Usage => 2,
            Self::NotFound => 3,
            Self::Denied => 4,
            Self::Conflict => 5,
            Self::Unreachable => 6,
            Self::TimedOut => 124,
        }
    }

    /// Whether the same command may succeed later without a change.
    pub(crate) const fn retryable(self) -> bool {
        match self {
            Self::Unreachable | Self::TimedOut => true,
            Self::Failed | Self::Usage | Self::NotFound | Self::Denied | Self::Conflict => false,
        }
    }
}

/// The exit codes, for `--help`.
pub(crate) const EXIT_CODES: &str = "Exit codes: 0 done, 1 failure, 2 wrong usage or input, 3 not found, 4 not logged in \
or not allowed, 5 exists already or changed meanwhile, 6 nothing answers, 124 timed out";

/// A failure of a command.
#[derive(Debug)]
pub(crate) struct Error {
    kind: Kind,
    message: String,
    hint: Option<String>,
}

/// What the functions of this crate return.
pub(crate) type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// A failure of class `kind`: what failed, where, and why.
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            hint: None,
        }
    }

    /// A failure without a class of its own.
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::new(Kind::Failed, message)
    }

    /// Wrong input.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, message)
    }

    /// A thing that does not exist.
    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new(Kind::NotFound, message)
    }

    /// A file operation that failed; the usual reasons get their remedy.
    pub(crate) fn io(doing: &str, path: &std::path::Path, error: &std::io::Error) -> Self {
        let new = Self::failed(format!("cannot {doing} {}: {error}", path.display()));
        match error.kind() {
            std::io::ErrorKind::StorageFull => new.hint("free some space on that file system"),
            std::io::ErrorKind::PermissionDenied => new.hint("check the owner and mode of the path"),
            std::io::ErrorKind::ReadOnlyFilesystem => new.hint("choose a writable folder with --home"),
            _ => new,
        }
    }

    /// The same with what to do about it.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same with more of where it happened in front.
    pub(crate) fn within(mut self, place: &str) -> Self {
        self.message = format!("{place}: {}", self.message);
        self
    }

    /// Its class.
    pub(crate) const fn kind(&self) -> Kind {
        self.kind
    }

    /// What to do about it.
    pub(crate) fn remedy(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// The process' exit code.
    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.kind.exit_code())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_differ_and_match_the_help_text() {
        let kinds = [
            Kind::Failed,
            Kind::Usage,
            Kind::NotFound,
            Kind::Denied,
            Kind::Conflict,
            Kind::Unreachable,
            Kind::TimedOut,
        ];
        for kind in kinds {
            let code = kind.exit_code().to_string();
            assert!(EXIT_CODES.contains(&format!(" {code} ")), "{kind:?}");
            assert_eq!(kinds.iter().filter(|k| k.exit_code() == kind.exit_code()).count(), 1);
        }
        assert!(Kind::Unreachable.retryable() && !Kind::Denied.retryable());
    }

    #[test]
    fn a_full_disk_names_the_path_and_the_remedy() {
        let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
        let error = Error::io("write", std::path::Path::new("/x/y"), &full);
        assert!(error.to_string().contains("/x/y"));
        assert!(error.remedy().unwrap().contains("free some space"));
    }
}
