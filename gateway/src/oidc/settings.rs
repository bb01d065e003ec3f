//! What an administrator says about an identity provider.

use hanse_api::name::check_label;
use openidconnect::url::Url;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Words that stand in the place of a provider's id in paths.
const RESERVED: [&str; 6] = ["device", "exchange", "info", "oidc", "password", "token"];

/// An identity provider, as a section `[[oidc]]` of `server.toml` describes it: the same on every server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OidcIssuer {
    /// Name in paths, a DNS label: the redirect URI to register is `<external_url>/auth/<id>/callback`.
    pub id: String,
    /// Name on the button of the login page.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub display_name: String,
    /// Issuer: `https://...`, exactly as in its tokens.
    pub issuer: String,
    /// Id that the provider gave Hanse.
    pub client_id: String,
    /// File of mode 0600 with the secret that the provider gave Hanse. None for a public client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_secret_file: Option<PathBuf>,
    /// File with the certificates of the authority that the provider's certificate comes from; the system's by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// Scopes to ask for, beside `openid`.
    #[serde(default = "default_scopes")]
    pub scopes: Vec<String>,
    /// Claim that a new user's name is made of.
    #[serde(default = "default_username_claim")]
    pub username_claim: String,
    /// What the name of a new user begins with.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub username_prefix: String,
    /// Claim with the groups.
    #[serde(default = "default_groups_claim")]
    pub groups_claim: String,
    /// Groups that are taken over, `*` standing for any text; the others are passed over.
    #[serde(default = "everything")]
    pub groups: Vec<String>,
    /// What the names of its groups begin with here, so that no provider names those of another. `<id>:` by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub groups_prefix: Option<String>,
    /// Whether somebody who was never here becomes a user by logging in.
    #[serde(default = "yes")]
    pub create_users: bool,
    /// Only members of these groups of the provider may log in, `*` standing for any text. Everybody by default.
    #[serde(default = "everything")]
    pub allowed_groups: Vec<String>,
    /// Only those with a verified address in one of these domains may log in. Everybody by default.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allowed_domains: Vec<String>,
    /// Audiences whose ID tokens the API takes as credentials. None by default.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub api_audiences: Vec<String>,
}

fn default_scopes() -> Vec<String> {
    ["profile", "email", "groups"].map(str::to_owned).into()
}

fn default_username_claim() -> String {
    "preferred_username".into()
}

fn default_groups_claim() -> String {
    "groups".into()
}

fn everything() -> Vec<String> {
    vec!["*".into()]
}

const fn yes() -> bool {
    true
}

impl OidcIssuer {
    /// Every fault: key and text.
    pub fn faults(&self) -> Vec<(&'static str, String)> {
        let mut faults = Vec::new();
        if let Err(why) = check_label(&self.id) {
            faults.push(("id", format!("{:?}: {why}", self.id)));
        } else if RESERVED.contains(&self.id.as_str()) {
            faults.push((
                "id",
                format!("{:?} has another meaning in paths: choose another", self.id),
            ));
        }
        match Url::parse(&self.issuer) {
            Ok(url) if url.scheme() == "https" && url.query().is_none() && url.fragment().is_none() => {}
            Ok(_) => faults.push(("issuer", "must begin with https:// and have no query".into())),
            Err(error) => faults.push(("issuer", format!("{:?} is no URL: {error}", self.issuer))),
        }
        if self.client_id.is_empty() {
            faults.push(("client_id", "must be the id that the provider gave".into()));
        }
        if self.api_audiences.iter().any(String::is_empty) {
            faults.push(("api_audiences", "an audience is empty".into()));
        }
        if self.groups_prefix().starts_with("system:") {
            faults.push(("groups_prefix", "must not begin with system:".into()));
        }
        faults
    }

    /// What people know it by.
    pub(crate) fn title(&self) -> &str {
        if self.display_name.is_empty() {
            &self.id
        } else {
            &self.display_name
        }
    }

    /// What the names of its groups begin with here.
    pub(crate) fn groups_prefix(&self) -> String {
        self.groups_prefix.clone().unwrap_or_else(|| format!("{}:", self.id))
    }
}

/// Whether one of `patterns` fits `text`. Only `*` is special: it stands for any text, also none.
pub(crate) fn fits(patterns: &[String], text: &str) -> bool {
    patterns.iter().any(|pattern| fits_one(pattern, text))
}

fn fits_one(pattern: &str, text: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else {
        return pattern == text;
    };
    let Some(mut text) = text.strip_prefix(head) else {
        return false;
    };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let tail = parts.pop().unwrap_or_default();
    for part in parts {
        // The first place is as good as any: what comes before it is covered by the star.
        match text.find(part) {
            Some(at) => text = &text[at + part.len()..],
            None => return false,
        }
    }
    text.ends_with(tail)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> OidcIssuer {
        serde_json::from_value(serde_json::json!({
            "id": "corp", "issuer": "https://id.example.com", "client_id": "hanse",
        }))
        .unwrap()
    }

    #[test]
    fn faults_name_their_keys() {
        assert_eq!(good().faults(), []);
        let keys = |issuer: OidcIssuer| issuer.faults().into_iter().map(|(key, _)| key).collect::<Vec<_>>();
        for (key, bad) in [
            (
                "id",
                OidcIssuer {
                    id: "A".into(),
                    ..good()
                },
            ),
            (
                "id",
                OidcIssuer {
                    id: "device".into(),
                    ..good()
                },
            ),
            (
                "issuer",
                OidcIssuer {
                    issuer: "http://id.example.com".into(),
                    ..good()
                },
            ),
            (
                "issuer",
                OidcIssuer {
                    issuer: "https://id.example.com/?a=b".into(),
                    ..good()
                },
            ),
            (
                "issuer",
                OidcIssuer {
                    issuer: "id".into(),
                    ..good()
                },
            ),
            (
                "client_id",
                OidcIssuer {
                    client_id: String::new(),
                    ..good()
                },
            ),
            (
                "api_audiences",
                OidcIssuer {
                    api_audiences: vec![String::new()],
                    ..good()
                },
            ),
            (
                "groups_prefix",
                OidcIssuer {
                    groups_prefix: Some("system:hanse:".into()),
                    ..good()
                },
            ),
        ] {
            assert_eq!(keys(bad), [key]);
        }
    }

    #[test]
    fn a_star_stands_for_any_text() {
        for (pattern, text, want) in [
            ("*", "", true),
            ("*", "any", true),
            ("eng", "eng", true),
            ("eng", "eng-1", false),
            ("eng-*", "eng-1", true),
            ("eng-*", "ops-1", false),
            ("*-admins", "eng-admins", true),
            ("*-admins", "eng-admins-not", false),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "ac", false),
            ("ab*ba", "aba", false),
            ("", "x", false),
        ] {
            assert_eq!(fits(&[pattern.to_owned()], text), want, "{pattern} {text}");
        }
    }
}
