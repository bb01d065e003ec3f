//! A door as operators have it: quota and alarms, pages over HTTP/1.1, snapshots, lists in parts, locks and elections.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use common::Fixture;
use hanse_api::resources::StoreLimits;
use hanse_runtime::clock::{Clock, SystemClock, timeout};
use hanse_state::etcd::{Door, DoorSettings, MemberChange, MemberFault, MemberRefused, MoveRefused, Operator};
use hanse_state::pb::alarm_request::AlarmAction;
use hanse_state::pb::election::election_client::ElectionClient;
use hanse_state::pb::election::{CampaignRequest, LeaderRequest, ProclaimRequest, ResignRequest};
use hanse_state::pb::health::{HealthCheckRequest, health_client::HealthClient};
use hanse_state::pb::lock::lock_client::LockClient;
use hanse_state::pb::lock::{LockRequest, UnlockRequest};
use hanse_state::pb::{
    self, AlarmType, kv_client::KvClient, lease_client::LeaseClient, maintenance_client::MaintenanceClient,
};
use hanse_state::{Access, Store, StoreError};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

#[derive(Debug)]
struct Alone;

#[tonic::async_trait]
impl Operator for Alone {
    async fn members(&self, _linearizable: bool) -> Result<Vec<pb::Member>, StoreError> {
        Ok(Vec::new())
    }

    async fn change_members(
        &self,
        _change: MemberChange,
    ) -> Result<(Option<pb::Member>, Vec<pb::Member>), MemberRefused> {
        Err(MemberRefused::fault(MemberFault::NotFound, "there is nobody"))
    }

    async fn move_leader(&self, _to: u64) -> Result<(), MoveRefused> {
        Err(MoveRefused::BadTransferee)
    }
}

struct Served {
    fixture: Fixture,
    address: SocketAddr,
    channel: Channel,
    _dir: tempfile::TempDir,
}

async fn serve(quota: Option<u64>) -> Served {
    let fixture = Fixture::memory();
    let dir = tempfile::tempdir().unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let end = fixture.supervisor.shutdown_token();
    let door = Door {
        listener,
        tls: None,
        access: Access::tenant("door"),
        operator: Some(Arc::new(Alone)),
        settings: DoorSettings {
            quota,
            spool: Some(dir.path().to_owned()),
        },
    };
    let store = fixture.store.clone();
    tokio::spawn(door.serve(store, async move { end.cancelled().await }));
    let channel = Endpoint::from_shared(format!("http://{address}"))
        .unwrap()
        .connect()
        .await
        .unwrap();
    Served {
        fixture,
        address,
        channel,
        _dir: dir,
    }
}

impl Served {
    fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.channel.clone()).max_decoding_message_size(usize::MAX)
    }

    fn maintenance(&self) -> MaintenanceClient<Channel> {
        MaintenanceClient::new(self.channel.clone())
    }

    async fn put(&self, key: &str, value: impl Into<bytes::Bytes>) -> Result<i64, tonic::Status> {
        let request = pb::PutRequest {
            key: key.to_owned().into(),
            value: value.into(),
            ..Default::default()
        };
        Ok(self.kv().put(request).await?.into_inner().header.unwrap().revision)
    }

    async fn alarm(&self, action: AlarmAction, member_id: u64, alarm: AlarmType) -> Vec<pb::AlarmMember> {
        let request = pb::AlarmRequest {
            action: action.into(),
            member_id,
            alarm: alarm.into(),
        };
        self.maintenance().alarm(request).await.unwrap().into_inner().alarms
    }

    /// Status line and body of a page, by HTTP/1.1.
    async fn page(&self, method: &str, path: &str) -> (String, String) {
        let mut stream = tokio::net::TcpStream::connect(self.address).await.unwrap();
        let request = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        (head.lines().next().unwrap().to_owned(), body.to_owned())
    }
}

async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    let clock = SystemClock::new();
    timeout(&clock, Duration::from_secs(20), future).await.expect(what)
}

