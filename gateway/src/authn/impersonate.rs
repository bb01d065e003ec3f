//! A caller's own `Impersonate-*` headers: who he wants to be, and whether he may.
//!
//! The headers are read here once and never passed on; what goes upstream is the principal that comes out of here, which
//! carries the original caller with it.

use hanse_api::access::{GROUP_ADMINS, GROUP_AUTHENTICATED, Principal};
use hanse_api::status::{Reason, Status};
use http::HeaderMap;
use std::collections::BTreeMap;

/// Extra key that names the caller behind an impersonation. Refused from callers.
pub(crate) const ORIGINAL_USER: &str = "original-user.hanse.dev";
const PREFIX: &str = "impersonate-";
const EXTRA: &str = "impersonate-extra-";
const ANONYMOUS: &str = "system:anonymous";
const UNAUTHENTICATED: &str = "system:unauthenticated";
const SERVICE_ACCOUNT: &str = "system:serviceaccount:";
/// Groups that mean something inside tenant clusters, where the gateway alone gives them.
const OWN_GROUPS: &str = "hanse:";
/// Most groups or extra values of one request.
const MAX_VALUES: usize = 256;

/// The principal that the request shall run as.
pub(crate) fn effective(caller: &Principal, headers: &HeaderMap) -> Result<Principal, Box<Status>> {
    let Some(mut wanted) = wanted(headers)? else {
        return Ok(caller.clone());
    };
    if !caller.is_in(GROUP_ADMINS) {
        return Err(forbidden(format!(
            "User {:?} cannot impersonate: it needs membership of {GROUP_ADMINS}",
            caller.user
        )));
    }
    if let Some(reserved) = reserved(&wanted) {
        return Err(forbidden(format!(
            "User {:?} cannot impersonate {reserved}: it is reserved",
            caller.user
        )));
    }
    imply_groups(&mut wanted);
    // The key stays what it is, whoever its owner wants to be.
    wanted.scope = caller.scope.clone();
    let original = serde_json::json!({ "username": caller.user, "uid": caller.uid, "groups": caller.groups });
    wanted
        .extra
        .insert(ORIGINAL_USER.to_owned(), vec![original.to_string()]);
    Ok(wanted)
}

fn forbidden(message: String) -> Box<Status> {
    Box::new(Status::new(Reason::Forbidden, message))
}

fn bad(message: impl Into<String>) -> Box<Status> {
    Box::new(Status::new(Reason::BadRequest, message))
}

fn wanted(headers: &HeaderMap) -> Result<Option<Principal>, Box<Status>> {
    let mut wanted = Principal::default();
    let (mut any, mut user) = (false, None);
    let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (count, (name, value)) in headers
        .iter()
        .filter(|(n, _)| n.as_str().starts_with(PREFIX))
        .enumerate()
    {
        any = true;
        let text = std::str::from_utf8(value.as_bytes())
            .map_err(|_| bad(format!("header {name} is not UTF-8")))?
            .to_owned();
        if count >= MAX_VALUES {
            return Err(bad(format!("more than {MAX_VALUES} impersonation headers")));
        }
        match name.as_str() {
            "impersonate-user" => user = user.or(Some(text)),
            "impersonate-group" => wanted.groups.push(text),
            "impersonate-uid" => wanted.uid = text,
            other => match other.strip_prefix(EXTRA) {
                Some(key) if !key.is_empty() => {
                    let key = crate::query::decode(key, false).map_err(bad)?.to_ascii_lowercase();
                    extra.entry(key).or_default().push(text);
                }
                Some(_) | None => return Err(bad(format!("unknown impersonation header {name}"))),
            },
        }
    }
    if !any {
        return Ok(None);
    }
    wanted.user = user
        .filter(|u| !u.is_empty())
        .ok_or_else(|| bad("impersonation needs a user: Impersonate-User is missing"))?;
    if extra.keys().any(|k| k.ends_with("hanse.dev")) {
        return Err(bad("extra keys of hanse.dev are set by the gateway only"));
    }
    wanted.extra = extra;
    Ok(Some(wanted))
}

/// Identities that no one may take on: they would go past authorization of the target, or belong to its own machinery.
fn reserved(wanted: &Principal) -> Option<String> {
    let user = wanted.user.as_str();
    let taken = user.starts_with("system:") && user != ANONYMOUS && !user.starts_with(SERVICE_ACCOUNT);
    if taken {
        return Some(format!("user {user:?}"));
    }
    wanted
        .groups
        .iter()
        .find(|g| reserved_group(g))
        .map(|g| format!("group {g:?}"))
}

fn reserved_group(group: &str) -> bool {
    let known = matches!(group, GROUP_AUTHENTICATED | UNAUTHENTICATED) || group.starts_with("system:serviceaccounts");
    group.starts_with(OWN_GROUPS) || (group.starts_with("system:") && !known)
}

