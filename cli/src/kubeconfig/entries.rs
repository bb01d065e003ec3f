//! The entries that `connect` writes: a context through the front door, one per region, and one shared user per server.

use super::edit::{self, Changes, Section, object};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

/// Names of our entries start with it. Object names cannot hold `_`, so the parts can be told apart.
pub(crate) const PREFIX: &str = "hanse_";
/// Name of the context of the management API.
pub(crate) const MANAGEMENT: &str = "hanse_management";
/// Name of the extension that remembers the context before ours.
const PREVIOUS: &str = "hanse.dev/previous-context";

/// How a server is reached.
#[derive(Clone)]
pub(crate) struct Access {
    /// `https://host:port` of the front door.
    pub(crate) server: String,
    /// CA certificates, PEM; `None` for the system's.
    pub(crate) ca: Option<String>,
    /// No check of the server's certificate.
    pub(crate) insecure: bool,
    /// The access key.
    pub(crate) token: String,
    /// Region names with their gateways' `https://host:port`.
    pub(crate) regions: Vec<(String, String)>,
}

/// What a context leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Names {
    /// A tenant cluster.
    Tenant {
        /// Its project.
        project: String,
        /// Its name.
        name: String,
    },
    /// The management API.
    Management,
}

impl Names {
    /// Name of the context through the front door.
    pub(crate) fn context(&self) -> String {
        match self {
            Self::Tenant { project, name } => format!("{PREFIX}{name}_{project}"),
            Self::Management => MANAGEMENT.to_owned(),
        }
    }

    /// Name of the context through one region.
    pub(crate) fn in_region(&self, region: &str) -> String {
        format!("{}_{region}", self.context())
    }

    /// Path below the gateway.
    pub(crate) fn path(&self) -> String {
        match self {
            Self::Tenant { project, name } => format!("/kubernetes/project/{project}/virtualcluster/{name}"),
            Self::Management => "/kubernetes/management".to_owned(),
        }
    }

    /// Whether `context` is ours and leads there, by whatever region.
    pub(crate) fn owns(&self, context: &str) -> bool {
        let own = self.context();
        context
            .strip_prefix(&own)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
    }
}

/// Name of the user entry of `server`: one per server, so that logging out leaves no key behind.
pub(crate) fn user_name(server: &str) -> String {
    format!("{PREFIX}{}", server.trim_start_matches("https://"))
}

/// The changes that connect to `names`. `config` is what is there now.
pub(crate) fn connect(config: &Value, access: &Access, names: &Names, switch: bool) -> Changes {
    let mut changes = Changes::default();
    let user = user_name(&access.server);
    changes
        .set
        .push((Section::Users, user.clone(), json!({ "token": access.token })));
    let previous = previous_for(config);
    let mut add = |context: String, server: &str| {
        let cluster = cluster_entry(access, &format!("{server}{}", names.path()));
        changes.set.push((Section::Clusters, context.clone(), cluster));
        let mut content = object([("cluster", json!(context)), ("user", json!(user))]);
        if let (Some(previous), Some(map)) = (&previous, content.as_object_mut()) {
            let extension = json!({ "context": previous });
            map.insert(
                "extensions".to_owned(),
                json!([{ "name": PREVIOUS, "extension": extension }]),
            );
        }
        changes.set.push((Section::Contexts, context, content));
    };
    add(names.context(), &access.server);
    for (region, server) in &access.regions {
        add(names.in_region(region), server);
    }
    changes.current = switch.then(|| names.context());
    changes
}

fn cluster_entry(access: &Access, server: &str) -> Value {
    let mut cluster = object([("server", json!(server))]);
    if let Some(map) = cluster.as_object_mut() {
        if access.insecure {
            map.insert("insecure-skip-tls-verify".to_owned(), json!(true));
        } else if let Some(ca) = &access.ca {
            map.insert("certificate-authority-data".to_owned(), json!(STANDARD.encode(ca)));
        }
    }
    cluster
}

/// The context to return to: the current one, or the one that it itself remembers when it is ours.
fn previous_for(config: &Value) -> Option<String> {
    let current = edit::current(config)?;
    if current.starts_with(PREFIX) {
        remembered(config, current)
    } else {
        Some(current.to_owned())
    }
}

/// The context that `context` remembers.
pub(crate) fn remembered(config: &Value, context: &str) -> Option<String> {
    let extensions = edit::entry(config, Section::Contexts, context)?
        .get("extensions")?
        .as_array()?;
    let ours = extensions
        .iter()
        .find(|e| e.get("name").and_then(Value::as_str) == Some(PREVIOUS))?;
    Some(ours.pointer("/extension/context")?.as_str()?.to_owned())
}

/// The context that `disconnect` goes to; `None` when the current context is not ours. The empty text means none.
pub(crate) fn disconnect_target(config: &Value) -> Option<String> {
    let current = edit::current(config).filter(|c| c.starts_with(PREFIX))?;
    let known = edit::names(config, Section::Contexts);
    Some(
        remembered(config, current)
            .filter(|p| known.contains(p))
            .unwrap_or_default(),
    )
}

/// Whether `context` uses the user entry `user`.
pub(crate) fn uses(config: &Value, context: &str, user: &str) -> bool {
    edit::entry(config, Section::Contexts, context)
        .and_then(|c| c.get("user"))
        .is_some_and(|u| u == user)
}

