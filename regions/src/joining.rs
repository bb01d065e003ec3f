//! Gives new servers their place in exchange for one-time tokens.
//!
//! A token is `<id>.<secret>`, as an agent's is, but of a kind of its own: neither can ever be used as the other. The council keeps
//! the region that it is for. Its first use binds it to one key, one name and one id, in the transaction that enters the server, so
//! that of two newcomers with one token or one name only one gets through; the same key may ask again, because an answer can
//! get lost. Whether the members may change is not decided here, and the server is no member yet when this is done.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use bytes::Bytes;
use hanse_api::Timestamp;
use hanse_api::kinds::{JOIN_TOKENS, REVOKED_KEYS, SERVERS};
use hanse_api::meta::{Object, ObjectMeta};
use hanse_api::name::check_subdomain;
use hanse_api::resources::{JoinToken, JoinTokenUse, RevokedKey, RevokedKeySpec, Server, ServerSpec, ServerStatus};
use hanse_runtime::pki::{Ca, LeafSpec, PkiError, csr_key_sha256, sha256_hex};
use hanse_runtime::rng::Rng;
use hanse_state::objects::{ObjectError, Objects, Op, Page, Stored};

use crate::address::Address;
use crate::error::{JoinError, StepError};
use crate::reconciler::encode;

/// Lifetime of a server's certificate, in days: as long as that of the founders' ones.
const CERTIFICATE_DAYS: u32 = 3650;
/// Longest token and longest request, in bytes.
const INPUT_MAX: usize = 64 << 10;
/// Tries when others change the same objects.
const TRIES: usize = 5;

/// URI name of the server `name` in its certificate.
pub fn server_uri(name: &str) -> String {
    format!("hanse://server/{name}")
}

/// What a new server shows and says.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Its token. A secret.
    pub token: &'a str,
    /// A certificate request; only its key counts.
    pub csr_pem: &'a str,
    /// The name that it wants.
    pub name: &'a str,
    /// Its addresses; id and region do not count.
    pub wanted: &'a ServerSpec,
}

/// Who the members are and were.
#[derive(Clone, Debug, Default)]
pub struct Members {
    /// Names by id.
    pub seats: BTreeMap<u64, String>,
    /// Ids of servers that were removed.
    pub removed: BTreeSet<u64>,
}

/// Binds the token to the server that shows it, and enters that server. Gives its id and region.
pub async fn reserve(
    objects: &Objects,
    request: &Request<'_>,
    members: &Members,
    rng: &dyn Rng,
    now: Timestamp,
) -> Result<ServerSpec, JoinError> {
    if request.token.len() > INPUT_MAX || request.csr_pem.len() > INPUT_MAX {
        return Err(JoinError::BadToken);
    }
    let (id, secret) = request.token.trim().split_once('.').ok_or(JoinError::BadToken)?;
    check_subdomain(id).map_err(|_| JoinError::BadToken)?;
    let token_key = Address::global(id).key(JOIN_TOKENS);
    let server_key = Address::global(request.name).key(SERVERS);
    for _ in 0..TRIES {
        let stored = objects.get(&token_key).await.map_err(JoinError::Council)?;
        let stored = stored.ok_or(JoinError::BadToken)?;
        let mut token: JoinToken = serde_json::from_slice(&stored.value).map_err(JoinError::Json)?;
        let key_sha256 = examine(&token, secret, request, now)?;
        if is_revoked(objects, &key_sha256).await? {
            return Err(JoinError::KeyRevoked);
        }
        let servers = objects.list(&SERVERS, None, Page::default()).await;
        let servers = entered(&servers.map_err(JoinError::Council)?.items)?;
        let id = place(&token, request.name, members, &servers)?;
        let spec = ServerSpec {
            id,
            region: token.spec.region.clone(),
            key_sha256: key_sha256.clone(),
            ..request.wanted.clone()
        };
        let mut ops = Vec::new();
        if let Some(op) = enter(servers.get(request.name), &spec, request.name, rng, now)? {
            ops.push(op(server_key.clone()));
        }
        let used = JoinTokenUse {
            key_sha256,
            name: request.name.to_owned(),
            id,
        };
        if token.spec.used.as_ref() != Some(&used) {
            token.spec.used = Some(used);
            ops.push(Op::Update {
                key: token_key.clone(),
                value: encode(&token).map_err(json)?,
                expected: stored.revision,
            });
        }
        if ops.is_empty() {
            return Ok(spec);
        }
        match objects.commit(ops).await {
            Ok(_) => return Ok(spec),
            // Somebody used the token or took the name at the same moment: look who.
            Err(ObjectError::Failed { .. }) => {}
            Err(error) => return Err(JoinError::Council(error)),
        }
    }
    Err(JoinError::Contended)
}

