//! Changes a kubeconfig text: sets and removes named entries and the current context, and leaves every other byte.
//!
//! The lists of a kubeconfig are almost always block sequences at the top level, so entries are cut out and put in line
//! by line. What the text must mean afterwards is computed from the parsed document, and the edited text must parse to
//! just that. A file in another style (flow style, anchors across entries) is written anew, without comments; a text
//! that cannot be understood is refused and stays as it is.

use crate::output::document;
use serde_json::{Map, Value, json};
use std::ops::Range;

/// Largest file that is edited.
pub(crate) const TEXT_MAX: usize = 16 * 1024 * 1024;

/// One of the three lists of named entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Section {
    /// Where API servers are.
    Clusters,
    /// Credentials.
    Users,
    /// A cluster with a user.
    Contexts,
}

impl Section {
    /// All of them.
    pub(crate) const ALL: [Self; 3] = [Self::Clusters, Self::Users, Self::Contexts];

    /// Key at the top level.
    pub(crate) const fn key(self) -> &'static str {
        match self {
            Self::Clusters => "clusters",
            Self::Users => "users",
            Self::Contexts => "contexts",
        }
    }

    /// Key of the content beside `name`.
    pub(crate) const fn inner(self) -> &'static str {
        match self {
            Self::Clusters => "cluster",
            Self::Users => "user",
            Self::Contexts => "context",
        }
    }
}

/// What is to be different afterwards.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Changes {
    /// Entries to add or replace: name and content.
    pub(crate) set: Vec<(Section, String, Value)>,
    /// Entries to take out.
    pub(crate) remove: Vec<(Section, String)>,
    /// The new current context; the empty text means none.
    pub(crate) current: Option<String>,
}

impl Changes {
    /// Whether nothing is to be changed.
    pub(crate) fn is_empty(&self) -> bool {
        self.set.is_empty() && self.remove.is_empty() && self.current.is_none()
    }
}

/// Reads a kubeconfig text; an empty one is an empty configuration.
pub(crate) fn parse(text: &str) -> Result<Value, String> {
    if text.len() > TEXT_MAX {
        return Err(format!("it is larger than {} MiB", TEXT_MAX / 1024 / 1024));
    }
    let blank = text
        .lines()
        .all(|line| line.trim().is_empty() || line.trim_start().starts_with('#'));
    if blank {
        return Ok(json!({}));
    }
    // The position is told, the excerpt is not: it may hold a key.
    let value: Value = serde_saphyr::from_str(text).map_err(|e| match e.location() {
        Some(at) => format!("it is no valid YAML (line {}, column {})", at.line(), at.column()),
        None => "it is no valid YAML".to_owned(),
    })?;
    match value {
        Value::Null => Ok(json!({})),
        Value::Object(_) => Ok(value),
        _ => Err("it is no kubeconfig: the top level must be a mapping".to_owned()),
    }
}

/// The entry of that name, without its name.
pub(crate) fn entry<'a>(config: &'a Value, section: Section, name: &str) -> Option<&'a Value> {
    let list = config.get(section.key())?.as_array()?;
    list.iter().find(|e| name_of(e) == Some(name))?.get(section.inner())
}

/// Names in `section`.
pub(crate) fn names(config: &Value, section: Section) -> Vec<String> {
    let list = config.get(section.key()).and_then(Value::as_array);
    list.into_iter()
        .flatten()
        .filter_map(name_of)
        .map(str::to_owned)
        .collect()
}

/// The current context, if one is set.
pub(crate) fn current(config: &Value) -> Option<&str> {
    config.get("current-context")?.as_str().filter(|c| !c.is_empty())
}

fn name_of(entry: &Value) -> Option<&str> {
    entry.get("name")?.as_str()
}

fn item(section: Section, name: &str, content: &Value) -> Value {
    json!({ section.inner(): content, "name": name })
}

/// `text` with `changes` made.
pub(crate) fn apply(text: &str, changes: &Changes) -> Result<String, String> {
    let before = parse(text)?;
    let wanted = apply_value(before, changes)?;
    let means = |text: &str| parse(text).is_ok_and(|value| normal(value) == normal(wanted.clone()));
    if let Some(edited) = edit_text(text, changes)
        && means(&edited)
    {
        return Ok(edited);
    }
    let anew = document::yaml(&wanted).map_err(|e| e.to_string())?;
    if means(&anew) {
        Ok(anew)
    } else {
        Err("it holds something that cannot be kept".to_owned())
    }
}

