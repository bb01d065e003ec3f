//! What Hanse keeps as an OpenID provider: its clients, which administrators write, and what it makes by itself, which they look
//! at and end: logins at clients, and signing keys. A key that is deleted is replaced by another when it is needed next.

use super::{Column, Kind, cell, check, column, typed, wide};
use crate::apiserver::object;
use crate::apiserver::schema::Parts;
use hanse_api::access::Principal;
use hanse_api::kinds::{KindName, OIDC_CLIENTS, OIDC_GRANTS, OIDC_KEYS};
use hanse_api::resources::oidc::{REDIRECT_MAX, is_client_secret, validate_client};
use hanse_api::resources::{OidcClient, OidcClientSpec, OidcGrantSpec, OidcKeySpec};
use hanse_api::status::Cause;
use hanse_runtime::pki::sha256_hex;
use openidconnect::url::{Host, Url};
use serde_json::{Value, json};

/// Where a client's secret comes in.
const SECRET: &str = "clientSecret";
/// What is stored of it.
const HASH: &str = "clientSecretSha256";
/// Where `kubectl apply` keeps the whole object as it was given.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Programs that people log in to by Hanse.
pub(super) struct Clients;

/// Takes the secret out of an object and leaves its hash. One that cannot be a secret stays, to be refused.
fn hash_secret(object: &mut Value) {
    let spec = object::member_mut(object, "spec");
    let secret = spec.get(SECRET).and_then(Value::as_str).unwrap_or_default();
    if is_client_secret(secret) && spec.get("public") != Some(&true.into()) {
        let hash = sha256_hex(secret.as_bytes());
        spec.insert(HASH.to_owned(), hash.into());
        spec.remove(SECRET);
    }
    forget_applied(object);
}

/// kubectl writes what it applied into an annotation, with the secret; there it is not needed to apply once more.
fn forget_applied(object: &mut Value) {
    let annotation = object
        .pointer_mut("/metadata/annotations")
        .and_then(|all| all.get_mut(LAST_APPLIED));
    let Some(annotation) = annotation else { return };
    let applied = annotation
        .as_str()
        .and_then(|text| serde_json::from_str::<Value>(text).ok());
    let Some(mut applied) = applied else {
        // Whatever it is, it is not what kubectl writes.
        *annotation = "{}".into();
        return;
    };
    if let Some(spec) = applied.get_mut("spec").and_then(Value::as_object_mut)
        && spec.remove(SECRET).is_some()
    {
        *annotation = format!("{applied}\n").into();
    }
}

fn fill(object: &mut Value) {
    let name = object::name(object).to_owned();
    let spec = object::member_mut(object, "spec");
    if spec.get("clientId").is_none_or(|id| id == "") {
        spec.insert("clientId".into(), name.into());
    }
    hash_secret(object);
}

/// What is wrong with an address that people shall be led back to.
fn redirect_fault(address: &str) -> Option<&'static str> {
    let Ok(url) = Url::parse(address) else {
        return Some("is no URL");
    };
    let own = match url.host() {
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    };
    if address.len() > REDIRECT_MAX {
        Some("is too long")
    } else if url.scheme() != "https" && !(url.scheme() == "http" && own) {
        Some("must begin with https://, or with http:// on the person's own machine")
    } else if url.fragment().is_some() {
        Some("must have no fragment")
    } else if !url.username().is_empty() || url.password().is_some() {
        Some("must name no user")
    } else if address.contains('*') {
        Some("must have no wildcard: list every address")
    } else {
        None
    }
}

impl Kind for Clients {
    fn names(&self) -> &'static KindName {
        &OIDC_CLIENTS
    }

    fn singular(&self) -> &'static str {
        "oidcclient"
    }

    fn about(&self) -> &'static str {
        "A program that people log in to by Hanse, its OpenID provider. Its secret is taken, and never shown."
    }

    fn example(&self) -> Value {
        json!({
            "metadata": { "name": "kubelogin" },
            "spec": { "public": true, "redirectURIs": ["http://localhost:8000"] },
        })
    }

    fn has_status(&self) -> bool {
        false
    }

    fn schemas(&self) -> Parts {
        Parts::of::<OidcClientSpec, ()>()
    }

    fn columns(&self) -> &'static [Column] {
        const COLUMNS: &[Column] = &[
            column("Title", "Name for people"),
            column("Public", "Whether it has no secret"),
            wide("Redirects", "Where people are led back to"),
        ];
        COLUMNS
    }

    fn cells(&self, object: &Value) -> Vec<Value> {
        ["name", "public", "redirectURIs"]
            .map(|field| cell(object, &format!("/spec/{field}")))
            .into()
    }

    fn conceal(&self, object: &mut Value) {
        if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
            spec.remove(HASH);
        }
    }

    fn prepare(&self, object: &mut Value, _caller: &Principal) {
        // Only what was hashed here is a hash.
        object::member_mut(object, "spec").remove(HASH);
        fill(object);
    }

    /// A secret that is not given anew stays, unless the client shall have none any more.
    fn prepare_update(&self, old: &Value, new: &mut Value) {
        let public = new["spec"]["public"] == true;
        let spec = object::member_mut(new, "spec");
        spec.remove(HASH);
        if let (Some(hash), false) = (old["spec"].get(HASH), public) {
            spec.insert(HASH.to_owned(), hash.clone());
        }
        fill(new);
    }

    fn validate(&self, object: &Value) -> Vec<Cause> {
        check(object, |client: &OidcClient| {
            let mut faults = validate_client(client);
            for (i, address) in client.spec.redirect_uris.iter().enumerate() {
                faults.extend(redirect_fault(address).map(|why| Cause {
                    reason: "FieldValueInvalid".into(),
                    message: format!("Invalid value: {address:?}: {why}"),
                    field: format!("spec.redirectURIs[{i}]"),
                }));
            }
            faults
        })
    }
}

