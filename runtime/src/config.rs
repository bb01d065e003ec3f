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
    let config: T = match toml::from_str(text) {
        Ok(config) => config,
        Err(error) => {
            // Only position and message: the excerpt that the parser would show may hold a secret.
            let line = error
                .span()
                .and_then(|span| text.get(..span.start))
                .map(|before| before.matches('\n').count() + 1);
            let place = line.map(|line| format!("line {line}")).unwrap_or_default();
            errors.add(place, error.message().to_owned());
            return Err(errors);
        }
    };
    config.validate(&mut errors);
    if errors.faults.is_empty() {
        Ok(config)
    } else {
        Err(errors)
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
