//! JSON and YAML of results. YAML is written by hand here, because the kubeconfig editor needs one item at a time
//! with a given indent, and quoting that both YAML 1.1 and 1.2 readers take for the same string.

use crate::error::{Error, Result};
use serde::Serialize;
use serde_json::Value;

/// `value` as JSON for people.
pub(crate) fn json<T: Serialize>(value: &T) -> Result<String> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Error::failed(format!("cannot write JSON: {e}")))?;
    Ok(format!("{text}\n"))
}

/// `value` as block-style YAML.
pub(crate) fn yaml<T: Serialize>(value: &T) -> Result<String> {
    let value = serde_json::to_value(value).map_err(|e| Error::failed(format!("cannot write YAML: {e}")))?;
    let mut text = String::new();
    match &value {
        Value::Object(map) if !map.is_empty() => push_map(&mut text, map, 0),
        Value::Array(items) if !items.is_empty() => push_items(&mut text, items, 0),
        scalar => {
            text.push_str(&flow(scalar));
            text.push('\n');
        }
    }
    Ok(text)
}

/// One item of a block sequence (`- name: ...`), each line indented by `indent`.
pub(crate) fn yaml_item(value: &Value, indent: usize) -> String {
    let mut text = String::new();
    push_items(&mut text, std::slice::from_ref(value), indent);
    text
}

fn push_items(text: &mut String, items: &[Value], indent: usize) {
    for item in items {
        match item {
            Value::Object(map) if !map.is_empty() => {
                let mut inner = String::new();
                push_map(&mut inner, map, indent + 2);
                text.push_str(&" ".repeat(indent));
                text.push_str("- ");
                text.push_str(&inner[indent + 2..]);
            }
            Value::Array(list) if !list.is_empty() => {
                text.push_str(&format!("{}-\n", " ".repeat(indent)));
                push_items(text, list, indent + 2);
            }
            scalar => text.push_str(&format!("{}- {}\n", " ".repeat(indent), flow(scalar))),
        }
    }
}

fn push_map(text: &mut String, map: &serde_json::Map<String, Value>, indent: usize) {
    for (key, value) in map {
        let key = scalar(key);
        let pad = " ".repeat(indent);
        match value {
            Value::Object(inner) if !inner.is_empty() => {
                text.push_str(&format!("{pad}{key}:\n"));
                push_map(text, inner, indent + 2);
            }
            Value::Array(items) if !items.is_empty() => {
                text.push_str(&format!("{pad}{key}:\n"));
                push_items(text, items, indent);
            }
            other => text.push_str(&format!("{pad}{key}: {}\n", flow(other))),
        }
    }
}

fn flow(value: &Value) -> String {
    match value {
        Value::String(text) => scalar(text),
        // Empty collections, numbers, booleans and null are the same in JSON.
        other => other.to_string(),
    }
}

/// A string as YAML: plain where no reader can take it for anything else, otherwise quoted as in JSON.
pub(crate) fn scalar(text: &str) -> String {
    if is_plain(text) { text.to_owned() } else { quoted(text) }
}

/// JSON leaves some characters bare that YAML does not allow, or takes for line breaks (YAML 1.1).
fn quoted(text: &str) -> String {
    let mut out = String::new();
    for c in Value::from(text).to_string().chars() {
        match c {
            '\u{7f}'..='\u{9f}' | '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}' => {
                out.push_str(&format!("\\u{:04x}", u32::from(c)));
            }
            c => out.push(c),
        }
    }
    out
}

fn is_plain(text: &str) -> bool {
    /// Words that some YAML reader takes for a boolean or null.
    const RESERVED: &[&str] = &["true", "false", "yes", "no", "on", "off", "null", "y", "n"];
    let starts = text.starts_with(|c: char| c.is_ascii_alphabetic());
    let inner = text
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || "_./+=@:-".contains(c));
    starts && inner && !text.ends_with(':') && !RESERVED.contains(&text.to_ascii_lowercase().as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn looks_like_what_kubectl_writes() {
        let value = json!({
            "apiVersion": "v1",
            "clusters": [{"cluster": {"server": "https://127.0.0.1:8443"}, "name": "a"}],
            "empty": [],
            "number": "0123",
            "yes": "no",
        });
        let expected = "apiVersion: v1\nclusters:\n- cluster:\n    server: https://127.0.0.1:8443\n  name: a\nempty: []\n\
                        number: \"0123\"\n\"yes\": \"no\"\n";
        assert_eq!(yaml(&value).unwrap(), expected);
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            ".{0,12}".prop_map(Value::from),
            "[ -~\n\t]{0,12}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::btree_map("[ -~]{0,6}", inner, 0..4)
                    .prop_map(|m| Value::Object(m.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back_the_same(value in any_value()) {
            let text = yaml(&value).unwrap();
            let back: Value = serde_saphyr::from_str(&text).map_err(|e| TestCaseError::fail(format!("{e}\n{text}")))?;
            prop_assert_eq!(back, value, "{}", text);
        }
    }
}