async fn is_revoked(objects: &Objects, key_sha256: &str) -> Result<bool, JoinError> {
    let key = Address::global(key_sha256).key(REVOKED_KEYS);
    objects
        .get(&key)
        .await
        .map(|found| found.is_some())
        .map_err(JoinError::Council)
}

/// Takes a server out again that was entered with this id and never became a member; nothing if there is none.
pub async fn withdraw(objects: &Objects, name: &str, id: u64) -> Result<(), JoinError> {
    take_out(objects, name, id, false).await
}

/// Takes a server out that was removed from the members, and has its key refused from then on.
pub async fn retire(objects: &Objects, name: &str, id: u64) -> Result<(), JoinError> {
    take_out(objects, name, id, true).await
}

/// Has a server's entry say the id under which it came back. Its key stays good: it is the same server, on the same machine.
pub async fn succeed(objects: &Objects, name: &str, old: u64, new: u64) -> Result<(), JoinError> {
    let key = Address::global(name).key(SERVERS);
    for _ in 0..TRIES {
        let Some(stored) = objects.get(&key).await.map_err(JoinError::Council)? else {
            return Ok(());
        };
        let mut server: Server = serde_json::from_slice(&stored.value).map_err(JoinError::Json)?;
        if server.spec.id != old {
            return Ok(());
        }
        server.spec.id = new;
        server.metadata.generation += 1;
        let ops = vec![Op::Update {
            key: key.clone(),
            value: encode(&server).map_err(json)?,
            expected: stored.revision,
        }];
        match objects.commit(ops).await {
            Ok(_) => return Ok(()),
            Err(ObjectError::Failed { .. }) => {}
            Err(error) => return Err(JoinError::Council(error)),
        }
    }
    Err(JoinError::Contended)
}

/// What has the key of a server refused.
fn revocation(server: &Server) -> Result<Op, JoinError> {
    let hash = &server.spec.key_sha256;
    let revoked = RevokedKey {
        api_version: REVOKED_KEYS.api_version(),
        kind: REVOKED_KEYS.kind.to_owned(),
        metadata: ObjectMeta {
            name: hash.clone(),
            ..ObjectMeta::default()
        },
        spec: RevokedKeySpec {
            server: server.metadata.name.clone(),
            id: server.spec.id,
        },
        status: (),
    };
    let value = encode(&revoked).map_err(json)?;
    let key = Address::global(hash).key(REVOKED_KEYS);
    Ok(Op::Create { key, value })
}

async fn take_out(objects: &Objects, name: &str, id: u64, for_good: bool) -> Result<(), JoinError> {
    let key = Address::global(name).key(SERVERS);
    for _ in 0..TRIES {
        let Some(stored) = objects.get(&key).await.map_err(JoinError::Council)? else {
            return Ok(());
        };
        let server: Server = serde_json::from_slice(&stored.value).map_err(JoinError::Json)?;
        if server.spec.id != id {
            return Ok(());
        }
        let mut ops = vec![Op::Delete {
            key: key.clone(),
            expected: stored.revision,
        }];
        // An entry of an older version does not say which key it is.
        let hash = &server.spec.key_sha256;
        if for_good && !hash.is_empty() && !is_revoked(objects, hash).await? {
            ops.push(revocation(&server)?);
        }
        match objects.commit(ops).await {
            Ok(_) => return Ok(()),
            Err(ObjectError::Failed { .. }) => {}
            Err(error) => return Err(JoinError::Council(error)),
        }
    }
    Err(JoinError::Contended)
}

/// A certificate for the key of `csr_pem`, for a server of this name that clients reach at `hosts`.
pub fn certificate(ca: &Ca, csr_pem: &str, name: &str, hosts: &[String], now: Timestamp) -> Result<String, PkiError> {
    let (mut ips, mut dns) = (Vec::new(), Vec::new());
    for host in hosts {
        match host.parse::<IpAddr>() {
            Ok(ip) => ips.push(ip),
            Err(_) => dns.push(host.clone()),
        }
    }
    let leaf = LeafSpec {
        common_name: name.to_owned(),
        uris: vec![server_uri(name)],
        dns,
        ips,
        client: true,
        server: true,
        days: CERTIFICATE_DAYS,
        ..LeafSpec::default()
    };
    ca.sign_csr(csr_pem, &leaf, now)
}

