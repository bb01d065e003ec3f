//! Any selector: read, printed and read again it says the same, and it selects what a naive reader would.

use super::*;
use crate::fuzzing::cases;
use crate::proxy::path;
use crate::query::Query;
use proptest::prelude::*;
use serde_json::json;

const KEYS: &[&str] = &["app", "tier", "acme.com/x", "A_b.c", "in", "notin"];
const VALUES: &[&str] = &["", "web", "a", "in", "B-1.x_y"];

/// What a test says of one label.
#[derive(Clone, Debug)]
enum Term {
    Exists,
    Absent,
    Is(&'static str, &'static str),
    IsNot(&'static str),
    Among(Vec<&'static str>),
    NotAmong(Vec<&'static str>),
}

impl Term {
    fn print(&self, key: &str, s: &str) -> String {
        match self {
            Self::Exists => format!("{s}{key}{s}"),
            Self::Absent => format!("{s}!{key}{s}"),
            Self::Is(sign, value) => format!("{s}{key}{s}{sign}{s}{value}{s}"),
            Self::IsNot(value) => format!("{key}{s}!={s}{value}"),
            Self::Among(values) => format!("{key} in{s}({s}{}{s})", values.join(&format!("{s},{s}"))),
            Self::NotAmong(values) => format!("{s}{key} notin {s}({})", values.join(",")),
        }
    }

    fn holds(&self, label: Option<&str>) -> bool {
        match (self, label) {
            (Self::Exists, label) => label.is_some(),
            (Self::Absent, label) => label.is_none(),
            (Self::Is(_, value), label) => label == Some(value),
            (Self::IsNot(value), label) => label != Some(value),
            (Self::Among(values), label) => label.is_some_and(|l| values.contains(&l)),
            (Self::NotAmong(values), label) => !label.is_some_and(|l| values.contains(&l)),
        }
    }
}

fn term() -> impl Strategy<Value = Term> {
    let value = || prop::sample::select(VALUES);
    let values = || prop::collection::vec(value(), 1..4);
    prop_oneof![
        Just(Term::Exists),
        Just(Term::Absent),
        (prop::sample::select(&["=", "=="][..]), value()).prop_map(|(sign, value)| Term::Is(sign, value)),
        value().prop_map(Term::IsNot),
        values().prop_map(Term::Among),
        values().prop_map(Term::NotAmong),
    ]
}

fn object() -> impl Strategy<Value = Value> {
    let labels = prop::collection::btree_map(prop::sample::select(KEYS), prop::sample::select(VALUES), 0..4);
    (labels, "[ab]", "[pq]")
        .prop_map(|(labels, name, ns)| json!({ "metadata": { "name": name, "namespace": ns, "labels": labels } }))
}

fn printed(selector: &Selector) -> (String, String) {
    let label = |r: &Requirement| match &r.test {
        Test::Exists => r.key.clone(),
        Test::Absent => format!("!{}", r.key),
        Test::In(values) => format!("{} in ({})", r.key, values.join(",")),
        Test::NotIn(values) => format!("{} notin ({})", r.key, values.join(",")),
    };
    let field = |t: &FieldTerm| {
        let sign = if t.equal { "=" } else { "!=" };
        format!("metadata.{}{sign}{}", format!("{:?}", t.field).to_lowercase(), t.value)
    };
    let labels: Vec<String> = selector.labels.iter().map(label).collect();
    let fields: Vec<String> = selector.fields.iter().map(field).collect();
    (labels.join(","), fields.join(","))
}

fn field_text() -> impl Strategy<Value = String> {
    let part = prop::sample::select(
        &[
            "metadata.name",
            "metadata.namespace",
            "=",
            "==",
            "!=",
            "=",
            "!",
            "a",
            "b",
            "p",
            ",",
            " ",
            "\\",
            "spec.x",
        ][..],
    );
    let term = ("metadata\\.(name|namespace)", "=|==|!=", " ?[abpq]{0,2} ?").prop_map(|(f, s, v)| format!("{f}{s}{v}"));
    prop_oneof![
        prop::collection::vec(part, 0..8).prop_map(|p| p.concat()),
        prop::collection::vec(term, 0..3).prop_map(|t| t.join(",")),
    ]
}

proptest! {
    #![proptest_config(cases(500))]

    #[test]
    fn labels_select_what_a_naive_reader_selects(
        terms in prop::collection::vec((prop::sample::select(KEYS), term()), 0..4),
        space in " ?",
        objects in prop::collection::vec(object(), 1..6),
    ) {
        let text: Vec<String> = terms.iter().map(|(key, term)| term.print(key, &space)).collect();
        let selector = Selector::parse(Some(&text.join(",")), None).unwrap();
        for object in objects {
            let naive = terms.iter().all(|(key, term)| term.holds(object["metadata"]["labels"][key].as_str()));
            prop_assert_eq!(selector.matches(&object), naive, "{:?} of {}", text, object);
        }
    }

    #[test]
    fn what_is_read_prints_as_what_it_is(labels in "([!a-z]|in| |=|,|\\(|\\)|-){0,12}", fields in field_text()) {
        let labels = Selector::parse(Some(&labels), None).unwrap_or_default();
        let fields = Selector::parse(None, Some(&fields)).unwrap_or_default();
        let both = Selector { labels: labels.labels, fields: fields.fields };
        let (labels, fields) = printed(&both);
        prop_assert_eq!(Selector::parse(Some(&labels), Some(&fields)), Ok(both));
    }

    /// Rights on one object are asked for when a selector names it: then nothing else may be selected.
    #[test]
    fn a_selector_that_counts_as_a_name_selects_that_name_only(text in field_text(), object in object()) {
        let escaped: String = text.bytes().map(|b| format!("%{b:02X}")).collect();
        let query = Query::parse(&format!("fieldSelector={escaped}")).unwrap();
        let info = path::parse("/api/v1/namespaces/p/secrets", &http::Method::GET, &query).unwrap();
        if let (false, Ok(selector)) = (info.name.is_empty(), Selector::parse(None, Some(&text))) {
            let same = object["metadata"]["name"] == info.name.as_str();
            prop_assert!(same || !selector.matches(&object), "{text:?} names {:?}", info.name);
        }
    }

    #[test]
    fn no_text_panics(text in "(?s).{0,60}") {
        drop((Selector::parse(Some(&text), None), Selector::parse(None, Some(&text))));
    }
}
