//! Who somebody is by the claims of a provider. Pure.

use super::settings::{OidcIssuer, fits};
use hanse_api::resources::user::is_given_group;
use hanse_runtime::pki::sha256_hex;
use serde_json::{Map, Value};

/// Most groups of one person that are taken over.
const MAX_GROUPS: usize = 500;
/// Longest name of a user.
const MAX_NAME: usize = 63;
/// Hex digits of a hash in a name: 160 bits.
const NAME_DIGITS: usize = 40;

/// Somebody at a provider whose word was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Person {
    /// Issuer.
    pub(crate) issuer: String,
    /// Subject.
    pub(crate) subject: String,
    /// What he would be called here.
    pub(crate) user: String,
    /// For people.
    pub(crate) display_name: String,
    /// Address, when the provider says that it was verified.
    pub(crate) email: String,
    /// Groups by their names here, in order, each once.
    pub(crate) groups: Vec<String>,
    /// What the names of this provider's groups begin with here.
    pub(crate) groups_prefix: String,
}

impl Person {
    /// Groups of a user who had `had` from providers: those of this one are replaced, those of others stay. None that only
    /// the system gives.
    pub(crate) fn sso_groups(&self, had: &[String]) -> Vec<String> {
        let own = |group: &&String| self.groups_prefix.is_empty() || group.starts_with(&self.groups_prefix);
        let given = |group: &&String| is_given_group(group) || group.starts_with("system:");
        let others = had.iter().filter(|group| !own(group));
        others
            .chain(self.groups.iter().filter(|group| !given(group)))
            .cloned()
            .collect()
    }
}

/// Name of the Identity object of somebody. Issuer and subject are separated by a byte that neither can hold.
pub(crate) fn identity_name(issuer: &str, subject: &str) -> String {
    let hash = sha256_hex(format!("{issuer}\0{subject}").as_bytes());
    format!("id-{}", &hash[..NAME_DIGITS])
}

/// Reads verified claims; the fault is for the person who logs in.
pub(crate) fn person(settings: &OidcIssuer, claims: &Map<String, Value>) -> Result<Person, String> {
    let text = |name: &str| claims.get(name).and_then(Value::as_str).unwrap_or_default();
    let subject = text("sub");
    if subject.is_empty() || subject.contains('\0') {
        return Err("the identity provider did not say who you are: its answer has no sub".into());
    }
    let verified = claims.get("email_verified").is_some_and(|v| *v == true || v == "true");
    let email = if verified { text("email") } else { "" };
    let theirs = groups(settings, claims)?;
    may_come(settings, email, &theirs)?;
    let prefix = settings.groups_prefix();
    let mut groups: Vec<String> = theirs
        .iter()
        .filter(|group| fits(&settings.groups, group))
        .map(|group| format!("{prefix}{group}"))
        .collect();
    groups.sort();
    groups.dedup();
    if groups.len() > MAX_GROUPS {
        return Err(format!(
            "you are in {} groups of the identity provider and {MAX_GROUPS} can be taken over: an administrator has to \
             narrow them with `groups` of [[oidc]]",
            groups.len()
        ));
    }
    let wanted = [text(&settings.username_claim), text("email"), subject];
    let wanted = wanted.into_iter().find(|w| !w.is_empty()).unwrap_or(subject);
    Ok(Person {
        issuer: settings.issuer.clone(),
        subject: subject.to_owned(),
        user: user_name(&settings.username_prefix, wanted, subject),
        display_name: text("name").to_owned(),
        email: email.to_owned(),
        groups,
        groups_prefix: prefix,
    })
}

/// A list of texts, or one text.
fn groups(settings: &OidcIssuer, claims: &Map<String, Value>) -> Result<Vec<String>, String> {
    let unreadable = || {
        format!(
            "the claim {:?} of the identity provider is no list of names",
            settings.groups_claim
        )
    };
    match claims.get(&settings.groups_claim) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::String(one)) => Ok(vec![one.clone()]),
        Some(Value::Array(list)) => list
            .iter()
            .map(|item| item.as_str().map(str::to_owned).ok_or_else(unreadable))
            .collect(),
        Some(_) => Err(unreadable()),
    }
}

fn may_come(settings: &OidcIssuer, email: &str, groups: &[String]) -> Result<(), String> {
    let everybody = settings.allowed_groups.iter().any(|g| g == "*");
    if !everybody && !groups.iter().any(|group| fits(&settings.allowed_groups, group)) {
        return Err("you are in none of the groups that may log in here (`allowed_groups` of [[oidc]])".into());
    }
    let domain = email.rsplit_once('@').map(|(_, domain)| domain).unwrap_or_default();
    let fits = |allowed: &String| allowed.eq_ignore_ascii_case(domain);
    if !settings.allowed_domains.is_empty() && !settings.allowed_domains.iter().any(fits) {
        return Err(
            "you have no verified address in a domain that may log in here (`allowed_domains` of [[oidc]])".into(),
        );
    }
    Ok(())
}