#[tokio::test]
async fn a_full_store_refuses_growth_until_there_is_room_and_the_alarm_is_disarmed() {
    let served = serve(Some(64 << 10)).await;
    let mut last = 0;
    let refused = loop {
        match served.put("k", vec![b'x'; 4096]).await {
            Ok(revision) => last = revision,
            Err(status) => break status,
        }
        assert!(last < 30, "the quota is never reached");
    };
    let no_space = (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded");
    assert_eq!((refused.code(), refused.message()), no_space);
    let alarms = served.alarm(AlarmAction::Get, 0, AlarmType::None).await;
    assert_eq!(alarms.len(), 1);
    assert_eq!(alarms[0].alarm, i32::from(AlarmType::Nospace));
    assert!(served.alarm(AlarmAction::Get, 0, AlarmType::Corrupt).await.is_empty());
    // What would still fit is refused as well, as are leases; what makes room is not.
    assert_eq!(served.put("small", "v").await.unwrap_err().message(), no_space.1);
    let mut lease = LeaseClient::new(served.channel.clone());
    let grant = pb::LeaseGrantRequest { ttl: 60, id: 0 };
    assert_eq!(lease.lease_grant(grant).await.unwrap_err().message(), no_space.1);
    let read = pb::RangeRequest {
        key: "k".into(),
        ..Default::default()
    };
    assert_eq!(served.kv().range(read).await.unwrap().into_inner().count, 1);
    let status = served
        .maintenance()
        .status(pb::StatusRequest {})
        .await
        .unwrap()
        .into_inner();
    assert!(
        status.errors.iter().any(|error| error.contains("alarm:NOSPACE")),
        "{:?}",
        status.errors
    );
    assert_eq!(status.db_size_quota, 64 << 10);
    assert!(status.db_size_in_use > 32 << 10 && status.db_size >= status.db_size_in_use);
    let (line, body) = served.page("GET", "/health").await;
    assert_eq!(body, "{\"health\":\"false\",\"reason\":\"ALARM NOSPACE\"}\n");
    assert_eq!(line, "HTTP/1.1 503 Service Unavailable");
    assert_eq!(served.page("GET", "/health?exclude=NOSPACE").await.0, "HTTP/1.1 200 OK");
    let compact = pb::CompactionRequest {
        revision: last,
        physical: true,
    };
    served.kv().compact(compact).await.unwrap();
    let after = served
        .maintenance()
        .status(pb::StatusRequest {})
        .await
        .unwrap()
        .into_inner();
    assert!(
        after.db_size_in_use < 16 << 10,
        "a physical compaction makes room before it answers"
    );
    assert_eq!(served.put("small", "v").await.unwrap_err().message(), no_space.1);
    let disarmed = served
        .alarm(AlarmAction::Deactivate, alarms[0].member_id, AlarmType::Nospace)
        .await;
    assert_eq!(disarmed, alarms);
    served.put("small", "v").await.unwrap();
    assert!(served.alarm(AlarmAction::Get, 0, AlarmType::None).await.is_empty());
    served.fixture.stop().await;
}

/// Nobody compacts here, as no kube-apiserver could that is refused the key that it writes first.
#[tokio::test]
async fn a_limited_space_that_is_written_again_and_again_makes_room_by_itself() {
    let served = serve(None).await;
    let limits = StoreLimits {
        bytes: 32 << 10,
        ..StoreLimits::default()
    };
    let store = &served.fixture.store;
    let clock = SystemClock::new();
    while let Err(error) = store.set_limits("door", limits).await {
        assert!(matches!(error, StoreError::LevelTooLow { .. }), "{error}");
        clock.sleep(Duration::from_millis(20)).await;
    }
    let most = 5 * limits.bytes;
    for n in 0..60 {
        let written = async {
            // Removal takes its time, and meanwhile it may be refused.
            while let Err(status) = served.put("k", vec![b'x'; 4096]).await {
                assert_eq!(status.message(), "etcdserver: mvcc: database space exceeded");
                clock.sleep(Duration::from_millis(20)).await;
            }
        };
        soon(&format!("write {n} of 60"), written).await;
        let usage = store.machine().usage(&Access::tenant("door")).unwrap();
        assert!(usage.bytes <= most, "{} bytes", usage.bytes);
    }
    served.fixture.stop().await;
}

#[tokio::test]
async fn an_alarm_of_corruption_refuses_every_change() {
    let served = serve(None).await;
    served.put("k", "v").await.unwrap();
    assert_eq!(
        served.alarm(AlarmAction::Activate, 7, AlarmType::Corrupt).await.len(),
        1
    );
    let refused = served.put("k", "v").await.unwrap_err();
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::DataLoss, "etcdserver: corrupt cluster")
    );
    assert_eq!(
        served.page("GET", "/readyz").await.1,
        "[-]data_corruption failed: alarm activated: CORRUPT\n[+]serializable_read ok\n[+]linearizable_read ok\n\
[+]non_learner ok\n\n"
    );
    served.alarm(AlarmAction::Deactivate, 7, AlarmType::Corrupt).await;
    served.put("k", "v").await.unwrap();
    served.fixture.stop().await;
}

