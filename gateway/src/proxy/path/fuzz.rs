//! Any path: what is let through says one thing only, and is what an API server will read.

use super::*;
use crate::fuzzing::cases;
use proptest::prelude::*;

/// Pieces of which attacks are made, beside plain ones.
fn piece() -> impl Strategy<Value = String> {
    const ODD: &[&str] = &[
        "/", "//", ".", "..", "/../", "%2e", "%2E%2e", "%2f", "%2F", "%5c", "\\", "%00", "%25", "%252f", "%", "%2",
        ";", "%3b", "%0a", "%0d", "%7f", "%c2%85", "%c3%a9", "%ff", "%c0%af", "+", "%20", "~", ":", "*", "@", "proxy",
    ];
    const PLAIN: &[&str] = &[
        "api",
        "v1",
        "apis",
        "apps",
        "namespaces",
        "pods",
        "services",
        "nodes",
        "watch",
        "proxy",
        "exec",
        "a",
        "web",
        "status",
        "finalize",
        "%61",
        "version",
    ];
    prop_oneof![
        2 => prop::sample::select(ODD).prop_map(str::to_owned),
        4 => prop::sample::select(PLAIN).prop_map(|p| format!("/{p}")),
        1 => "[!-~]{0,3}",
    ]
}

fn raw_path() -> impl Strategy<Value = String> {
    let starts = prop::sample::select(&["", "/api/v1", "/api/v1/namespaces/a/pods/p/proxy", "/apis/apps/v1"][..]);
    (starts, prop::collection::vec(piece(), 0..8)).prop_map(|(start, rest)| format!("{start}{}", rest.concat()))
}

fn method() -> impl Strategy<Value = Method> {
    const METHODS: [Method; 7] = [
        Method::GET,
        Method::HEAD,
        Method::POST,
        Method::PUT,
        Method::PATCH,
        Method::DELETE,
        Method::OPTIONS,
    ];
    prop::sample::select(&METHODS[..])
}

/// What of a path must be unambiguous: all but the tail that an application gets as it is.
fn strict_part(path: &str) -> &str {
    let parts: Vec<&str> = path.split('/').collect();
    let head = match parts[..] {
        ["", "api", "v1", "namespaces", _, "pods" | "services", _, "proxy", ..] => 8,
        ["", "api", "v1", "nodes", _, "proxy", ..] => 6,
        _ => return path,
    };
    &path[..parts[..head].join("/").len()]
}

/// Each byte of a text as it is or encoded, as `how` says.
fn encoded(text: &str, how: &[u8]) -> String {
    let write = |(at, byte): (usize, u8)| match how[at % how.len()] % 3 {
        0 => format!("%{byte:02x}"),
        1 => format!("%{byte:02X}"),
        _ if byte.is_ascii_graphic() => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().enumerate().map(write).collect()
}

proptest! {
    #![proptest_config(cases(800))]

    #[test]
    fn what_goes_out_is_read_the_same_again(raw in raw_path(), method in method()) {
        let query = Query::default();
        if let Ok(first) = parse(&raw, &method, &query) {
            let again = parse(&first.path, &method, &query);
            prop_assert_eq!(again, Ok(first));
        }
    }

    #[test]
    fn nothing_ambiguous_goes_out(raw in raw_path(), method in method()) {
        if let Ok(info) = parse(&raw, &method, &Query::default()) {
            let strict = strict_part(&info.path);
            let lower = strict.to_ascii_lowercase();
            for bad in ["%2f", "%5c", "%25", "%00", "%2e", "%3b", "%0a", "%0d", "%7f", "\\", ";", "//", "?", "#"] {
                prop_assert!(!lower.contains(bad), "{bad} in {strict}");
            }
            prop_assert!(strict.starts_with('/') && strict.bytes().all(|b| b.is_ascii_graphic()), "{strict}");
            prop_assert!(!strict.split('/').any(|s| s == "." || s == ".."), "{strict}");
            // And the tail is what came, byte for byte.
            prop_assert!(raw.ends_with(&info.path[strict.len()..]), "{raw} became {}", info.path);
        }
    }

    #[test]
    fn encodings_change_nothing(
        names in prop::collection::vec("[a-z0-9:._-]{1,6}|[a-z]é ", 4),
        how in prop::collection::vec(any::<u8>(), 1..9),
    ) {
        prop_assume!(names.iter().all(|n| n != "." && n != ".."));
        let [group, namespace, resource, name] = names.as_slice() else { unreachable!() };
        prop_assume!(!matches!(resource.as_str(), "status" | "finalize"));
        let plain = ["apis", group, "v1", "namespaces", namespace, resource, name];
        let raw: String = plain.iter().map(|s| format!("/{}", encoded(s, &how))).collect();
        let info = parse(&raw, &Method::GET, &Query::default()).unwrap();
        prop_assert_eq!((&info.group, &info.namespace), (group, namespace));
        prop_assert_eq!((&info.resource, &info.name, info.verb.as_str()), (resource, name, "get"));
    }

    #[test]
    fn no_text_panics(raw in "(?s).{0,60}", query in "(?s).{0,60}", method in method()) {
        let query = Query::parse(&query).unwrap_or_default();
        for path in [format!("/api/v1/{raw}"), raw] {
            drop(parse(&path, &method, &query));
        }
    }
}