/// A name that a user can have: lower case, digits, dots and dashes.
fn user_name(prefix: &str, wanted: &str, subject: &str) -> String {
    let plain = |c: char| {
        let c = c.to_ascii_lowercase();
        if c.is_ascii_lowercase() || c.is_ascii_digit() || c == '.' {
            c
        } else {
            '-'
        }
    };
    let whole: String = format!("{prefix}{wanted}").chars().map(plain).take(MAX_NAME).collect();
    // Each part between dots begins and ends with a letter or digit.
    let parts: Vec<&str> = whole
        .split('.')
        .map(|p| p.trim_matches('-'))
        .filter(|p| !p.is_empty())
        .collect();
    let name = parts.join(".");
    if name.is_empty() {
        return format!("user-{}", &sha256_hex(subject.as_bytes())[..12]);
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn settings(more: &Value) -> OidcIssuer {
        let mut all = json!({ "id": "corp", "issuer": "https://id.example.com", "client_id": "hanse" });
        for (key, value) in more.as_object().unwrap() {
            all[key] = value.clone();
        }
        serde_json::from_value(all).unwrap()
    }

    fn read(more: &Value, claims: &Value) -> Result<Person, String> {
        person(&settings(more), claims.as_object().unwrap())
    }

    #[test]
    fn claims_make_a_person() {
        let claims = json!({
            "sub": "8f1", "preferred_username": "Ann.Lee@Corp", "name": "Ann Lee", "email": "ann@corp.example",
            "email_verified": true, "groups": ["devs", "ops", "devs"],
        });
        let ann = read(&json!({}), &claims).unwrap();
        assert_eq!(ann.user, "ann.lee-corp");
        assert_eq!(
            (ann.display_name.as_str(), ann.email.as_str()),
            ("Ann Lee", "ann@corp.example")
        );
        assert_eq!(ann.groups, ["corp:devs", "corp:ops"]);
        let narrow =
            json!({ "groups": ["d*"], "groups_prefix": "", "username_prefix": "x-", "username_claim": "name" });
        let ann = read(&narrow, &claims).unwrap();
        assert_eq!((ann.user.as_str(), ann.groups), ("x-ann-lee", vec!["devs".to_owned()]));
    }

    #[test]
    fn an_address_that_nobody_verified_is_none() {
        let claims = json!({ "sub": "1", "email": "root@corp.example", "email_verified": false });
        assert_eq!(read(&json!({}), &claims).unwrap().email, "");
        assert!(read(&json!({ "allowed_domains": ["corp.example"] }), &claims).is_err());
        let claims = json!({ "sub": "1", "email": "root@corp.example", "email_verified": true });
        assert!(read(&json!({ "allowed_domains": ["CORP.example"] }), &claims).is_ok());
        assert!(read(&json!({ "allowed_domains": ["orp.example"] }), &claims).is_err());
    }

    #[test]
    fn groups_that_cannot_be_read_are_no_groups_lost_but_a_fault() {
        assert!(read(&json!({}), &json!({ "sub": "1", "groups": { "a": 1 } })).is_err());
        assert!(read(&json!({}), &json!({ "sub": "1", "groups": ["a", 1] })).is_err());
        assert_eq!(
            read(&json!({}), &json!({ "sub": "1", "groups": "a" })).unwrap().groups,
            ["corp:a"]
        );
        let many: Vec<String> = (0..=MAX_GROUPS).map(|i| format!("g{i}")).collect();
        assert!(read(&json!({}), &json!({ "sub": "1", "groups": many })).is_err());
        assert!(read(&json!({ "groups": ["g1"] }), &json!({ "sub": "1", "groups": many })).is_ok());
    }

    #[test]
    fn a_login_replaces_the_groups_of_its_provider_only() {
        let had = ["other:a", "corp:old", "corp:devs"].map(str::to_owned);
        let claims = json!({ "sub": "1", "groups": ["devs", "new"] });
        let ann = read(&json!({}), &claims).unwrap();
        assert_eq!(ann.sso_groups(&had), ["other:a", "corp:devs", "corp:new"]);
        let claims =
            json!({ "sub": "1", "groups": ["system:hanse:admins", "loft:team:a", "hanse:tenant-admins", "x"] });
        let eve = read(&json!({ "groups_prefix": "" }), &claims).unwrap();
        assert_eq!(eve.sso_groups(&had), ["x"], "no provider makes administrators");
    }

    #[test]
    fn only_the_allowed_come() {
        let only = json!({ "allowed_groups": ["eng-*"], "groups": [] });
        assert!(read(&only, &json!({ "sub": "1", "groups": ["ops"] })).is_err());
        assert!(read(&only, &json!({ "sub": "1" })).is_err());
        assert!(
            read(&only, &json!({ "sub": "1", "groups": ["eng-1"] }))
                .unwrap()
                .groups
                .is_empty()
        );
        assert!(
            read(&json!({}), &json!({ "name": "Ann" })).is_err(),
            "without sub nobody is anybody"
        );
    }

    #[test]
    fn two_issuers_never_share_an_identity() {
        let names = [("https://a", "b"), ("https://a", "c"), ("https://ab", "b")].map(|(i, s)| identity_name(i, s));
        assert!(names[0] != names[1] && names[0] != names[2]);
        assert!(names.iter().all(|n| hanse_api::name::check_label(n).is_ok()));
    }

    proptest! {
        #[test]
        fn any_claim_gives_a_name_that_a_user_can_have(wanted in ".{1,80}", prefix in "[a-z-]{0,4}") {
            let name = user_name(&prefix, &wanted, "subject");
            prop_assert!(hanse_api::name::check_subdomain(&name).is_ok(), "{name:?}");
        }
    }
}
