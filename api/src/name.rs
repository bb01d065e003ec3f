//! Names by the rules of Kubernetes: RFC 1123 labels and subdomains.

/// Longest DNS label (RFC 1123).
pub const LABEL_MAX: usize = 63;
/// Longest DNS subdomain (RFC 1123).
pub const SUBDOMAIN_MAX: usize = 253;

/// Checks that `name` is a DNS label; the error says what is wrong in Kubernetes' own words, so that
/// clients which match on them keep working.
pub fn check_label(name: &str) -> Result<(), String> {
    if name.len() > LABEL_MAX {
        return Err(format!("must be no more than {LABEL_MAX} bytes"));
    }
    if is_label(name) {
        return Ok(());
    }
    Err(
        "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start \
         and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
         '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
            .to_owned(),
    )
}

/// Checks that `name` is a DNS subdomain: labels joined by dots.
pub fn check_subdomain(name: &str) -> Result<(), String> {
    if name.len() > SUBDOMAIN_MAX {
        return Err(format!("must be no more than {SUBDOMAIN_MAX} bytes"));
    }
    if !name.is_empty() && name.split('.').all(is_label) {
        return Ok(());
    }
    Err(
        "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must \
         start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
         '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
            .to_owned(),
    )
}

fn is_label(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    let (Some(&first), Some(&last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    plain(first) && plain(last) && bytes.iter().all(|&b| plain(b) || b == b'-')
}

/// What is wrong with the key of a label or annotation, or with the name of a finalizer: a name of at most 63 bytes, behind a
/// subdomain and a slash if it has one. In Kubernetes' own words.
pub fn qualified_faults(text: &str) -> Vec<String> {
    let (prefix, name) = match text.split_once('/') {
        None => (None, text),
        Some((_, name)) if name.contains('/') => {
            return vec![format!(
                "a valid label key {QUALIFIED_RULE} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            )];
        }
        Some((prefix, name)) => (Some(prefix), name),
    };
    let mut faults = Vec::new();
    match prefix {
        Some("") => faults.push("prefix part must be non-empty".to_owned()),
        Some(prefix) => faults.extend(check_subdomain(prefix).err().map(|why| format!("prefix part {why}"))),
        None => {}
    }
    if name.is_empty() {
        faults.push("name part must be non-empty".to_owned());
    } else if name.len() > LABEL_MAX {
        faults.push(format!("name part must be no more than {LABEL_MAX} bytes"));
    }
    if name.is_empty() || !is_label_text(name) {
        faults.push(format!("name part {QUALIFIED_RULE}"));
    }
    faults
}

const QUALIFIED_RULE: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
                              alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation \
                              is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";

/// What is wrong with the value of a label, in Kubernetes' own words.
pub fn label_value_faults(text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if text.len() > LABEL_MAX {
        faults.push(format!("must be no more than {LABEL_MAX} bytes"));
    }
    if !is_label_text(text) {
        faults.push(
            "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start \
             and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation \
             is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
                .to_owned(),
        );
    }
    faults
}

fn is_label_text(text: &str) -> bool {
    let edge = |b: Option<&u8>| b.is_none_or(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    edge(bytes.first())
        && edge(bytes.last())
        && bytes
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// Prefix of the namespace that holds the objects of a project.
pub const PROJECT_NAMESPACE_PREFIX: &str = "p-";

/// The namespace that holds the objects of `project`.
pub fn project_namespace(project: &str) -> String {
    format!("{PROJECT_NAMESPACE_PREFIX}{project}")
}

/// The project whose objects live in `namespace`, if it is a project's.
pub fn project_of_namespace(namespace: &str) -> Option<&str> {
    namespace
        .strip_prefix(PROJECT_NAMESPACE_PREFIX)
        .filter(|p| !p.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels() {
        for good in ["a", "demo", "a-b", "0", &"x".repeat(63)] {
            assert_eq!(check_label(good), Ok(()), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a.b", "a_b", "ä", "a/b", &"x".repeat(64)] {
            assert!(check_label(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn subdomains() {
        assert_eq!(check_subdomain("a.b-c.d"), Ok(()));
        for bad in ["", ".", "a.", ".a", "a..b", "A.b"] {
            assert!(check_subdomain(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn qualified_names() {
        let long = "x".repeat(64);
        for good in ["a", "A.b_c-9", "example.com/MyName", &long[1..]] {
            assert!(qualified_faults(good).is_empty(), "{good}");
        }
        let rule = format!("name part {QUALIFIED_RULE}");
        let long_name = "name part must be no more than 63 bytes".to_owned();
        let table = [
            ("no slash!", vec![rule.clone()]),
            ("", vec!["name part must be non-empty".to_owned(), rule.clone()]),
            ("a/", vec!["name part must be non-empty".to_owned(), rule.clone()]),
            ("/a", vec!["prefix part must be non-empty".to_owned()]),
            (&long, vec![long_name]),
            ("-", vec![rule]),
        ];
        for (text, want) in table {
            assert_eq!(qualified_faults(text), want, "{text}");
        }
        assert!(qualified_faults("Upper.Case/a")[0].starts_with("prefix part a lowercase RFC 1123 subdomain"));
        assert!(qualified_faults("a/b/c")[0].starts_with("a valid label key must consist"));
    }

    #[test]
    fn values_of_labels() {
        for good in ["", "a", "MyValue", "my_value", "1.2-3"] {
            assert!(label_value_faults(good).is_empty(), "{good}");
        }
        for bad in ["-", "a b", "a/b", "ä", "a."] {
            assert!(label_value_faults(bad)[0].starts_with("a valid label must be"), "{bad}");
        }
        assert_eq!(label_value_faults(&"x".repeat(64)), ["must be no more than 63 bytes"]);
    }

    #[test]
    fn project_namespaces() {
        assert_eq!(project_namespace("default"), "p-default");
        assert_eq!(project_of_namespace("p-default"), Some("default"));
        assert_eq!(project_of_namespace("p-"), None);
        assert_eq!(project_of_namespace("kube-system"), None);
    }
}
