use super::*;
use proptest::prelude::*;

const KIND: &str = "\
# my clusters
apiVersion: v1
clusters:
- cluster:
    certificate-authority-data: LS0tLS1CRUdJTg==
    server: https://127.0.0.1:35000   # kind
  name: kind-a
# between
- name: 'other'
  cluster: {server: \"https://x\", proxy-url: \"\"}

contexts:
  - context:
      cluster: kind-a
      user: kind-a
    name: kind-a
current-context: kind-a
kind: Config
preferences: {colors: true}
users:
- name: kind-a
  user:
    client-key-data: |
      - not an item
      name: x
";

fn set(section: Section, name: &str, content: Value) -> Changes {
    Changes {
        set: vec![(section, name.into(), content)],
        ..Default::default()
    }
}

#[test]
fn everything_else_stays_byte_for_byte() {
    let changes = Changes {
        set: vec![
            (
                Section::Clusters,
                "hanse_demo".into(),
                json!({"server": "https://127.0.0.1:8443"}),
            ),
            (Section::Users, "hanse".into(), json!({"token": "0123"})),
            (
                Section::Contexts,
                "hanse_demo".into(),
                json!({"cluster": "hanse_demo", "user": "hanse"}),
            ),
        ],
        remove: vec![],
        current: Some("hanse_demo".into()),
    };
    let after = apply(KIND, &changes).unwrap();
    let mut kept = after.lines();
    for line in KIND.lines().filter(|l| !l.starts_with("current-context")) {
        assert!(kept.any(|l| l == line), "lost or moved {line:?} in\n{after}");
    }
    assert!(after.contains("current-context: hanse_demo\n"), "{after}");
    assert!(after.contains("token: \"0123\""), "{after}");
    assert!(
        after.contains("  - context:\n      cluster: hanse_demo\n"),
        "own indent of the list is kept\n{after}"
    );
    let again = apply(&after, &changes).unwrap();
    assert_eq!(again, after, "a second time changes nothing");
    let undo = Changes {
        remove: changes.set.iter().map(|(s, n, _)| (*s, n.clone())).collect(),
        current: Some("kind-a".into()),
        ..Default::default()
    };
    assert_eq!(
        apply(&after, &undo).unwrap(),
        KIND,
        "taking it out again leaves the file as it was"
    );
}

#[test]
fn new_and_odd_files() {
    let changes = set(Section::Users, "u", json!({"token": "t"}));
    for text in [
        "",
        "\n",
        "# nothing yet\n",
        "apiVersion: v1\nkind: Config\nusers: []\n",
        "users: null\n",
        "users:\n",
        "users: ~",
    ] {
        let after = apply(text, &changes).unwrap();
        let value = parse(&after).unwrap();
        assert_eq!(
            entry(&value, Section::Users, "u"),
            Some(&json!({"token": "t"})),
            "{text:?} -> {after}"
        );
        assert_eq!(value["kind"], "Config");
    }
}

#[test]
fn other_styles_are_written_anew_with_the_same_meaning() {
    let json_file = r#"{"apiVersion":"v1","kind":"Config","users":[{"name":"a","user":{"token":"1e3"}}]}"#;
    let anchored = "x: &it {server: https://a}\nclusters: [{name: a, cluster: *it}]\n";
    for text in [json_file, anchored] {
        let before = parse(text).unwrap();
        let after = parse(&apply(text, &set(Section::Users, "u", json!({"token": "t"}))).unwrap()).unwrap();
        for section in Section::ALL {
            for name in names(&before, section) {
                assert_eq!(entry(&before, section, &name), entry(&after, section, &name));
            }
        }
        assert!(entry(&after, Section::Users, "u").is_some());
    }
}

#[test]
fn a_broken_file_is_refused_without_showing_its_content() {
    for text in [
        "users: [",
        "- a\n- b\n",
        "just text",
        "a: b\n---\nc: d\n",
        "users: {a: b}\n",
        "token: \"secret-unclosed\n",
    ] {
        let error = apply(text, &set(Section::Users, "u", json!({}))).unwrap_err();
        assert!(!error.contains("secret"), "{error}");
    }
    assert!(parse("users:\n- name: [\n").unwrap_err().contains("line"));
}

#[test]
fn double_entries_become_one() {
    let text = "apiVersion: v1\nkind: Config\nusers:\n- name: u\n  user: {token: a}\n- name: v\n- name: u\n  user: {token: b}\n";
    let after = apply(text, &set(Section::Users, "u", json!({"token": "c"}))).unwrap();
    assert_eq!(names(&parse(&after).unwrap(), Section::Users), ["u", "v"]);
    assert!(after.contains("- name: v\n"), "{after}");
}

#[derive(Clone, Debug)]
struct Made {
    names: Vec<String>,
    text: String,
}

/// Item texts as people and programs write them.
fn made(section: Section) -> impl Strategy<Value = Made> {
    let key = section.key();
    let inner = section.inner();
    let one = ("[a-z][a-z0-9-]{0,8}", 0..6usize, "[ -~]{0,10}");
    (proptest::collection::vec(one, 0..4), any::<bool>(), any::<bool>()).prop_map(move |(list, deep, blank)| {
        let pad = if deep { "  " } else { "" };
        let mut text = format!("{key}:\n");
        let mut names = Vec::new();
        for (i, (name, style, odd)) in list.into_iter().enumerate() {
            let name = format!("{name}-{i}");
            let quoted = Value::from(odd.clone()).to_string();
            text.push_str(&match style {
                0 => format!("{pad}- name: {name}\n{pad}  {inner}:\n{pad}    x: {quoted}\n"),
                1 => format!("{pad}- {inner}: {{x: {quoted}}}\n{pad}  name: \"{name}\"\n"),
                2 => format!("{pad}-\n{pad}  name: '{name}'\n{pad}  {inner}:\n{pad}    # note\n{pad}    x: |\n{pad}      - a\n{pad}      b: c\n"),
                3 => format!("{pad}# before\n{pad}- name: {name}   # after\n{pad}  extra: [1, 2.50, ~, yes]\n"),
                4 => format!("{pad}- name: {name}\n{pad}  {inner}:\n{pad}    list:\n{pad}    - name: hanse_x\n{pad}    - b\n"),
                _ => format!("{pad}- {{name: {name}, {inner}: {{x: {quoted}}}}}\n"),
            });
            if blank {
                text.push('\n');
            }
            names.push(name);
        }
        if names.is_empty() {
            text = format!("{key}: []\n");
        }
        Made { names, text }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn entries_of_others_are_never_touched(
        clusters in made(Section::Clusters),
        users in made(Section::Users),
        contexts in made(Section::Contexts),
        order in 0..6usize,
        current in proptest::option::of("[a-z ]{0,6}"),
        removes in any::<bool>(),
    ) {
        let parts = [&clusters.text, &users.text, &contexts.text];
        let orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
        let mut text = String::from("apiVersion: v1\nkind: Config\npreferences: {}\n");
        for i in orders[order] {
            text.push_str(parts[i]);
        }
        if let Some(current) = &current {
            text.push_str(&format!("current-context: {}\n", Value::from(current.as_str())));
        }
        let before = parse(&text).map_err(|e| TestCaseError::fail(format!("{e}\n{text}")))?;
        let ours = |section| (section, "hanse_x".to_owned(), json!({"server": "https://a:1", "token": "0x1"}));
        let mut changes = Changes {
            set: Section::ALL.map(ours).to_vec(),
            remove: vec![],
            current: Some("hanse_x".into()),
        };
        if removes {
            changes.remove = users.names.first().map(|n| (Section::Users, n.clone())).into_iter().collect();
        }
        let after_text = apply(&text, &changes).map_err(TestCaseError::fail)?;
        let after = parse(&after_text).unwrap();
        for (section, made) in [(Section::Clusters, &clusters), (Section::Users, &users), (Section::Contexts, &contexts)] {
            for name in &made.names {
                if changes.remove.contains(&(section, name.clone())) {
                    prop_assert!(!names(&after, section).contains(name));
                    continue;
                }
                prop_assert_eq!(entry(&before, section, name), entry(&after, section, name), "{}", after_text);
            }
            prop_assert!(entry(&after, section, "hanse_x").is_some());
        }
        if !removes {
            let undo = Changes {
                remove: changes.set.iter().map(|(s, n, _)| (*s, n.clone())).collect(),
                set: vec![],
                current: None,
            };
            let back = apply(&after_text, &undo).map_err(TestCaseError::fail)?;
            let without_current = |t: &str| t.lines().filter(|l| !l.starts_with("current-context")).map(str::to_owned).collect::<Vec<_>>();
            prop_assert_eq!(without_current(&back), without_current(&text));
        }
    }
}