/// Something that the system makes, and administrators look at and end.
pub(super) struct Made {
    names: &'static KindName,
    singular: &'static str,
    about: &'static str,
    columns: &'static [Column],
    fields: &'static [&'static str],
    schemas: fn() -> Parts,
}

/// Logins at clients.
pub(super) static GRANTS: Made = Made {
    names: &OIDC_GRANTS,
    singular: "oidcgrant",
    about: "A login of somebody at an OpenID client. Deleting it ends the login: no token of it is good any more.",
    columns: &[
        column("User", "Who logged in"),
        column("Client", "Where"),
        column("Expires", "When it ends"),
    ],
    fields: &["user", "client", "expires"],
    schemas: Parts::of::<OidcGrantSpec, ()>,
};
/// Keys that sign tokens.
pub(super) static KEYS: Made = Made {
    names: &OIDC_KEYS,
    singular: "oidckey",
    about: "A key that signs ID tokens. One that is deleted is replaced by another when it is needed next.",
    columns: &[column("Key ID", "Its id in tokens")],
    fields: &["kid"],
    schemas: Parts::of::<OidcKeySpec, ()>,
};

impl Kind for Made {
    fn names(&self) -> &'static KindName {
        self.names
    }

    fn singular(&self) -> &'static str {
        self.singular
    }

    fn about(&self) -> &'static str {
        self.about
    }

    fn verbs(&self) -> &'static [&'static str] {
        &["delete", "get", "list", "watch"]
    }

    fn has_status(&self) -> bool {
        false
    }

    fn schemas(&self) -> Parts {
        (self.schemas)()
    }

    fn columns(&self) -> &'static [Column] {
        self.columns
    }

    fn cells(&self, object: &Value) -> Vec<Value> {
        let value = |field: &&str| cell(object, &format!("/spec/{field}"));
        self.fields.iter().map(value).collect()
    }

    fn conceal(&self, object: &mut Value) {
        if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
            spec.remove("sealed");
        }
    }

    fn validate(&self, object: &Value) -> Vec<Cause> {
        typed::<Value>(object).err().into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(spec: Value) -> Value {
        json!({ "metadata": { "name": "grafana" }, "spec": spec })
    }

    #[test]
    fn a_secret_becomes_a_hash_that_stays_until_another_comes() {
        let secret = "s".repeat(32);
        let applied = format!("{{\"spec\":{{\"clientSecret\":\"{secret}\",\"name\":\"x\"}}}}");
        let mut made = client(json!({ "clientSecret": secret, "redirectURIs": ["https://a/cb"] }));
        made["metadata"]["annotations"] = json!({ LAST_APPLIED: applied });
        Clients.prepare(&mut made, &Principal::default());
        assert!(!made.to_string().contains(&secret), "{made}");
        assert_eq!(Clients.validate(&made), []);
        assert_eq!(made["spec"][HASH], sha256_hex(secret.as_bytes()));
        assert_eq!(made["spec"]["clientId"], "grafana");
        let mut shown = made.clone();
        Clients.conceal(&mut shown);
        assert!(shown["spec"].get(HASH).is_none());
        Clients.prepare_update(&made, &mut shown);
        assert_eq!(shown["spec"][HASH], made["spec"][HASH]);
        let mut other = made.clone();
        other["spec"][SECRET] = "t".repeat(32).into();
        Clients.prepare_update(&made, &mut other);
        assert_ne!(other["spec"][HASH], made["spec"][HASH]);
        let mut public = made.clone();
        public["spec"]["public"] = true.into();
        Clients.prepare_update(&made, &mut public);
        assert!(public["spec"].get(HASH).is_none() && Clients.validate(&public).is_empty());
    }

    #[test]
    fn what_cannot_be_a_client_is_refused() {
        let good = json!({ "clientSecret": "s".repeat(32), "redirectURIs": ["https://a/cb"] });
        for (field, value, at) in [
            ("clientSecret", json!("short"), "spec.clientSecret"),
            ("clientSecret", json!(""), "spec.clientSecret"),
            ("public", json!(true), "spec.clientSecret"),
            ("clientId", json!("other"), "spec.clientId"),
            ("redirectURIs", json!([]), "spec.redirectURIs"),
            ("redirectURIs", json!(["https://a/*"]), "spec.redirectURIs[0]"),
            ("redirectURIs", json!(["http://a/cb"]), "spec.redirectURIs[0]"),
            ("redirectURIs", json!(["https://a/#x"]), "spec.redirectURIs[0]"),
            ("redirectURIs", json!(["https://u:p@a/"]), "spec.redirectURIs[0]"),
            ("redirectURIs", json!(["javascript:alert(1)"]), "spec.redirectURIs[0]"),
            (
                "redirectURIs",
                json!(["http://127.0.0.1/", "cb"]),
                "spec.redirectURIs[1]",
            ),
        ] {
            let mut bad = good.clone();
            bad[field] = value;
            let mut bad = client(bad);
            bad["spec"][HASH] = "0".repeat(64).into();
            Clients.prepare(&mut bad, &Principal::default());
            let at_all: Vec<_> = Clients.validate(&bad).into_iter().map(|c| c.field).collect();
            assert_eq!(at_all, [at], "{bad}");
        }
    }
}
