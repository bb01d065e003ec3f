//! Rules of the house that rustc and clippy do not know. docs/STYLE.md says why.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::layers;
use crate::source::{self, code_only};

const FILE_LINES: usize = 800;
const FUNCTION_LINES: usize = 70;
/// Tests hold tables of cases, which are data more than code.
const TEST_FUNCTION_LINES: usize = 140;

/// Time, tasks and chance come from `hanse-runtime`, so that tests and the
/// simulation can hold them.
const RUNTIME_ONLY: &[(&str, &str)] = &[
    ("Instant::now", "take a Clock from hanse-runtime"),
    ("SystemTime::now", "take a Clock from hanse-runtime"),
    ("Utc::now", "take a Clock from hanse-runtime"),
    ("Timestamp::now", "take a Clock from hanse-runtime"),
    ("Zoned::now", "take a Clock from hanse-runtime"),
    (
        "tokio::spawn",
        "spawn through hanse-runtime, which ends and joins tasks",
    ),
    ("task::spawn", "spawn through hanse-runtime, which ends and joins tasks"),
    ("thread_rng", "take the random source of hanse-runtime"),
    ("rand::rng", "take the random source of hanse-runtime"),
    ("rand::random", "take the random source of hanse-runtime"),
];

/// Never in code that lands. Written in pieces, or this file would find itself.
const NEVER: &[(&str, &str)] = &[
    ("todo!", "write it, or return an error that says what is missing"),
    (
        "unimplemented!",
        "write it, or return an error that says what is missing",
    ),
    (
        "#[ignore",
        "make the test run, or delete it: a test that never runs proves nothing",
    ),
];
const UNFINISHED: &str = concat!("FIX", "ME");

/// Parts of paths that exist on one machine only.
const MACHINE_PATHS: &[&str] = &[
    concat!("/wo", "rk/main"),
    concat!("/wo", "rk/shared"),
    concat!("/ro", "ot/."),
    concat!("/ho", "me/"),
    concat!("/Us", "ers/"),
];

/// One thing to mend.
#[derive(Debug, PartialEq)]
pub(crate) struct Finding {
    pub(crate) file: PathBuf,
    pub(crate) line: usize,
    pub(crate) rule: &'static str,
    pub(crate) text: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}: {}", self.file.display(), self.line, self.rule, self.text)
    }
}

/// Checks every file that git knows or would take.
pub(crate) fn check(root: &Path) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let mut doors = Doors::default();
    for file in files(root)? {
        // Deleted but not yet committed, or not text: nothing to check.
        let Ok(text) = fs::read_to_string(root.join(&file)) else {
            continue;
        };
        findings.extend(check_text(&file, &text));
        if file.extension().is_some_and(|e| e == "rs") {
            let code = code_only(&text);
            findings.extend(check_rust(&file, &text, &code));
            doors.visit(&file, &code);
        }
    }
    findings.extend(doors.findings());
    findings.sort_by(|a, b| (&a.file, a.line).cmp(&(&b.file, b.line)));
    Ok(findings)
}

fn files(root: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root)
        .output()
        .context("run git ls-files")?;
    if !output.status.success() {
        bail!("git ls-files failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    let names = output.stdout.split(|b| *b == 0).filter(|name| !name.is_empty());
    Ok(names
        .map(|n| PathBuf::from(String::from_utf8_lossy(n).into_owned()))
        .collect())
}

fn check_text(file: &Path, text: &str) -> Vec<Finding> {
    let prose = file.extension().is_some_and(|e| e == "md");
    let mut findings = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let mut add = |rule, text: String| {
            findings.push(Finding {
                file: file.to_owned(),
                line: index + 1,
                rule,
                text,
            });
        };
        if let Some(path) = MACHINE_PATHS.iter().find(|p| line.contains(**p)) {
            add(
                "machine-path",
                format!("`{path}` exists on one machine: find the place at run time"),
            );
        }
        if !prose && line.contains(UNFINISHED) {
            add(
                "unfinished",
                "mend it now, or open an issue and drop the mark".to_owned(),
            );
        }
    }
    findings
}

