//! Enrolment of new agents.

use super::*;
use crate::enrol::{EnrolmentToken, Newcomer, enrol, join};
use crate::identity::{Chains, Identity, Protocol, ServerTrust};
use crate::quic::{connect_to_enrol, connect_without_certificate};
use hanse_runtime::clock::SharedClock;
use hanse_runtime::pki::{self, LeafSpec};
use parking_lot::Mutex;
use std::collections::BTreeSet;

/// A server that enrols cluster `us` once per token.
fn enrolling(world: &World) -> (ServerHandle, EnrolmentToken) {
    issuing(world, "hanse://agent/us")
}

/// A server that issues a certificate with the name `uri` once per token, to whoever asks.
fn issuing(world: &World, uri: &str) -> (ServerHandle, EnrolmentToken) {
    let uri = uri.to_owned();
    let ca = world.pki.authority();
    let pin = pki::sha256_hex(&world.pki.ca().unwrap());
    let token = EnrolmentToken::compose("id1", "secret", &pin).unwrap();
    let authority = pki::Ca::load(ca.cert_pem(), &ca.key_pair().key).unwrap();
    let good = token.text().to_owned();
    let used = Mutex::new(BTreeSet::new());
    let enrol = move |token: &str, csr: &str| {
        if token != good {
            return Err("unknown token".to_owned());
        }
        if !used.lock().insert(token.to_owned()) {
            return Err("the token was used already".to_owned());
        }
        let spec = LeafSpec {
            common_name: "us".into(),
            uris: vec![uri.clone()],
            client: true,
            days: 1,
            ..Default::default()
        };
        let cert_pem = authority
            .sign_csr(csr, &spec, SystemClock::new().wall())
            .map_err(|error| error.to_string())?;
        Ok(Enrolled {
            cert_pem,
            ca_pem: authority.cert_pem().to_owned(),
            cluster: "us".into(),
        })
    };
    let events = TestServer {
        name: "s1".into(),
        handler: echo_store("s1"),
        reports: world.reports_in.clone(),
        enrol: Box::new(enrol),
    };
    let server = world
        .server_with(
            world.pki.server("s1").unwrap(),
            any_port(),
            Supervisor::default(),
            Arc::new(events),
        )
        .unwrap();
    (server, token)
}

fn clock() -> SharedClock {
    SystemClock::shared()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_makes_one_agent() {
    let world = World::new();
    let (server, token) = enrolling(&world);
    let address = server.address.to_string();
    let (key, _) = pki::generate_csr("x").unwrap();
    let enrolled = soon("enrolment", enrol(&address, &token, &key, &world.settings, &clock()))
        .await
        .unwrap();
    assert_eq!(enrolled.cluster, "us");
    let credentials = Credentials::from_pem(&enrolled.cert_pem, &key, &enrolled.ca_pem).unwrap();
    let _agent = world.agent_with(credentials, &[("s1", server.address)], echo());
    server.agents(&["us"]).await;
    soon("answer", server.hub.request("us", request("/"), empty_body()))
        .await
        .unwrap();
    // The token is spent.
    let again = soon("refusal", enrol(&address, &token, &key, &world.settings, &clock()))
        .await
        .unwrap_err();
    assert!(again.to_string().contains("used already"), "{again}");
    let unknown = EnrolmentToken::compose("id2", "secret", token.ca_pin()).unwrap();
    let fault = soon("refusal", enrol(&address, &unknown, &key, &world.settings, &clock()))
        .await
        .unwrap_err();
    assert!(matches!(fault, TunnelError::EnrolmentRefused { .. }), "{fault}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_of_another_authority_never_sees_the_token() {
    let world = World::new();
    let (server, token) = enrolling(&world);
    let other = pki::sha256_hex(&TestPki::new(SystemClock::new().wall()).unwrap().ca().unwrap());
    let wrong = EnrolmentToken::compose(token.id(), token.secret(), &other).unwrap();
    let (key, _) = pki::generate_csr("x").unwrap();
    let address = server.address.to_string();
    let fault = soon("refusal", enrol(&address, &wrong, &key, &world.settings, &clock()))
        .await
        .unwrap_err();
    assert!(matches!(fault, TunnelError::Connect { .. }), "{fault}");
    // The good one still works: it was not spent.
    soon("enrolment", enrol(&address, &token, &key, &world.settings, &clock()))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_certificate_nothing_else_is_spoken() {
    let world = World::new();
    let (server, token) = enrolling(&world);
    let address = server.address.to_string();
    let conn = connect_to_enrol(&address, token.ca_pin(), &world.settings)
        .await
        .unwrap();
    let (mut send, _recv) = conn.open(0).await.unwrap();
    let mut hello = bytes::BytesMut::new();
    crate::frame::put(crate::frame::Kind::Hello, &[], &mut hello).unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut send, &hello).await.unwrap();
    soon("end", conn.closed()).await;
    for protocol in [Protocol::Control, Protocol::Store] {
        let trust = ServerTrust::Authority(Chains::new(&world.pki.ca().unwrap()).unwrap());
        let conn = connect_without_certificate(&address, trust, protocol, &world.settings)
            .await
            .unwrap();
        let ended = soon("end", conn.closed()).await;
        assert!(ended.text.contains("no client certificate was shown"), "{}", ended.text);
    }
    assert!(server.hub.sessions().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_joins_by_the_same_door_and_takes_only_its_own_name() {
    let world = World::new();
    let (clock, limit) = (clock(), world.settings.handshake);
    let (key, _) = pki::generate_csr("x").unwrap();
    let newcomer = Newcomer {
        name: "us-1".into(),
        about: Bytes::from_static(b"me"),
    };
    let (server, token) = issuing(&world, "hanse://server/us-1");
    let address = server.address.to_string();
    let joining = join(&address, &token, &key, &newcomer, &world.settings, (limit, &clock));
    let admitted = soon("place", joining).await.unwrap();
    assert_eq!(
        (admitted.name.as_str(), &admitted.place[..]),
        ("us-1", &b"place of me"[..])
    );
    let credentials = Credentials::from_pem(&admitted.cert_pem, &key, &admitted.ca_pem).unwrap();
    assert_eq!(credentials.identity().unwrap(), Identity::Server("us-1".into()));
    for uri in ["hanse://server/us-2", "hanse://agent/us-1"] {
        let (server, token) = issuing(&world, uri);
        let address = server.address.to_string();
        let joining = join(&address, &token, &key, &newcomer, &world.settings, (limit, &clock));
        let fault = soon("place", joining).await.unwrap_err();
        assert!(matches!(fault, TunnelError::Identity { .. }), "{uri}: {fault}");
    }
    let (server, token) = issuing(&world, "hanse://server/us");
    let address = server.address.to_string();
    let fault = soon("enrolment", enrol(&address, &token, &key, &world.settings, &clock)).await;
    assert!(matches!(fault, Err(TunnelError::Identity { .. })), "{fault:?}");
}