#[tokio::test]
async fn probes_and_scrapers_find_etcds_pages_by_http_1() {
    let served = serve(None).await;
    let ok = "HTTP/1.1 200 OK".to_owned();
    for (path, body) in [
        ("/health", r#"{"health":"true","reason":""}"#),
        ("/livez", "ok\n"),
        ("/readyz", "ok\n"),
        ("/readyz/linearizable_read?verbose", "[+]linearizable_read ok\nok\n"),
        (
            "/version",
            r#"{"etcdserver":"3.6.11","etcdcluster":"3.6.0","storage":"3.6.0"}"#,
        ),
    ] {
        assert_eq!(served.page("GET", path).await, (ok.clone(), body.to_owned()), "{path}");
    }
    let (line, body) = served.page("GET", "/metrics").await;
    assert_eq!(line, ok);
    for sample in [
        "etcd_server_has_leader 1\n",
        "# TYPE etcd_mvcc_db_total_size_in_bytes gauge\n",
    ] {
        assert!(body.contains(sample), "{sample} in {body}");
    }
    assert_eq!(
        served.page("POST", "/health").await.0,
        "HTTP/1.1 405 Method Not Allowed"
    );
    assert_eq!(served.page("GET", "/nothing").await.0, "HTTP/1.1 404 Not Found");
    served.fixture.stop().await;
}

#[tokio::test]
async fn parts_of_a_list_are_one_list_of_one_revision() {
    let served = serve(None).await;
    for n in 0..100 {
        served.put(&format!("k{n:03}"), vec![b'x'; 100]).await.unwrap();
    }
    for (limit, revision, keys_only) in [
        (0, 0, false),
        (35, 0, false),
        (100, 0, true),
        (0, 60, false),
        (3, 0, false),
    ] {
        let request = pb::RangeRequest {
            key: "k".into(),
            range_end: "l".into(),
            limit,
            revision,
            keys_only,
            ..Default::default()
        };
        let mut want = served.kv().range(request.clone()).await.unwrap().into_inner();
        let mut stream = served.kv().range_stream(request).await.unwrap().into_inner();
        let mut have = pb::RangeResponse::default();
        let mut parts = 0;
        while let Some(part) = stream.message().await.unwrap() {
            let part = part.range_response.unwrap();
            assert!(have.header.is_none(), "nothing follows the part with the header");
            have.kvs.extend(part.kvs);
            (have.header, have.more, have.count) = (part.header, part.more, part.count);
            parts += 1;
            // Written between the parts, so in none of them.
            let written = served.put("k999", "late").await.unwrap();
            if let Some(header) = &mut want.header {
                header.revision = header.revision.min(written);
            }
        }
        assert_eq!(have, want, "limit {limit} revision {revision}");
        assert!(parts > 1 || have.kvs.len() <= 10);
        let delete = pb::DeleteRangeRequest {
            key: "k999".into(),
            ..Default::default()
        };
        served.kv().delete_range(delete).await.unwrap();
    }
    let sorted = pb::RangeRequest {
        key: "k".into(),
        sort_order: 2,
        ..Default::default()
    };
    assert_eq!(
        served.kv().range_stream(sorted).await.unwrap_err().code(),
        Code::Unimplemented
    );
    served.fixture.stop().await;
}

#[tokio::test]
async fn a_checksum_of_an_old_revision_does_not_depend_on_what_came_after() {
    let served = serve(None).await;
    let hash = async |revision| {
        let request = pb::HashKvRequest { revision };
        served.maintenance().hash_kv(request).await.map(|answer| {
            let answer = answer.into_inner();
            (answer.hash, answer.hash_revision)
        })
    };
    for n in 0..10 {
        served.put("a", n.to_string()).await.unwrap();
    }
    let (middle, now) = (hash(6).await.unwrap(), hash(0).await.unwrap());
    assert_eq!((middle.1, now.1), (6, 11));
    assert_ne!(middle.0, now.0);
    served.put("b", "1").await.unwrap();
    assert_eq!(hash(11).await.unwrap(), now);
    let compact = pb::CompactionRequest {
        revision: 6,
        physical: true,
    };
    served.kv().compact(compact).await.unwrap();
    assert_eq!(hash(6).await.unwrap(), middle);
    assert!(hash(5).await.unwrap_err().message().contains("has been compacted"));
    assert!(hash(13).await.unwrap_err().message().contains("future revision"));
    served.fixture.stop().await;
}

#[tokio::test]
async fn a_lock_goes_to_who_waits_when_it_is_given_back() {
    let served = serve(None).await;
    let mut lease = LeaseClient::new(served.channel.clone());
    let mut granted = Vec::new();
    for id in [21, 22] {
        let grant = pb::LeaseGrantRequest { ttl: 600, id };
        granted.push(lease.lease_grant(grant).await.unwrap().into_inner().id);
    }
    let ask = |lease| LockRequest {
        name: "door".into(),
        lease,
    };
    let mut locks = LockClient::new(served.channel.clone());
    let first = locks.lock(ask(granted[0])).await.unwrap().into_inner();
    assert_eq!(first.key, "door/15");
    let again = locks.lock(ask(granted[0])).await.unwrap().into_inner();
    assert_eq!(again.key, first.key, "who holds it already has it");
    let mut other = locks.clone();
    let waiting = tokio::spawn(async move { other.lock(ask(22)).await });
    let waits = async {
        let request = pb::RangeRequest {
            key: "door/16".into(),
            ..Default::default()
        };
        while served.kv().range(request.clone()).await.unwrap().into_inner().count == 0 {
            tokio::task::yield_now().await;
        }
    };
    soon("the second in line", waits).await;
    assert!(!waiting.is_finished());
    locks.unlock(UnlockRequest { key: first.key }).await.unwrap();
    let second = soon("the lock", waiting).await.unwrap().unwrap().into_inner();
    assert_eq!(second.key, "door/16");
    let gone = locks.lock(ask(99)).await.unwrap_err();
    assert_eq!(gone.message(), "etcdserver: requested lease not found");
    served.fixture.stop().await;
}

#[tokio::test]
async fn an_election_has_one_leader_and_observers_hear_of_each() {
    let served = serve(None).await;
    let mut lease = LeaseClient::new(served.channel.clone());
    for id in [1, 2] {
        lease.lease_grant(pb::LeaseGrantRequest { ttl: 600, id }).await.unwrap();
    }
    let mut election = ElectionClient::new(served.channel.clone());
    let named = || LeaderRequest { name: "chair".into() };
    assert_eq!(
        election.leader(named()).await.unwrap_err().message(),
        "election: no leader"
    );
    let campaign = |lease, value: &'static str| CampaignRequest {
        name: "chair".into(),
        lease,
        value: value.into(),
    };
    let first = election
        .campaign(campaign(1, "a"))
        .await
        .unwrap()
        .into_inner()
        .leader
        .unwrap();
    let mut observed = election.observe(named()).await.unwrap().into_inner();
    let mut next = async || {
        let leader = soon("a leader", observed.message()).await.unwrap().unwrap();
        leader.kv.unwrap().value
    };
    assert_eq!(next().await, "a");
    let mut other = election.clone();
    let waiting = tokio::spawn(async move { other.campaign(campaign(2, "b")).await });
    let proclaim = ProclaimRequest {
        leader: Some(first.clone()),
        value: "a2".into(),
    };
    election.proclaim(proclaim.clone()).await.unwrap();
    assert_eq!(next().await, "a2");
    let resign = ResignRequest { leader: Some(first) };
    // Only once the other is in line is it certain that the election is never without a leader.
    let two = async {
        let request = pb::RangeRequest {
            key: "chair/2".into(),
            ..Default::default()
        };
        while served.kv().range(request.clone()).await.unwrap().into_inner().count == 0 {
            tokio::task::yield_now().await;
        }
    };
    soon("the second in line", two).await;
    election.resign(resign.clone()).await.unwrap();
    soon("the second's turn", waiting).await.unwrap().unwrap();
    assert_eq!(next().await, "b");
    assert_eq!(
        election.proclaim(proclaim).await.unwrap_err().message(),
        "election: not leader"
    );
    election.resign(resign).await.unwrap();
    let leader = election.leader(named()).await.unwrap().into_inner().kv.unwrap();
    assert_eq!(leader.value, "b");
    served.fixture.stop().await;
}