fn check_rust(file: &Path, text: &str, code: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut add = |line, rule, text: String| {
        findings.push(Finding {
            file: file.to_owned(),
            line,
            rule,
            text,
        });
    };
    let lines = text.lines().count();
    if lines > FILE_LINES {
        add(
            FILE_LINES,
            "file-length",
            format!("{lines} lines, at most {FILE_LINES}: split it by subject"),
        );
    }
    let tests = source::test_lines(code);
    let in_tests = |number: usize| tests.iter().any(|range| range.contains(&number));
    for function in source::functions(code) {
        let length = function.last - function.first + 1;
        let limit = if is_test_file(file) || in_tests(function.first) {
            TEST_FUNCTION_LINES
        } else {
            FUNCTION_LINES
        };
        if length > limit {
            let name = function.name;
            add(
                function.first,
                "function-length",
                format!("`{name}` has {length} lines, at most {limit}: split it by step"),
            );
        }
    }
    let free = may_touch_the_world(file);
    for (index, line) in code.lines().enumerate() {
        let number = index + 1;
        for (name, remedy) in NEVER.iter().filter(|(name, _)| names(line, name)) {
            add(number, "never", format!("`{name}`: {remedy}"));
        }
        if free || in_tests(number) {
            continue;
        }
        for (name, remedy) in RUNTIME_ONLY.iter().filter(|(name, _)| names(line, name)) {
            add(number, "runtime-only", format!("`{name}`: {remedy}"));
        }
    }
    findings
}

/// Whether `name` occurs as a whole word (or path) in a line of code.
fn names(line: &str, name: &str) -> bool {
    let bytes = line.as_bytes();
    let first = name.as_bytes().first().is_some_and(|b| source::is_word(*b));
    line.match_indices(name).any(|(at, _)| {
        let starts = !first || at == 0 || !source::is_word(bytes[at - 1]);
        let ends = bytes.get(at + name.len()).is_none_or(|b| !source::is_word(*b));
        starts && ends
    })
}

fn may_touch_the_world(file: &Path) -> bool {
    file.starts_with("runtime") || file.starts_with("xtask") || is_test_file(file)
}

fn is_test_file(file: &Path) -> bool {
    let stem = file.file_stem().and_then(|s| s.to_str()).unwrap_or_default();
    let folder = |name: &str| file.components().any(|part| part.as_os_str() == name);
    folder("tests")
        || folder("benches")
        || folder("examples")
        || folder("chaos-tests")
        || stem == "tests"
        || stem.ends_with("_tests")
}

/// An outside package that may be replaced one day is named in one file only.
#[derive(Default)]
struct Doors {
    /// Per package: the files that name it, with the first line and the number of lines.
    named: BTreeMap<&'static str, Vec<(PathBuf, usize, usize)>>,
}

const ONE_FILE: &[(&str, &str)] = &[("rocksdb", "state"), ("quinn", "tunnel")];

impl Doors {
    fn visit(&mut self, file: &Path, code: &str) {
        if is_test_file(file) {
            return;
        }
        let tests = source::test_lines(code);
        for (pattern, _) in layers::OWNED {
            let package = pattern.trim_end_matches('*');
            let lines = code.lines().enumerate().filter(|(_, line)| uses(line, package));
            let lines = lines.map(|(index, _)| index + 1);
            let lines = lines
                .filter(|n| !tests.iter().any(|range| range.contains(n)))
                .collect::<Vec<_>>();
            if let Some(first) = lines.first() {
                self.named
                    .entry(package)
                    .or_default()
                    .push((file.to_owned(), *first, lines.len()));
            }
        }
    }

    fn findings(self) -> Vec<Finding> {
        let mut findings = Vec::new();
        for (package, folder) in ONE_FILE {
            let files = self.named.get(package).map(Vec::as_slice).unwrap_or_default();
            let files = files.iter().filter(|(file, ..)| file.starts_with(folder));
            let home = files.clone().max_by_key(|(_, _, count)| *count);
            let Some((home, ..)) = home else { continue };
            for (file, line, _) in files.filter(|(file, ..)| file != home) {
                findings.push(Finding {
                    file: file.clone(),
                    line: *line,
                    rule: "one-door",
                    text: format!("{package} is named in {} only: go through it", home.display()),
                });
            }
        }
        findings
    }
}

