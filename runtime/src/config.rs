//! One TOML file per process. Unknown keys are faults, and every fault is told at once.

use serde::de::DeserializeOwned;
use std::fmt;
use std::path::{Path, PathBuf};

/// Checks that types cannot express. Implementations report every fault, each with the path of its key.
pub trait Validate {
    /// Adds each fault to `errors`.
    fn validate(&self, errors: &mut ConfigErrors);
}

/// All faults of one configuration file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfigErrors {
    path: PathBuf,
    faults: Vec<(String, String)>,
}

impl ConfigErrors {
    /// Adds the fault of `key`: what is wrong and what is allowed.
    pub fn add(&mut self, key: impl Into<String>, fault: impl Into<String>) {
        self.faults.push((key.into(), fault.into()));
    }

    /// Adds a fault unless `holds`.
    pub fn require(&mut self, holds: bool, key: &str, fault: &str) {
        if !holds {
            self.add(key, fault);
        }
    }

    /// The faults: key and text.
    pub fn faults(&self) -> &[(String, String)] {
        &self.faults
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "configuration {} has {} fault(s):",
            self.path.display(),
            self.faults.len()
        )?;
        for (key, fault) in &self.faults {
            if key.is_empty() {
                write!(f, "\n  {fault}")?;
            } else {
                write!(f, "\n  {key}: {fault}")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// Reads, parses and checks the file at `path`.
pub fn load<T: DeserializeOwned + Validate>(path: &Path) -> Result<T, ConfigErrors> {
    let mut errors = ConfigErrors {
        path: path.to_owned(),
        faults: Vec::new(),
    };
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => {
            errors.add("", format!("cannot read it: {error}"));
            return Err(errors);
        }
    };
    parse(&text, errors)
}

/// The same for a text that is already there; `path` only names it in faults.
pub fn parse_text<T: DeserializeOwned + Validate>(text: &str, path: &Path) -> Result<T, ConfigErrors> {
    parse(
        text,
        ConfigErrors {
            path: path.to_owned(),
            faults: Vec::new(),
        },
    )
}

fn parse<T: DeserializeOwned + Validate>(text: &str, mut errors: ConfigErrors) -> Result<T, ConfigErrors> {
    match toml::from_str::<T>(text) {
        Ok(config) => {
            config.validate(&mut errors);
            if errors.faults.is_empty() {
                return Ok(config);
            }
        }
        Err(first) => shape_faults::<T>(text, first, &mut errors),
    }
    Err(errors)
}

/// Faults of shape, in the order of their lines: the parser stops at the first that it meets, so what it objects to is blotted
/// out and the rest is parsed again.
fn shape_faults<T: DeserializeOwned>(text: &str, first: toml::de::Error, errors: &mut ConfigErrors) {
    /// More than anybody mends at a time.
    const MOST: usize = 50;
    let mut lines: Vec<&str> = text.lines().collect();
    let (mut error, mut blotted, mut found) = (first, Vec::new(), Vec::new());
    while found.len() < MOST {
        // Only position and message: the excerpt that the parser would show may hold a secret.
        let (message, now) = (error.message().to_owned(), lines.join("\n"));
        let at = error.span().and_then(|span| now.get(..span.start));
        let at = at.map(|before| before.matches('\n').count());
        // What is blotted out is not missing; and without it the text may no longer be TOML.
        let known = blotted.iter().any(|key| message == format!("missing field `{key}`"));
        if known || (!found.is_empty() && now.parse::<toml::Table>().is_err()) {
            break;
        }
        found.push((at, message));
        let Some((at, line)) = at.and_then(|at| Some((at, *lines.get(at)?))) else {
            break;
        };
        if line.trim().is_empty() {
            break;
        }
        let key = line.split(['=', ']']).next().unwrap_or_default();
        blotted.push(key.trim_matches([' ', '[']).to_owned());
        let section = line.trim_start().starts_with('[');
        let body = lines.iter().skip(at + 1);
        let body = body.take_while(|next| section && !next.trim_start().starts_with('['));
        let size = 1 + body.count();
        lines.iter_mut().skip(at).take(size).for_each(|line| *line = "");
        match toml::from_str::<T>(&lines.join("\n")) {
            Ok(_) => break,
            Err(next) => error = next,
        }
    }
    found.sort();
    for (at, message) in found {
        errors.add(at.map(|at| format!("line {}", at + 1)).unwrap_or_default(), message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Sample {
        name: String,
        port: u16,
    }

    impl Validate for Sample {
        fn validate(&self, errors: &mut ConfigErrors) {
            errors.require(!self.name.is_empty(), "name", "must not be empty");
            errors.require(self.port > 1023, "port", "must be above 1023");
        }
    }

    fn faults(text: &str) -> String {
        parse_text::<Sample>(text, Path::new("x.toml")).unwrap_err().to_string()
    }

    #[test]
    fn every_fault_of_shape_is_told_at_once() {
        assert_eq!(
            faults("name = 3\nnick = \"a\"\n[more]\nname = 1\nport = 2\n[[list]]\nx = 1\n[[list]]\nx = 2\n"),
            "configuration x.toml has 5 fault(s):\n  line 1: invalid type: integer `3`, expected a string\n  \
             line 2: unknown field `nick`, expected `name` or `port`\n  \
             line 3: unknown field `more`, expected `name` or `port`\n  \
             line 6: unknown field `list`, expected `name` or `port`\n  \
             line 8: unknown field `list`, expected `name` or `port`"
        );
        // A value over several lines: its rest is no TOML, so what comes after it is told the next time.
        assert_eq!(
            faults("nick = [\n1,\n]\nport = \"a\"\n"),
            "configuration x.toml has 1 fault(s):\n  line 1: unknown field `nick`, expected `name` or `port`"
        );
        assert_eq!(
            faults("port = \"a\"\n"),
            "configuration x.toml has 2 fault(s):\n  line 1: invalid type: string \"a\", expected u16\n  line 1: missing field `name`"
        );
    }

    #[test]
    fn every_fault_is_told_at_once() {
        assert_eq!(
            faults("name = \"\"\nport = 80\n"),
            "configuration x.toml has 2 fault(s):\n  name: must not be empty\n  port: must be above 1023"
        );
    }

    #[test]
    fn unknown_keys_and_wrong_types_name_line_and_key() {
        let text = faults("name = \"a\"\nport = 8080\nprot = 1\n");
        assert!(
            text.contains("line 3") && text.contains("prot") && text.contains("expected"),
            "{text}"
        );
        let text = faults("name = 1\nport = 8080\n");
        assert!(text.contains("line 1") && text.contains("string"), "{text}");
    }

    #[test]
    fn a_missing_file_is_named() {
        let text = load::<Sample>(Path::new("/nowhere/x.toml")).unwrap_err().to_string();
        assert!(
            text.contains("/nowhere/x.toml") && text.contains("cannot read"),
            "{text}"
        );
    }
}
