//! Names by the rules of Kubernetes: RFC 1123 labels and subdomains.

/// Longest DNS label (RFC 1123).
pub const LABEL_MAX: usize = 63;
/// Longest DNS subdomain (RFC 1123).
pub const SUBDOMAIN_MAX: usize = 253;

/// Checks that `name` is a DNS label; the error says what is wrong in Kubernetes' own words, so that
/// clients which match on them keep working.
pub fn check_label(name: &str) -> Result<(), String> {
    if name.len() > LABEL_MAX {
        return Err(format!("must be no more than {LABEL_MAX} characters"));
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
        return Err(format!("must be no more than {SUBDOMAIN_MAX} characters"));
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
    fn project_namespaces() {
        assert_eq!(project_namespace("default"), "p-default");
        assert_eq!(project_of_namespace("p-default"), Some("default"));
        assert_eq!(project_of_namespace("p-"), None);
        assert_eq!(project_of_namespace("kube-system"), None);
    }
}