#[tokio::test]
async fn health_can_be_watched() {
    let served = serve(None).await;
    let mut health = HealthClient::new(served.channel.clone());
    let mut statuses = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    let first = soon("the first status", statuses.message()).await.unwrap().unwrap();
    assert_eq!(first.status, 1);
    // A server that stops would wait for the stream's end.
    drop(statuses);
    served.fixture.stop().await;
}

#[tokio::test]
async fn a_snapshot_ends_with_the_sum_of_all_before_it() {
    let served = serve(None).await;
    for n in 0..500 {
        served.put(&format!("key-{n}"), vec![b'x'; 2000]).await.unwrap();
    }
    let mut stream = served
        .maintenance()
        .snapshot(pb::SnapshotRequest {})
        .await
        .unwrap()
        .into_inner();
    let mut all = Vec::new();
    let mut messages = 0;
    while let Some(answer) = stream.message().await.unwrap() {
        assert_eq!(answer.header.is_some(), messages == 0);
        all.extend_from_slice(&answer.blob);
        messages += 1;
    }
    let (data, sum) = all.split_at(all.len() - 32);
    assert!(messages > 3 && data.len() > 1_000_000 && data.len() % 512 == 0);
    let hex: String = sum.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, hanse_runtime::pki::sha256_hex(data));
    assert_eq!(served.fixture.store.revision(), 501);
    served.fixture.stop().await;
}