/// Checks token, secret and key; gives the key's hash.
fn examine(token: &JoinToken, secret: &str, request: &Request<'_>, now: Timestamp) -> Result<String, JoinError> {
    let spec = &token.spec;
    let region = || spec.region.clone();
    // Hashes are compared, so the time that it takes says nothing about the secret.
    if sha256_hex(secret.as_bytes()) != spec.secret_sha256 {
        return Err(JoinError::BadToken);
    }
    if now >= spec.expires {
        return Err(JoinError::Expired {
            region: region(),
            expires: spec.expires,
        });
    }
    let key = csr_key_sha256(request.csr_pem).map_err(JoinError::Request)?;
    match &spec.used {
        Some(used) if used.key_sha256 != key => Err(JoinError::Used { region: region() }),
        Some(used) if used.name != request.name => Err(JoinError::OtherName {
            name: used.name.clone(),
        }),
        Some(_) | None => Ok(key),
    }
}

type Entered = BTreeMap<String, (i64, Server)>;

fn entered(stored: &[Stored]) -> Result<Entered, JoinError> {
    let read = |stored: &Stored| {
        let server: Server = serde_json::from_slice(&stored.value).map_err(JoinError::Json)?;
        Ok((stored.name.clone(), (stored.revision, server)))
    };
    stored.iter().map(read).collect()
}

/// The id of the newcomer: the one that it was given before, else one that was never used. Pure.
fn place(token: &JoinToken, name: &str, members: &Members, servers: &Entered) -> Result<u64, JoinError> {
    let used = token.spec.used.as_ref().map(|used| used.id);
    if used.is_some_and(|id| members.removed.contains(&id)) {
        return Err(JoinError::Removed { name: name.to_owned() });
    }
    let others = |id: &u64| members.seats.get(id).is_some_and(|seat| seat != name);
    let own = used.filter(|id| !others(id));
    let entered = servers.get(name).map(|(_, server)| server.spec.id);
    let member = members.seats.iter().find(|(_, seat)| *seat == name).map(|(id, _)| *id);
    // Another newcomer may have become a member by the id that was meant for this one; its entry is still its own.
    if entered.is_some_and(|id| used != Some(id)) || member.is_some_and(|id| own != Some(id)) {
        return Err(JoinError::NameTaken { name: name.to_owned() });
    }
    let known = members.seats.keys().chain(&members.removed).copied();
    let known = known.chain(servers.values().map(|(_, server)| server.spec.id));
    let fresh = known.max().unwrap_or(0) + 1;
    Ok(own.unwrap_or(fresh))
}

type OpOn = Box<dyn FnOnce(hanse_state::objects::ObjectKey) -> Op + Send>;

/// What enters the server; nothing if it stands there like that.
fn enter(
    found: Option<&(i64, Server)>,
    spec: &ServerSpec,
    name: &str,
    rng: &dyn Rng,
    now: Timestamp,
) -> Result<Option<OpOn>, JoinError> {
    let bytes = |server: &Server| -> Result<Bytes, JoinError> { encode(server).map_err(json) };
    match found {
        Some((_, server)) if server.spec == *spec => Ok(None),
        Some((revision, server)) => {
            let mut server = server.clone();
            server.spec = spec.clone();
            server.metadata.generation += 1;
            let (value, expected) = (bytes(&server)?, *revision);
            Ok(Some(Box::new(move |key| Op::Update { key, value, expected })))
        }
        None => {
            let value = bytes(&server_object(name, spec.clone(), rng.uuid(), now))?;
            Ok(Some(Box::new(move |key| Op::Create { key, value })))
        }
    }
}

fn server_object(name: &str, spec: ServerSpec, uid: String, now: Timestamp) -> Server {
    Object {
        api_version: SERVERS.api_version(),
        kind: SERVERS.kind.to_owned(),
        metadata: ObjectMeta {
            name: name.to_owned(),
            uid,
            generation: 1,
            creation_timestamp: Some(now),
            ..ObjectMeta::default()
        },
        spec,
        status: ServerStatus::default(),
    }
}