/// Groups of a principal that may be shown to a tenant's API server, where `system:` groups mean something else.
pub(crate) fn tenant_groups(principal: &Principal) -> Vec<String> {
    principal
        .groups
        .iter()
        .filter(|g| !reserved_group(g))
        .cloned()
        .collect()
}

fn imply_groups(wanted: &mut Principal) {
    if wanted.groups.is_empty()
        && let Some((namespace, _)) = wanted
            .user
            .strip_prefix(SERVICE_ACCOUNT)
            .and_then(|r| r.split_once(':'))
    {
        wanted.groups = vec![
            "system:serviceaccounts".into(),
            format!("system:serviceaccounts:{namespace}"),
        ];
    }
    let anonymous = wanted.user == ANONYMOUS || wanted.is_in(UNAUTHENTICATED);
    if !anonymous && !wanted.is_in(GROUP_AUTHENTICATED) {
        wanted.groups.push(GROUP_AUTHENTICATED.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hanse_api::access::GROUP_TENANT_ADMINS;

    fn admin() -> Principal {
        Principal {
            user: "root".into(),
            groups: vec![GROUP_ADMINS.into()],
            ..Default::default()
        }
    }

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(*name, value.parse().unwrap());
        }
        map
    }

    #[test]
    fn without_headers_the_caller_stays_himself() {
        assert_eq!(effective(&admin(), &headers(&[("accept", "x")])).unwrap(), admin());
    }

    #[test]
    fn a_scope_is_not_shaken_off() {
        let mut scoped = admin();
        scoped.scope = serde_json::from_value(serde_json::json!({ "projects": [{ "project": "x" }] })).unwrap();
        let got = effective(&scoped, &headers(&[("impersonate-user", "eve")])).unwrap();
        assert_eq!(got.scope, scoped.scope);
    }

    #[test]
    fn only_admins_may() {
        let someone = Principal {
            user: "bob".into(),
            ..Default::default()
        };
        let status = effective(&someone, &headers(&[("impersonate-user", "eve")])).unwrap_err();
        assert_eq!(status.reason, Reason::Forbidden);
    }

    #[test]
    fn the_wanted_identity_carries_the_original() {
        let wanted = headers(&[
            ("impersonate-user", "eve"),
            ("impersonate-group", "devs"),
            ("impersonate-extra-acme.com%2Fscope", "a"),
            ("impersonate-extra-acme.com%2Fscope", "b"),
        ]);
        let got = effective(&admin(), &wanted).unwrap();
        assert_eq!(got.user, "eve");
        assert_eq!(got.groups, ["devs", "system:authenticated"]);
        assert_eq!(got.extra["acme.com/scope"], ["a", "b"]);
        assert!(got.extra[ORIGINAL_USER][0].contains("root"));
        assert!(!got.is_in(GROUP_ADMINS));
    }

    #[test]
    fn service_accounts_and_anonymous_get_their_groups() {
        let sa = effective(
            &admin(),
            &headers(&[("impersonate-user", "system:serviceaccount:ns:x")]),
        )
        .unwrap();
        assert_eq!(
            sa.groups,
            [
                "system:serviceaccounts",
                "system:serviceaccounts:ns",
                "system:authenticated"
            ]
        );
        let nobody = effective(&admin(), &headers(&[("impersonate-user", "system:anonymous")])).unwrap();
        assert!(nobody.groups.is_empty());
    }

    #[test]
    fn reserved_identities_are_refused() {
        for (name, value) in [
            ("impersonate-user", "system:kube-scheduler"),
            ("impersonate-user", "system:node:n"),
            ("impersonate-group", "system:masters"),
            ("impersonate-group", "system:nodes"),
            ("impersonate-group", GROUP_ADMINS),
            ("impersonate-group", GROUP_TENANT_ADMINS),
            ("impersonate-group", "hanse:tenant-role:admin"),
        ] {
            let mut map = headers(&[(name, value)]);
            if name != "impersonate-user" {
                map.insert("impersonate-user", "eve".parse().unwrap());
            }
            assert_eq!(
                effective(&admin(), &map).unwrap_err().reason,
                Reason::Forbidden,
                "{value}"
            );
        }
    }

    #[test]
    fn malformed_headers_are_refused() {
        for pairs in [
            &[("impersonate-group", "devs")][..],
            &[("impersonate-user", "")],
            &[("impersonate-user", "eve"), ("impersonate-other", "x")],
            &[("impersonate-user", "eve"), ("impersonate-extra-", "x")],
            &[
                ("impersonate-user", "eve"),
                ("impersonate-extra-original-user.hanse.dev", "x"),
            ],
        ] {
            assert_eq!(
                effective(&admin(), &headers(pairs)).unwrap_err().reason,
                Reason::BadRequest,
                "{pairs:?}"
            );
        }
    }

    #[test]
    fn tenants_do_not_see_reserved_groups() {
        let mut principal = admin();
        principal
            .groups
            .extend(["system:masters".into(), "devs".into(), GROUP_AUTHENTICATED.into()]);
        assert_eq!(tenant_groups(&principal), ["devs", GROUP_AUTHENTICATED]);
    }
}
