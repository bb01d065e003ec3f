//! Label and field selectors, in Kubernetes' syntax.

use hanse_api::name;
use serde_json::Value;

/// Most requirements of one selector.
const MAX_REQUIREMENTS: usize = 256;

/// Which objects a list or watch is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Selector {
    labels: Vec<Requirement>,
    fields: Vec<FieldTerm>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Requirement {
    key: String,
    test: Test,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Test {
    Exists,
    Absent,
    In(Vec<String>),
    NotIn(Vec<String>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct FieldTerm {
    field: Field,
    equal: bool,
    value: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Name,
    Namespace,
}

impl Selector {
    /// Reads `labelSelector` and `fieldSelector`.
    pub(crate) fn parse(labels: Option<&str>, fields: Option<&str>) -> Result<Self, String> {
        Ok(Self {
            labels: labels.map(parse_labels).transpose()?.unwrap_or_default(),
            fields: fields.map(parse_fields).transpose()?.unwrap_or_default(),
        })
    }

    /// Whether it selects everything.
    pub(crate) fn is_everything(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    /// Whether it selects `object`.
    pub(crate) fn matches(&self, object: &Value) -> bool {
        let meta = &object["metadata"];
        let labels = &meta["labels"];
        self.labels
            .iter()
            .all(|r| r.holds(labels.get(&r.key).and_then(Value::as_str)))
            && self.fields.iter().all(|t| {
                let have = match t.field {
                    Field::Name => &meta["name"],
                    Field::Namespace => &meta["namespace"],
                };
                (have.as_str().unwrap_or_default() == t.value) == t.equal
            })
    }
}

impl Requirement {
    fn holds(&self, value: Option<&str>) -> bool {
        match (&self.test, value) {
            (Test::Exists, value) => value.is_some(),
            (Test::Absent, value) => value.is_none(),
            (Test::In(values), Some(value)) => values.iter().any(|v| v == value),
            (Test::In(_), None) => false,
            (Test::NotIn(values), value) => value.is_none_or(|value| !values.iter().any(|v| v == value)),
        }
    }
}

fn parse_fields(text: &str) -> Result<Vec<FieldTerm>, String> {
    let terms: Vec<&str> = text.split(',').filter(|t| !t.is_empty()).collect();
    check_count(terms.len())?;
    terms.into_iter().map(parse_field).collect()
}

fn parse_field(term: &str) -> Result<FieldTerm, String> {
    let bad = || format!("invalid field selector {term:?}; can't understand");
    // The first operator counts, and spaces belong to what they stand in, as in Kubernetes and in what rights are asked for.
    let (left, value) = term.split_once('=').ok_or_else(bad)?;
    let (name, equal) = left.strip_suffix('!').map_or((left, true), |name| (name, false));
    let value = value.strip_prefix('=').filter(|_| equal).unwrap_or(value);
    if value.contains('=') {
        return Err(bad());
    }
    let field = match name {
        "metadata.name" => Field::Name,
        "metadata.namespace" => Field::Namespace,
        other => return Err(format!("field label not supported: {other}")),
    };
    Ok(FieldTerm {
        field,
        equal,
        value: value.to_owned(),
    })
}

fn check_count(count: usize) -> Result<(), String> {
    if count > MAX_REQUIREMENTS {
        Err(format!("more than {MAX_REQUIREMENTS} requirements in a selector"))
    } else {
        Ok(())
    }
}

fn parse_labels(text: &str) -> Result<Vec<Requirement>, String> {
    let terms = split_terms(text);
    check_count(terms.len())?;
    terms
        .into_iter()
        .map(str::trim)
        .filter(|t| !t.is_empty())
        .map(parse_label)
        .collect()
}

/// Splits at commas that are not inside parentheses.
fn split_terms(text: &str) -> Vec<&str> {
    let (mut terms, mut depth, mut start) = (Vec::new(), 0_usize, 0);
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                terms.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    terms.push(&text[start..]);
    terms
}

fn parse_label(term: &str) -> Result<Requirement, String> {
    let bad = || format!("unable to parse requirement: {term:?}");
    if let Some((key, rest)) = term.split_once('(') {
        let values = rest.strip_suffix(')').ok_or_else(bad)?;
        let mut head = key.split_whitespace();
        let (Some(key), Some(operator), None) = (head.next(), head.next(), head.next()) else {
            return Err(bad());
        };
        let values = values
            .split(',')
            .map(|v| label_value(v.trim()))
            .collect::<Result<_, _>>()?;
        let test = match operator {
            "in" => Test::In(values),
            "notin" => Test::NotIn(values),
            _ => return Err(bad()),
        };
        return Ok(Requirement {
            key: label_key(key)?,
            test,
        });
    }
    let single = |v: &str| Ok::<_, String>(vec![label_value(v.trim())?]);
    let (key, test) = if let Some((key, value)) = term.split_once("!=") {
        (key, Test::NotIn(single(value)?))
    } else if let Some((key, value)) = term.split_once("==").or_else(|| term.split_once('=')) {
        (key, Test::In(single(value)?))
    } else if let Some(key) = term.strip_prefix('!') {
        (key, Test::Absent)
    } else {
        (term, Test::Exists)
    };
    Ok(Requirement {
        key: label_key(key.trim())?,
        test,
    })
}

fn label_key(key: &str) -> Result<String, String> {
    if name::qualified_faults(key).is_empty() {
        Ok(key.to_owned())
    } else {
        Err(format!("invalid label key {key:?}"))
    }
}

fn label_value(value: &str) -> Result<String, String> {
    if name::label_value_faults(value).is_empty() {
        Ok(value.to_owned())
    } else {
        Err(format!("invalid label value {value:?}"))
    }
}

#[cfg(test)]
mod fuzz;

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn matches(labels: &str, have: Value) -> bool {
        Selector::parse(Some(labels), None)
            .unwrap()
            .matches(&json!({ "metadata": { "labels": have } }))
    }

    #[test]
    fn label_selectors() {
        let have = || json!({ "app": "web", "tier": "front", "acme.com/x": "" });
        for yes in [
            "",
            "app",
            "app=web",
            "app==web",
            "app in (web, db)",
            "app notin (db)",
            "!other",
            "app!=db",
            "other!=x",
            "app=web,tier=front",
            "app in (db,web),tier",
            "acme.com/x=",
            "other notin (a)",
            " app = web ",
        ] {
            assert!(matches(yes, have()), "{yes}");
        }
        for no in [
            "other",
            "app=db",
            "app notin (web)",
            "!app",
            "app!=web",
            "app=web,tier=back",
            "other in (x)",
        ] {
            assert!(!matches(no, have()), "{no}");
        }
        for bad in [
            "app in web",
            "app within (a)",
            "a b",
            "=x",
            "app=-",
            "app in (a",
            "A_/x",
            "app=a=b",
            "(a)",
        ] {
            assert!(Selector::parse(Some(bad), None).is_err(), "{bad}");
        }
    }

    #[test]
    fn field_selectors() {
        let object = json!({ "metadata": { "name": "a", "namespace": "p-x" } });
        let check = |text: &str| Selector::parse(None, Some(text)).unwrap().matches(&object);
        assert!(
            check("metadata.name=a") && check("metadata.name==a,metadata.namespace=p-x") && check("metadata.name!=b")
        );
        assert!(!check("metadata.name=b") && !check("metadata.namespace!=p-x"));
        assert_eq!(
            Selector::parse(None, Some("spec.x=1")).unwrap_err(),
            "field label not supported: spec.x"
        );
        assert!(!check("metadata.name= a"));
        for bad in [
            "metadata.name",
            " metadata.name=a",
            "metadata.name===",
            "metadata.name!==a",
            "metadata.name=a=b",
        ] {
            assert!(Selector::parse(None, Some(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn selectors_are_bounded() {
        assert!(Selector::parse(Some(&"a,".repeat(1000)), None).is_err());
    }
}