/// `use package` or `package::`, and not `something::package::`.
fn uses(line: &str, package: &str) -> bool {
    line.match_indices(package).any(|(at, _)| {
        let before = &line[..at];
        let after = &line[at + package.len()..];
        let own_word = !before.bytes().last().is_some_and(|b| source::is_word(b) || b == b':');
        own_word && (after.starts_with("::") || before.trim_end().ends_with("use") && after == ";")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(file: &str, text: &str) -> Vec<(usize, &'static str)> {
        let file = Path::new(file);
        let mut findings = check_rust(file, text, &code_only(text));
        findings.extend(check_text(file, text));
        findings.iter().map(|f| (f.line, f.rule)).collect()
    }

    #[test]
    fn finding_reads_as_place_rule_remedy() {
        let text = "fn a() {\n    let t = Instant::now();\n}\n";
        let found = check_rust(Path::new("gateway/src/a.rs"), text, &code_only(text));
        let shown = found[0].to_string();
        assert!(
            shown.starts_with("gateway/src/a.rs:2: runtime-only: `Instant::now`: "),
            "{shown}"
        );
    }

    #[test]
    fn time_and_tasks_belong_to_the_runtime() {
        let text = "fn a() { tokio::spawn(x); std::time::SystemTime::now(); }\n";
        assert_eq!(rules("state/src/a.rs", text).len(), 2);
        assert_eq!(rules("runtime/src/a.rs", text), []);
        assert_eq!(rules("state/tests/a.rs", text), []);
        assert_eq!(rules("state/src/a_tests.rs", text), []);
        let in_tests = format!("#[cfg(test)]\nmod tests {{\n{text}}}\n");
        assert_eq!(rules("state/src/a.rs", &in_tests), []);
    }

    #[test]
    fn names_in_comments_strings_and_longer_words_are_free() {
        let text = "// tokio::spawn\nfn a() { b(\"Instant::now\"); my_thread_rng_x(); tokio::spawn_x(); }\n";
        assert_eq!(rules("state/src/a.rs", text), []);
    }

    #[test]
    fn unfinished_work_is_found() {
        let text = concat!(
            "fn a() { todo!() }\n#[ignore = \"slow\"]\nfn b() {} // FIX",
            "ME later\n"
        );
        assert_eq!(
            rules("runtime/src/a.rs", text),
            [(1, "never"), (2, "never"), (3, "unfinished")]
        );
    }

    #[test]
    fn lengths_are_limited() {
        let long = format!("fn a() {{\n{}}}\n", "    b();\n".repeat(69));
        assert_eq!(rules("api/src/a.rs", &long), [(1, "function-length")]);
        let fits = format!("fn a() {{\n{}}}\n", "    b();\n".repeat(68));
        assert_eq!(rules("api/src/a.rs", &fits), []);
        assert_eq!(rules("api/tests/a.rs", &long), []);
        assert_eq!(rules("api/src/a.rs", &"\n".repeat(801)), [(800, "file-length")]);
    }

    #[test]
    fn paths_of_one_machine_are_found() {
        let text = concat!("See /wo", "rk/shared/x.\nAnd /usr/lib.\n");
        assert_eq!(check_text(Path::new("docs/a.md"), text).len(), 1);
    }

    #[test]
    fn package_is_named_in_one_file() {
        let mut doors = Doors::default();
        doors.visit(
            Path::new("state/src/engine.rs"),
            "use rocksdb::DB;\nfn a(x: rocksdb::DB) {}\n",
        );
        doors.visit(Path::new("state/src/other.rs"), "\nfn a(x: rocksdb::DB) {}\n");
        doors.visit(Path::new("state/src/third.rs"), "use crate::rocksdb::Engine;\n");
        doors.visit(Path::new("state/tests/t.rs"), "use rocksdb::DB;\n");
        let found = doors.findings();
        assert_eq!(found.len(), 1);
        assert_eq!(
            (found[0].file.as_path(), found[0].line),
            (Path::new("state/src/other.rs"), 2)
        );
    }
}