/// The same on the parsed document: what the edited text must mean.
fn apply_value(mut config: Value, changes: &Changes) -> Result<Value, String> {
    let Some(root) = config.as_object_mut() else {
        return Err("the top level must be a mapping".to_owned());
    };
    root.entry("apiVersion").or_insert_with(|| json!("v1"));
    root.entry("kind").or_insert_with(|| json!("Config"));
    for section in Section::ALL {
        let touched =
            changes.set.iter().any(|(s, ..)| *s == section) || changes.remove.iter().any(|(s, _)| *s == section);
        if !touched {
            continue;
        }
        let list = root.entry(section.key()).or_insert_with(|| json!([]));
        if list.is_null() {
            *list = json!([]);
        }
        let Some(list) = list.as_array_mut() else {
            return Err(format!("{} must be a list", section.key()));
        };
        list.retain(|e| {
            !changes
                .remove
                .iter()
                .any(|(s, name)| *s == section && name_of(e) == Some(name))
        });
        for (_, name, content) in changes.set.iter().filter(|(s, ..)| *s == section) {
            let new = item(section, name, content);
            match list.iter().position(|e| name_of(e) == Some(name)) {
                Some(place) => {
                    list[place] = new;
                    let mut place_seen = 0;
                    list.retain(|e| {
                        place_seen += usize::from(name_of(e) == Some(name));
                        name_of(e) != Some(name) || place_seen == 1
                    });
                }
                None => list.push(new),
            }
        }
    }
    if let Some(current) = &changes.current {
        root.insert("current-context".to_owned(), json!(current));
    }
    Ok(config)
}

/// Absent, null and empty lists are the same to every reader.
fn normal(mut config: Value) -> Value {
    if let Some(root) = config.as_object_mut() {
        let empty = |v: &Value| v.is_null() || v.as_array().is_some_and(Vec::is_empty);
        root.retain(|key, value| !(Section::ALL.iter().any(|s| s.key() == key) && empty(value)));
    }
    config
}

/// The edit line by line; `None` where the text is not in the usual style.
fn edit_text(text: &str, changes: &Changes) -> Option<String> {
    let mut lines: Vec<String> = text.split_inclusive('\n').map(str::to_owned).collect();
    if let Some(last) = lines.last_mut()
        && !last.ends_with('\n')
    {
        last.push('\n');
    }
    for (key, value) in [("kind", "Config"), ("apiVersion", "v1")] {
        if header(&lines, key).is_none() {
            let first = lines
                .iter()
                .position(|l| top_level_key(l).is_some())
                .unwrap_or(lines.len());
            lines.insert(first, format!("{key}: {value}\n"));
        }
    }
    for (section, name) in &changes.remove {
        while let Some(place) = find(&lines, *section, name)? {
            remove_item(&mut lines, *section, place)?;
        }
    }
    for (section, name, content) in &changes.set {
        set_item(&mut lines, *section, name, content)?;
    }
    if let Some(current) = &changes.current {
        let line = format!("current-context: {}\n", document::scalar(current));
        match header(&lines, "current-context") {
            Some(at) => lines[at] = line,
            None => lines.push(line),
        }
    }
    Some(lines.concat())
}

/// Index of the top-level line `key: ...`.
fn header(lines: &[String], key: &str) -> Option<usize> {
    lines.iter().position(|line| top_level_key(line) == Some(key))
}

fn top_level_key(line: &str) -> Option<&str> {
    let (key, rest) = line.split_once(':')?;
    let plain = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    (plain && !key.starts_with('-') && rest.starts_with([' ', '\n', '\r', '\t'])).then_some(key)
}

fn value_after_colon(line: &str) -> &str {
    let value = line.split_once(':').map_or("", |(_, v)| v).trim();
    if value.starts_with('#') {
        ""
    } else {
        value.split(" #").next().unwrap_or("").trim()
    }
}

fn is_filler(line: &str) -> bool {
    let line = line.trim();
    line.is_empty() || line.starts_with('#')
}

