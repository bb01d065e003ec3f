//! Objects as the forms that callers ask for: themselves, tables, metadata alone; single, in lists and in watches.

use super::negotiation::Form;
use super::object;
use crate::kinds::{Kind, age, api_version};
use hanse_api::Timestamp;
use serde_json::{Value, json};

/// What each row of a table carries of its object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Include {
    /// Its metadata.
    #[default]
    Metadata,
    /// All of it.
    Object,
    /// Nothing.
    None,
}

impl Include {
    /// Reads `includeObject`.
    pub(crate) fn read(text: Option<&str>) -> Self {
        match text {
            Some("Object") => Self::Object,
            Some("None") => Self::None,
            _ => Self::Metadata,
        }
    }
}

/// Shows objects of one kind in one form.
#[derive(Clone, Copy)]
pub(crate) struct Shaper {
    pub(crate) kind: &'static dyn Kind,
    pub(crate) form: Form,
    pub(crate) include: Include,
}

/// `metadata` of a list.
#[derive(Clone, Debug, Default)]
pub(crate) struct ListMeta {
    pub(crate) revision: i64,
    pub(crate) resume: Option<String>,
    pub(crate) remaining: Option<i64>,
}

impl ListMeta {
    fn json(&self) -> Value {
        let mut meta = json!({ "resourceVersion": self.revision.to_string() });
        if let Some(token) = &self.resume {
            meta["continue"] = token.as_str().into();
        }
        if let Some(remaining) = self.remaining {
            meta["remainingItemCount"] = remaining.into();
        }
        meta
    }
}

impl Shaper {
    /// Adds what says of which kind an object is.
    pub(crate) fn typed(&self, mut value: Value) -> Value {
        let names = self.kind.names();
        value["apiVersion"] = api_version(names).into();
        value["kind"] = names.kind.into();
        value
    }

    /// One object.
    pub(crate) fn one(&self, mut value: Value, now: Timestamp) -> Value {
        self.kind.conceal(&mut value);
        match self.form {
            Form::Objects | Form::Discovery => self.typed(value),
            Form::Table(version) => {
                let meta = json!({ "resourceVersion": object::meta_text(&value, "resourceVersion") });
                self.table(version, meta, vec![self.row(version, value, now)], true)
            }
            Form::Metadata(version) => partial(&value, version),
        }
    }

    /// The object of a watch event; `first` says whether none came before.
    pub(crate) fn event(&self, mut value: Value, first: bool, now: Timestamp) -> Value {
        self.kind.conceal(&mut value);
        match self.form {
            Form::Table(version) => {
                let meta = json!({ "resourceVersion": object::meta_text(&value, "resourceVersion") });
                self.table(version, meta, vec![self.row(version, value, now)], first)
            }
            Form::Objects | Form::Discovery | Form::Metadata(_) => self.one(value, now),
        }
    }

    /// The object of a bookmark: nothing but a revision, in the form of the watch.
    pub(crate) fn bookmark(&self, revision: i64, initial_end: bool) -> Value {
        let mut meta = json!({ "resourceVersion": revision.to_string() });
        if initial_end {
            meta["annotations"] = json!({ "k8s.io/initial-events-end": "true" });
        }
        let mut bare = json!({ "metadata": meta });
        // Every kind shows its dates and cells of an empty object; a table of a bookmark has one such row.
        match self.form {
            Form::Table(version) => {
                bare["metadata"]["creationTimestamp"] = Value::Null;
                let list_meta = json!({ "resourceVersion": revision.to_string() });
                self.table(
                    version,
                    list_meta,
                    vec![self.row(version, bare, Timestamp::default())],
                    false,
                )
            }
            Form::Metadata(version) => partial(&bare, version),
            Form::Objects | Form::Discovery => self.typed(bare),
        }
    }

    /// A list.
    pub(crate) fn list(&self, mut items: Vec<Value>, meta: &ListMeta, now: Timestamp) -> Value {
        items.iter_mut().for_each(|item| self.kind.conceal(item));
        let names = self.kind.names();
        match self.form {
            Form::Objects | Form::Discovery => json!({
                "kind": format!("{}List", names.kind),
                "apiVersion": api_version(names),
                "metadata": meta.json(),
                "items": items.into_iter().map(|i| self.typed(i)).collect::<Vec<_>>(),
            }),
            Form::Table(version) => {
                let rows = items.into_iter().map(|item| self.row(version, item, now)).collect();
                self.table(version, meta.json(), rows, true)
            }
            Form::Metadata(version) => json!({
                "kind": "PartialObjectMetadataList",
                "apiVersion": format!("meta.k8s.io/{version}"),
                "metadata": meta.json(),
                "items": items.iter().map(|i| partial(i, version)).collect::<Vec<_>>(),
            }),
        }
    }