fn json(error: StepError) -> JoinError {
    match error {
        StepError::Json { source, .. } => JoinError::Json(source),
        other => JoinError::Json(serde::ser::Error::custom(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::enrolment;
    use crate::testing::{START, objects};
    use hanse_api::resources::JoinTokenSpec;
    use hanse_runtime::pki::generate_csr;
    use hanse_runtime::rng::SeededRng;
    use std::time::Duration;

    const HOUR: Duration = Duration::from_secs(3600);

    /// Puts a token for a server of `region` in.
    async fn issue(objects: &Objects, id: &str, region: &str) -> String {
        let mut token = JoinToken {
            api_version: JOIN_TOKENS.api_version(),
            kind: JOIN_TOKENS.kind.to_owned(),
            spec: JoinTokenSpec {
                region: region.to_owned(),
                secret_sha256: sha256_hex(b"secret"),
                expires: START.plus(HOUR),
                used: None,
            },
            ..JoinToken::default()
        };
        token.metadata.name = id.to_owned();
        let key = Address::global(id).key(JOIN_TOKENS);
        let value = encode(&token).unwrap();
        objects.commit(vec![Op::Create { key, value }]).await.unwrap();
        format!("{id}.secret")
    }

    fn founders() -> Members {
        Members {
            seats: BTreeMap::from([(1, "eu-1".to_owned())]),
            removed: BTreeSet::from([4]),
        }
    }

    async fn asked(
        objects: &Objects,
        (token, csr_pem, name): (&str, &str, &str),
        members: &Members,
        now: Timestamp,
    ) -> Result<ServerSpec, JoinError> {
        let wanted = ServerSpec {
            id: 77,
            region: "moon".into(),
            raft: format!("{name}:8444"),
            ..ServerSpec::default()
        };
        let request = Request {
            token,
            csr_pem,
            name,
            wanted: &wanted,
        };
        reserve(objects, &request, members, &SeededRng::new(1), now).await
    }

    #[tokio::test]
    async fn a_token_places_one_server_in_its_region_under_an_id_that_was_never_used() {
        let objects = objects();
        let token = issue(&objects, "t1", "us").await;
        let (_, csr) = generate_csr("x").unwrap();
        let members = founders();
        let spec = asked(&objects, (&token, &csr, "us-1"), &members, START).await.unwrap();
        assert_eq!(
            (spec.id, spec.region.as_str(), spec.raft.as_str()),
            (5, "us", "us-1:8444")
        );
        // The answer was lost.
        let again = asked(&objects, (&token, &csr, "us-1"), &members, START).await.unwrap();
        assert_eq!(again, spec);
        let (_, thief) = generate_csr("x").unwrap();
        let refused = asked(&objects, (&token, &thief, "us-1"), &members, START).await;
        assert!(matches!(refused, Err(JoinError::Used { .. })), "{refused:?}");
        let refused = asked(&objects, (&token, &csr, "us-2"), &members, START).await;
        assert!(matches!(refused, Err(JoinError::OtherName { .. })), "{refused:?}");
        let mut removed = members;
        removed.removed.insert(5);
        let refused = asked(&objects, (&token, &csr, "us-1"), &removed, START).await;
        assert!(matches!(refused, Err(JoinError::Removed { .. })), "{refused:?}");
    }

    #[tokio::test]
    async fn refusals_leave_the_token_good_and_nothing_behind() {
        let objects = objects();
        let token = issue(&objects, "t1", "us").await;
        let (_, csr) = generate_csr("x").unwrap();
        let members = founders();
        let revision = objects.store().revision();
        for bad in ["", "t1", "t1.wrong", "t2.secret", "../t1.secret"] {
            let refused = asked(&objects, (bad, &csr, "us-1"), &members, START).await;
            assert!(matches!(refused, Err(JoinError::BadToken)), "{bad}: {refused:?}");
        }
        let refused = asked(&objects, (&token, &csr, "us-1"), &members, START.plus(HOUR)).await;
        assert!(matches!(refused, Err(JoinError::Expired { .. })), "{refused:?}");
        let refused = asked(&objects, (&token, "nonsense", "us-1"), &members, START).await;
        assert!(matches!(refused, Err(JoinError::Request(_))), "{refused:?}");
        let refused = asked(&objects, (&token, &csr, "eu-1"), &members, START).await;
        assert!(matches!(refused, Err(JoinError::NameTaken { .. })), "{refused:?}");
        assert_eq!(objects.store().revision(), revision);
        asked(&objects, (&token, &csr, "us-1"), &members, START).await.unwrap();
    }

    #[tokio::test]
    async fn a_token_of_an_agent_makes_no_server_and_the_reverse() {
        let (objects, rng) = (objects(), SeededRng::new(3));
        let ca = Ca::generate("system", 10, START).unwrap();
        let (_, csr) = generate_csr("x").unwrap();
        let agents = enrolment::issue(&objects, &rng, "us", HOUR, START).await.unwrap();
        let refused = asked(&objects, (&agents, &csr, "us-1"), &founders(), START).await;
        assert!(matches!(refused, Err(JoinError::BadToken)), "{refused:?}");
        let servers = issue(&objects, "t1", "us").await;
        let refused = enrolment::enrol(&objects, &ca, &servers, &csr, START).await;
        assert!(
            matches!(refused, Err(crate::error::EnrolError::BadToken)),
            "{refused:?}"
        );
    }

    #[tokio::test]
    async fn two_newcomers_get_two_ids_and_never_one_name() {
        let objects = objects();
        let (a, b) = (issue(&objects, "a", "us").await, issue(&objects, "b", "ap").await);
        let ((_, csr_a), (_, csr_b)) = (generate_csr("x").unwrap(), generate_csr("x").unwrap());
        let members = founders();
        let (first, second) = tokio::join!(
            asked(&objects, (&a, &csr_a, "n"), &members, START),
            asked(&objects, (&b, &csr_b, "n"), &members, START)
        );
        assert!(first.is_ok() != second.is_ok(), "{first:?} {second:?}");
        let (token, csr) = if first.is_ok() { (b, csr_b) } else { (a, csr_a) };
        let spec = asked(&objects, (&token, &csr, "m"), &members, START).await.unwrap();
        assert_eq!(spec.id, 6);
        // Somebody else became the member 6: there is another id.
        let mut late = members;
        late.seats.insert(6, "k".into());
        let spec = asked(&objects, (&token, &csr, "m"), &late, START).await.unwrap();
        assert_eq!(spec.id, 7);
        withdraw(&objects, "m", 6).await.unwrap();
        assert_eq!(
            objects.list(&SERVERS, None, Page::default()).await.unwrap().items.len(),
            2
        );
        withdraw(&objects, "m", 7).await.unwrap();
        assert_eq!(
            objects.list(&SERVERS, None, Page::default()).await.unwrap().items.len(),
            1
        );
    }

    #[tokio::test]
    async fn a_server_that_came_back_keeps_its_entry_and_its_key() {
        let objects = objects();
        let token = issue(&objects, "a", "us").await;
        let (_, csr) = generate_csr("x").unwrap();
        asked(&objects, (&token, &csr, "us-1"), &founders(), START)
            .await
            .unwrap();
        for (old, new, now) in [(4, 9, 5), (5, 9, 9), (5, 10, 9)] {
            succeed(&objects, "us-1", old, new).await.unwrap();
            let stored = objects
                .get(&Address::global("us-1").key(SERVERS))
                .await
                .unwrap()
                .unwrap();
            let server: Server = serde_json::from_slice(&stored.value).unwrap();
            assert_eq!(server.spec.id, now, "{old} to {new}");
        }
        retire(&objects, "us-1", 5).await.unwrap();
        let revoked = objects.list(&REVOKED_KEYS, None, Page::default()).await.unwrap();
        assert!(revoked.items.is_empty(), "the old id has gone, the server has not");
        succeed(&objects, "nobody", 5, 9).await.unwrap();
    }

    #[tokio::test]
    async fn the_key_of_a_removed_server_makes_no_other_and_that_of_a_refused_one_does() {
        let objects = objects();
        let (_, csr) = generate_csr("x").unwrap();
        let revoked = || async {
            let list = objects.list(&REVOKED_KEYS, None, Page::default()).await.unwrap();
            list.items.into_iter().map(|stored| stored.name).collect::<Vec<_>>()
        };
        let members = founders();
        let token = issue(&objects, "a", "us").await;
        asked(&objects, (&token, &csr, "us-1"), &members, START).await.unwrap();
        withdraw(&objects, "us-1", 5).await.unwrap();
        assert_eq!(revoked().await, Vec::<String>::new());
        let spec = asked(&objects, (&token, &csr, "us-1"), &members, START).await.unwrap();
        retire(&objects, "us-1", 4).await.unwrap();
        assert_eq!(revoked().await, Vec::<String>::new(), "another id");
        retire(&objects, "us-1", 5).await.unwrap();
        assert_eq!(revoked().await, [spec.key_sha256]);
        let fresh = issue(&objects, "b", "us").await;
        let refused = asked(&objects, (&fresh, &csr, "us-2"), &members, START).await;
        assert!(matches!(refused, Err(JoinError::KeyRevoked)), "{refused:?}");
        let (_, other) = generate_csr("x").unwrap();
        asked(&objects, (&fresh, &other, "us-2"), &members, START)
            .await
            .unwrap();
    }
}