/// Items of the section whose head is line `head`: indent of the dashes, and the lines of each.
fn items(lines: &[String], head: usize) -> Option<(usize, Vec<Range<usize>>)> {
    match value_after_colon(&lines[head]) {
        "" => {}
        "[]" | "null" | "~" => return Some((0, Vec::new())),
        _ => return None,
    }
    let in_section = |line: &String| is_filler(line) || line.starts_with([' ', '\t', '-']);
    let end = lines[head + 1..]
        .iter()
        .position(|l| !in_section(l))
        .map_or(lines.len(), |n| head + 1 + n);
    let indent_of = |line: &str| line.len() - line.trim_start_matches(' ').len();
    let dash = |line: &str| {
        let rest = line.trim_start_matches(' ');
        rest.starts_with("- ") || rest.trim_end() == "-"
    };
    let mut starts: Vec<usize> = Vec::new();
    let mut indent = 0;
    for (at, line) in lines.iter().enumerate().take(end).skip(head + 1) {
        if starts.is_empty() {
            if is_filler(line) {
                continue;
            }
            if !dash(line) {
                return None;
            }
            indent = indent_of(line);
        }
        if dash(line) && indent_of(line) == indent {
            starts.push(at);
        }
    }
    let ends = starts.iter().skip(1).copied().chain([end]);
    let ranges = starts.iter().copied().zip(ends).map(|(from, mut to)| {
        // Comments and blank lines after an item are not its own.
        while to > from + 1 && is_filler(&lines[to - 1]) {
            to -= 1;
        }
        from..to
    });
    Some((indent, ranges.collect()))
}

/// The lines of the first entry `name`; the outer `None` means that the style is not understood.
fn find(lines: &[String], section: Section, name: &str) -> Option<Option<Range<usize>>> {
    let Some(head) = header(lines, section.key()) else {
        return Some(None);
    };
    let (_, ranges) = items(lines, head)?;
    for range in ranges {
        let one: Vec<Value> = serde_saphyr::from_str(&lines[range.clone()].concat()).ok()?;
        if one.first().and_then(name_of) == Some(name) {
            return Some(Some(range));
        }
    }
    Some(None)
}

fn remove_item(lines: &mut Vec<String>, section: Section, place: Range<usize>) -> Option<()> {
    lines.drain(place);
    let head = header(lines, section.key())?;
    let (_, left) = items(lines, head)?;
    if left.is_empty() {
        lines[head] = format!("{}: []\n", section.key());
    }
    Some(())
}

fn set_item(lines: &mut Vec<String>, section: Section, name: &str, content: &Value) -> Option<()> {
    let new = |indent| {
        let text = document::yaml_item(&item(section, name, content), indent);
        text.split_inclusive('\n').map(str::to_owned).collect::<Vec<_>>()
    };
    let Some(head) = header(lines, section.key()) else {
        lines.push(format!("{}:\n", section.key()));
        lines.extend(new(0));
        return Some(());
    };
    let (indent, ranges) = items(lines, head)?;
    match find(lines, section, name)? {
        Some(place) => {
            let start = place.start;
            lines.splice(place, new(indent));
            // A second entry of that name would be read by some programs.
            let rest = start + new(indent).len();
            while let Some(again) = find_from(lines, section, name, rest)? {
                lines.drain(again);
            }
        }
        None => {
            if ranges.is_empty() {
                lines[head] = format!("{}:\n", section.key());
            }
            let at = ranges.last().map_or(head + 1, |last| last.end);
            lines.splice(at..at, new(indent));
        }
    }
    Some(())
}

fn find_from(lines: &[String], section: Section, name: &str, from: usize) -> Option<Option<Range<usize>>> {
    let head = header(lines, section.key())?;
    let (_, ranges) = items(lines, head)?;
    for range in ranges.into_iter().filter(|r| r.start >= from) {
        let one: Vec<Value> = serde_saphyr::from_str(&lines[range.clone()].concat()).ok()?;
        if one.first().and_then(name_of) == Some(name) {
            return Some(Some(range));
        }
    }
    Some(None)
}

/// An empty object, to start contents with.
pub(crate) fn object<const N: usize>(pairs: [(&str, Value); N]) -> Value {
    Value::Object(pairs.into_iter().map(|(k, v)| (k.to_owned(), v)).collect::<Map<_, _>>())
}

#[cfg(test)]
#[path = "edit_tests.rs"]
mod tests;