/// The changes that take out every entry of ours that `gone` names, with users and clusters that nothing needs any more.
pub(crate) fn forget(config: &Value, gone: impl Fn(&str, &Value) -> bool) -> Changes {
    let mut changes = Changes::default();
    let mut kept_users = Vec::new();
    for context in edit::names(config, Section::Contexts) {
        let Some(content) = edit::entry(config, Section::Contexts, &context) else {
            continue;
        };
        let text = |key: &str| content.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let cluster = edit::entry(config, Section::Clusters, &text("cluster"))
            .cloned()
            .unwrap_or(Value::Null);
        if context.starts_with(PREFIX) && gone(&context, &cluster) {
            if text("cluster").starts_with(PREFIX) {
                changes.remove.push((Section::Clusters, text("cluster")));
            }
            changes.remove.push((Section::Contexts, context));
        } else {
            kept_users.push(text("user"));
        }
    }
    if changes.remove.is_empty() {
        return changes;
    }
    for user in edit::names(config, Section::Users) {
        if user.starts_with(PREFIX) && !kept_users.contains(&user) {
            changes.remove.push((Section::Users, user));
        }
    }
    let current = edit::current(config).unwrap_or_default();
    if changes
        .remove
        .iter()
        .any(|(s, name)| *s == Section::Contexts && name == current)
    {
        let back = disconnect_target(config).unwrap_or_default();
        let stays = !changes
            .remove
            .iter()
            .any(|(s, name)| *s == Section::Contexts && *name == back);
        changes.current = Some(if stays { back } else { String::new() });
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access() -> Access {
        Access {
            server: "https://127.0.0.1:8443".into(),
            ca: Some("PEM".into()),
            insecure: false,
            token: "id.secret".into(),
            regions: vec![("eu".into(), "https://127.0.1.1:8443".into())],
        }
    }

    fn tenant(name: &str) -> Names {
        Names::Tenant {
            project: "default".into(),
            name: name.into(),
        }
    }

    fn with(config: &str, names: &Names) -> String {
        let value = edit::parse(config).unwrap();
        edit::apply(config, &connect(&value, &access(), names, true)).unwrap()
    }

    const KIND: &str = "apiVersion: v1\nkind: Config\ncontexts:\n- name: kind-a\n  context: {cluster: a, user: a}\ncurrent-context: kind-a\n";

    #[test]
    fn a_connection_holds_the_front_door_and_each_region() {
        let config = edit::parse(&with("", &tenant("demo"))).unwrap();
        assert_eq!(edit::current(&config), Some("hanse_demo_default"));
        let door = edit::entry(&config, Section::Clusters, "hanse_demo_default").unwrap();
        assert_eq!(
            door["server"],
            "https://127.0.0.1:8443/kubernetes/project/default/virtualcluster/demo"
        );
        assert_eq!(door["certificate-authority-data"], "UEVN");
        let region = edit::entry(&config, Section::Clusters, "hanse_demo_default_eu").unwrap();
        assert_eq!(
            region["server"],
            "https://127.0.1.1:8443/kubernetes/project/default/virtualcluster/demo"
        );
        assert_eq!(edit::names(&config, Section::Users), ["hanse_127.0.0.1:8443"]);
    }

    #[test]
    fn disconnect_leads_out_of_a_chain_of_our_contexts() {
        let first = with(KIND, &tenant("a"));
        let second = with(&first, &tenant("b"));
        let again = with(&second, &tenant("b"));
        let config = edit::parse(&again).unwrap();
        assert_eq!(disconnect_target(&config), Some("kind-a".into()));
        assert_eq!(disconnect_target(&edit::parse(KIND).unwrap()), None);
        let without = edit::apply(
            &again,
            &Changes {
                remove: vec![(Section::Contexts, "kind-a".into())],
                ..Default::default()
            },
        );
        assert_eq!(
            disconnect_target(&edit::parse(&without.unwrap()).unwrap()),
            Some(String::new())
        );
    }

    #[test]
    fn forgetting_a_tenant_keeps_the_others_and_the_key_they_need() {
        let both = with(&with(KIND, &tenant("a")), &tenant("a-b"));
        let config = edit::parse(&both).unwrap();
        let changes = forget(&config, |context, _| tenant("a").owns(context));
        assert_eq!(changes.current, None, "a-b is current and stays");
        let left = edit::apply(&both, &changes).unwrap();
        let config = edit::parse(&left).unwrap();
        assert_eq!(
            edit::names(&config, Section::Contexts),
            ["kind-a", "hanse_a-b_default", "hanse_a-b_default_eu"]
        );
        assert_eq!(edit::names(&config, Section::Users).len(), 1);
        let changes = forget(&config, |_, cluster| cluster["certificate-authority-data"] == "UEVN");
        assert_eq!(changes.current.as_deref(), Some("kind-a"));
        let none = edit::apply(&left, &changes).unwrap();
        let config = edit::parse(&none).unwrap();
        assert_eq!(edit::names(&config, Section::Contexts), ["kind-a"]);
        assert!(edit::names(&config, Section::Users).is_empty(), "no key is left behind");
        assert!(edit::names(&config, Section::Clusters).is_empty());
    }
}