    fn table(&self, version: &str, meta: Value, rows: Vec<Value>, headed: bool) -> Value {
        let columns = if headed { self.columns() } else { Vec::new() };
        json!({
            "kind": "Table",
            "apiVersion": format!("meta.k8s.io/{version}"),
            "metadata": meta,
            "columnDefinitions": columns,
            "rows": rows,
        })
    }

    fn columns(&self) -> Vec<Value> {
        let define = |name: &str, of: &str, format: &str, about: &str, priority: i32| json!({ "name": name, "type": of, "format": format, "description": about, "priority": priority });
        let mut columns = vec![define(
            "Name",
            "string",
            "name",
            "Name, unique within its kind and namespace",
            0,
        )];
        columns.extend(
            self.kind
                .columns()
                .iter()
                .map(|c| define(c.name, c.of, "", c.about, c.priority)),
        );
        columns.push(define("Age", "string", "", "Time since it was made", 0));
        columns
    }

    fn row(&self, version: &str, item: Value, now: Timestamp) -> Value {
        let mut cells = vec![Value::from(object::name(&item))];
        cells.extend(self.kind.cells(&item));
        cells.push(age(&item, now).into());
        match self.include {
            Include::Metadata => json!({ "cells": cells, "object": partial(&item, version) }),
            Include::Object => json!({ "cells": cells, "object": self.typed(item) }),
            Include::None => json!({ "cells": cells }),
        }
    }
}

fn partial(value: &Value, version: &str) -> Value {
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": format!("meta.k8s.io/{version}"),
        "metadata": value["metadata"],
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::find;

    fn shaper(form: Form) -> Shaper {
        Shaper {
            kind: find("management.loft.sh", "v1", "projects").unwrap(),
            form,
            include: Include::Metadata,
        }
    }

    fn project() -> Value {
        json!({ "metadata": { "name": "a", "resourceVersion": "9", "creationTimestamp": "2023-11-14T22:13:20Z" }, "spec": {} })
    }

    #[test]
    fn tables_carry_headings_once_in_a_watch() {
        let now = Timestamp::from_millis(1_700_000_060_000);
        let table = shaper(Form::Table("v1")).list(
            vec![project()],
            &ListMeta {
                revision: 12,
                ..ListMeta::default()
            },
            now,
        );
        assert_eq!(table["kind"], "Table");
        assert_eq!(table["metadata"]["resourceVersion"], "12");
        assert_eq!(table["columnDefinitions"][0]["name"], "Name");
        assert_eq!(table["rows"][0]["cells"], json!(["a", "", "60s"]));
        assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
        let later = shaper(Form::Table("v1")).event(project(), false, now);
        assert_eq!(later["columnDefinitions"], json!([]));
        assert_eq!(later["rows"].as_array().unwrap().len(), 1);
    }

    #[test]
    fn lists_go_on() {
        let meta = ListMeta {
            revision: 12,
            resume: Some("t".into()),
            remaining: Some(3),
        };
        let list = shaper(Form::Objects).list(vec![project()], &meta, Timestamp::default());
        assert_eq!(list["kind"], "ProjectList");
        assert_eq!(
            list["metadata"],
            json!({ "resourceVersion": "12", "continue": "t", "remainingItemCount": 3 })
        );
        assert_eq!(list["items"][0]["kind"], "Project");
        let partial = shaper(Form::Metadata("v1")).list(vec![project()], &meta, Timestamp::default());
        assert_eq!(partial["items"][0].as_object().unwrap().len(), 3);
    }

    #[test]
    fn bookmarks_are_bare() {
        let mark = shaper(Form::Objects).bookmark(7, true);
        assert_eq!(mark["metadata"]["resourceVersion"], "7");
        assert_eq!(mark["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
        assert_eq!(mark["kind"], "Project");
    }
}
