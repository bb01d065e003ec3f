//! Whole stories: servers, agents and controllers together, over one store.

use std::time::Duration;

use hanse_api::kinds::{FINALIZER_TENANT, VIRTUAL_CLUSTER_INSTANCES};
use hanse_api::resources::{Phase, VirtualClusterInstance};
use hanse_state::objects::{ObjectError, Op};
use hanse_state::{Access, StoreError, pb};

use crate::conditions::{CLEANED_UP, DEPLOYED, ONLINE, READY, SCHEDULED};
use crate::error::StepError;
use crate::hosts::HostRefusal;
use crate::lease::{LeaseWriter, Observed, TTL};
use crate::reconciler::{Fence, Progress, StepCtx, encode};
use crate::scope::Scope;
use crate::testing::at;
use crate::testing::gate::Way;
use crate::testing::world::{Manner, World};

fn condition<'a>(vci: &'a VirtualClusterInstance, kind: &str) -> (&'a str, &'a str) {
    let found = vci.status.conditions.iter().find(|c| c.kind == kind);
    found.map_or(("", ""), |c| (c.status.as_str(), c.reason.as_str()))
}

fn region(name: &str) -> Scope {
    Scope::Region(name.into())
}

async fn put(world: &World, tenant: &str, epoch: u64) -> Result<pb::TxnResponse, StoreError> {
    let put = pb::PutRequest {
        key: "/registry/x".into(),
        value: "y".into(),
        ..Default::default()
    };
    let op = pb::RequestOp {
        request: Some(pb::request_op::Request::RequestPut(put)),
    };
    let txn = pb::TxnRequest {
        success: vec![op],
        ..Default::default()
    };
    world
        .tenant_store()
        .txn(&Access::tenant(tenant).with_epoch(epoch), txn)
        .await
}

#[tokio::test]
async fn a_tenant_is_placed_told_run_and_ready_and_then_nothing_is_written_any_more() {
    let world = World::three_regions().await;
    world.create_vci("demo", Some("us")).await;
    world.run_until_quiet().await;

    let vci = world.vci("demo").await.unwrap();
    assert_eq!(vci.status.phase, Phase::Ready, "{:#?}", vci.status);
    assert_eq!((vci.status.online, vci.status.reason.as_str()), (true, ""));
    assert_eq!(vci.status.kubernetes_version, "v1.36.3");
    assert_eq!(vci.status.observed_generation, vci.metadata.generation);
    for kind in [SCHEDULED, DEPLOYED, READY, ONLINE] {
        assert_eq!(condition(&vci, kind).0, "True", "{kind}");
    }
    assert_eq!(vci.spec.cluster_ref.cluster, "us");
    assert_eq!(vci.metadata.finalizers, [FINALIZER_TENANT]);

    let store = world.store("demo").await.unwrap();
    let tenant = vci.metadata.uid.clone();
    assert_eq!(
        (store.spec.cluster.as_str(), store.spec.epoch, &store.spec.tenant),
        ("us", 1, &tenant)
    );
    let intent = world.agents["us"].last_intent().unwrap();
    let pki = intent.tenants[0].pki.as_ref().unwrap();
    assert!(pki.ca.cert.contains("BEGIN CERTIFICATE") && pki.service_account.cert.contains("PUBLIC KEY"));
    assert_eq!(world.agents["eu"].last_intent().unwrap().tenants, []);
    assert!(
        matches!(put(&world, &tenant, 0).await, Err(StoreError::Fenced { .. })),
        "the fence is up"
    );
    put(&world, &tenant, 1).await.unwrap();

    let hosts = world.nodes["eu-1"].regions.hosts();
    assert_eq!(hosts.check("us", &tenant, 1), Ok(()));
    assert!(matches!(
        hosts.check("eu", &tenant, 1),
        Err(HostRefusal::NotTheHost { .. })
    ));
    assert!(matches!(hosts.check("us", &tenant, 0), Err(HostRefusal::Stale { .. })));
    assert!(matches!(hosts.check("us", &tenant, 2), Err(HostRefusal::Ahead { .. })));
    assert!(matches!(
        hosts.check("us", "other", 1),
        Err(HostRefusal::Unknown { .. })
    ));

    let writes = world.writes();
    world.pass(Duration::from_secs(700)).await;
    assert_eq!(
        world.writes(),
        writes,
        "heartbeats, resyncs and renewals of leases change no object"
    );
}

#[tokio::test]
async fn no_cluster_online_is_said_and_then_mended_by_itself() {
    let mut world = World::new().await;
    world.start("eu").await;
    world.run_until_quiet().await;
    world.pass(Duration::from_secs(12)).await;
    world.create_vci("demo", None).await;
    world.run_until_quiet().await;
    let vci = world.vci("demo").await.unwrap();
    assert_eq!(vci.status.phase, Phase::Pending);
    assert_eq!(condition(&vci, SCHEDULED), ("False", "NoClusterFits"));
    assert!(
        vci.status.message.contains("eu: its agent is not connected"),
        "{}",
        vci.status.message
    );
    assert!(vci.status.message.contains("Start an agent"), "{}", vci.status.message);
    let cluster = world.cluster("eu").await;
    assert_eq!(cluster.status.reason, "NoAgentYet");

    world.cluster_online("eu");
    world.run_until_quiet().await;
    assert_eq!(world.vci("demo").await.unwrap().status.phase, Phase::Ready);
    let cluster = world.cluster("eu").await;
    assert_eq!(
        (cluster.status.online, cluster.status.phase.as_str()),
        (true, "Initialized")
    );
}

#[tokio::test]
async fn deletion_takes_processes_then_keys_then_records() {
    let world = World::three_regions().await;
    world.create_vci("demo", Some("eu")).await;
    world.run_until_quiet().await;
    let tenant = world.vci("demo").await.unwrap().metadata.uid;
    put(&world, &tenant, 1).await.unwrap();

    *world.agents["eu"].manner.lock() = Manner::Clinging;
    world.delete_vci("demo").await;
    world.run_until_quiet().await;
    let vci = world.vci("demo").await.unwrap();
    assert_eq!(condition(&vci, CLEANED_UP), ("False", "Stopping"));
    assert_eq!((vci.status.phase, vci.status.online), (Phase::Pending, false));
    assert!(world.store("demo").await.is_some());
    put(&world, &tenant, 1).await.unwrap();

    *world.agents["eu"].manner.lock() = Manner::Obedient;
    world.run_until_quiet().await;
    assert!(world.vci("demo").await.is_none());
    assert!(world.store("demo").await.is_none());
    put(&world, &tenant, 1).await.unwrap_err();
    assert_eq!(world.nodes["us-1"].regions.hosts().host(&tenant), None);

    world.create_vci("demo", Some("eu")).await;
    world.run_until_quiet().await;
    let again = world.vci("demo").await.unwrap();
    assert_eq!(again.status.phase, Phase::Ready);
    assert_ne!(again.metadata.uid, tenant);
}

#[tokio::test]
async fn another_finalizer_keeps_the_object_but_not_the_tenant() {
    let world = World::three_regions().await;
    world.create_vci("demo", Some("eu")).await;
    world.run_until_quiet().await;
    let (mut vci, revision) = world.get(VIRTUAL_CLUSTER_INSTANCES, &at("demo")).await.unwrap();
    let held: &mut VirtualClusterInstance = &mut vci;
    held.metadata.finalizers.push("example.com/keep".into());
    let key = at("demo").key(VIRTUAL_CLUSTER_INSTANCES);
    let op = Op::Update {
        key,
        value: encode(&vci).unwrap(),
        expected: revision,
    };
    world.objects.commit(vec![op]).await.unwrap();
    world.delete_vci("demo").await;
    world.run_until_quiet().await;
    assert_eq!(
        world.vci("demo").await.unwrap().metadata.finalizers,
        ["example.com/keep"]
    );
    assert!(world.store("demo").await.is_none());
}

#[tokio::test]
async fn a_dead_coordinator_is_replaced_and_takes_its_region_back() {
    let mut world = World::three_regions().await;
    world.create_vci("demo", Some("eu")).await;
    world.run_until_quiet().await;
    let before = world.lease(&region("eu")).await;
    assert_eq!(before.0, "eu-1");
    world.kill("eu");
    world.pass(TTL - Duration::from_secs(1)).await;
    assert_eq!(world.lease(&region("eu")).await, before, "nobody takes over early");
    world.run_until_quiet().await;
    let taken = world.lease(&region("eu")).await;
    assert_eq!(taken.0, "ap-1", "the first by name goes first");
    assert!(taken.1 > before.1);
    assert_eq!(world.coordinators(&region("eu")), ["ap-1".to_owned()].into());
    let status = world.region("eu").await.status;
    assert_eq!(
        (status.coordinator.as_str(), status.coordinator_epoch),
        ("ap-1", taken.1)
    );
    assert!(status.conditions.iter().any(|c| c.reason == "TakenOver"));

    // The stand-in does the work: reports reach it through the council, intents go out by its token.
    world.create_vci("later", Some("eu")).await;
    world.run_until_quiet().await;
    assert_eq!(world.vci("later").await.unwrap().status.phase, Phase::Ready);
    assert_eq!(world.vci("demo").await.unwrap().status.phase, Phase::Ready);
    assert_eq!(world.agents["eu"].last_intent().unwrap().epoch, taken.1);

    world.start("eu").await;
    world.run_until_quiet().await;
    world.pass(Duration::from_secs(6)).await;
    world.run_until_quiet().await;
    assert_eq!(world.lease(&region("eu")).await.0, "eu-1");
    assert_eq!(world.coordinators(&region("eu")), ["eu-1".to_owned()].into());
    assert_eq!(world.region("eu").await.status.coordinator, "eu-1");
    assert_eq!(world.vci("demo").await.unwrap().status.phase, Phase::Ready);
}

#[tokio::test]
async fn a_server_that_stops_in_good_order_lets_its_leases_go() {
    let mut world = World::three_regions().await;
    let fleet = world.lease(&Scope::Fleet).await.0;
    assert_eq!(fleet, "ap-1");
    world.stop("ap").await;
    assert_eq!(world.lease(&Scope::Fleet).await.0, "");
    let stopped = world.clock_now();
    world.run_until_quiet().await;
    assert_eq!(world.lease(&Scope::Fleet).await.0, "eu-1");
    assert_eq!(world.lease(&region("ap")).await.0, "eu-1");
    assert!(
        world.clock_now() - stopped < TTL + Duration::from_secs(1),
        "nobody waited for a lease to run out"
    );
}

#[tokio::test]
async fn a_paused_coordinator_wakes_up_deposed_and_commits_nothing() {
    let world = World::three_regions().await;
    world.create_vci("demo", Some("eu")).await;
    world.run_until_quiet().await;
    let (_, token) = world.lease(&region("eu")).await;
    let paused = &world.nodes["eu-1"];
    let ctx = |world: &World| StepCtx {
        objects: hanse_state::objects::Objects::new(paused.council.clone()),
        tenants: paused.tenants.clone(),
        sealer: world.sealer().clone(),
        fence: Fence {
            scope: region("eu"),
            token,
        },
        clock: hanse_runtime::clock::SystemClock::shared(),
        rng: hanse_runtime::rng::SystemRng::shared(),
    };
    let (vci, revision) = world.get::<_, _>(VIRTUAL_CLUSTER_INSTANCES, &at("demo")).await.unwrap();
    let vci: VirtualClusterInstance = vci;
    let late = || Op::Update {
        key: at("demo").key(VIRTUAL_CLUSTER_INSTANCES),
        value: encode(&vci).unwrap(),
        expected: revision,
    };
    world.way("eu", Way::Paused);
    world
        .until("another takes over", |w| w.coordinators(&region("eu")).contains("ap-1"))
        .await;
    assert_ne!(world.lease(&region("eu")).await.1, token);
    world.way("eu", Way::Open);
    let refused = ctx(&world).commit(vec![late()]).await;
    assert!(matches!(refused, Err(StepError::Fenced(_))), "{refused:?}");
    // The object itself had not changed: only the fence stood in the way.
    let by_holder = StepCtx {
        fence: Fence {
            scope: region("eu"),
            token: world.lease(&region("eu")).await.1,
        },
        ..ctx(&world)
    };
    assert!(matches!(
        by_holder.commit(vec![late()]).await,
        Ok(Progress::Committed(_))
    ));
}

#[tokio::test]
async fn of_two_that_race_for_a_lease_one_gets_it_and_only_that_one_may_commit() {
    let world = World::new().await;
    let scope = region("eu");
    let writer = |server: &str| LeaseWriter {
        objects: world.objects.clone(),
        clock: hanse_runtime::clock::SystemClock::shared(),
        rng: hanse_runtime::rng::SystemRng::shared(),
        server: server.into(),
    };
    let (a, b) = (writer("a"), writer("b"));
    let mut observed = Observed::default();
    for round in 0..20 {
        let (by_a, by_b) = tokio::join!(a.acquire(&scope, &observed), b.acquire(&scope, &observed));
        assert!(by_a.is_ok() != by_b.is_ok(), "round {round}: {by_a:?} {by_b:?}");
        let (winner, loser, held) = match (by_a, by_b) {
            (Ok(held), _) => (&a, &b, held),
            (_, Ok(held)) => (&b, &a, held),
            _ => unreachable!(),
        };
        assert!(
            loser.renew(&scope, held).await.is_ok(),
            "whoever knows the token renews; names do not count"
        );
        let stale = crate::lease::Held {
            token: held.token - 1,
            ..held
        };
        assert!(matches!(winner.renew(&scope, stale).await, Err(StepError::Fenced(_))));
        let renewal = world.objects.get(&scope.renewal_key()).await.unwrap().unwrap().revision;
        observed = Observed {
            lease: Some((winner.server.clone(), held.token)),
            renewal,
            ..Observed::default()
        };
        // A holder that renews after a rival looked defeats the rival.
        let again = winner
            .renew(&scope, crate::lease::Held { renewal, ..held })
            .await
            .unwrap();
        assert!(matches!(
            loser.acquire(&scope, &observed).await,
            Err(StepError::Conflict(_))
        ));
        observed.renewal = again.renewal;
    }
    let wrong = world
        .objects
        .commit(vec![Op::Require {
            key: scope.lease_key(),
            revision: 1,
        }])
        .await;
    assert!(matches!(wrong, Err(ObjectError::Failed { .. })));
}

#[tokio::test]
async fn a_server_without_a_majority_steps_down_and_disturbs_nobody_when_it_is_back() {
    let world = World::three_regions().await;
    world.way("us", Way::Cut);
    world
        .until("it steps down", |w| {
            w.coordinators(&region("us")).iter().all(|server| server != "us-1")
        })
        .await;
    world
        .until("another takes over", |w| !w.coordinators(&region("us")).is_empty())
        .await;
    world.pass(Duration::from_secs(20)).await;
    let eu = world.lease(&region("eu")).await;
    world.way("us", Way::Open);
    world
        .until("it takes its own region back", |w| {
            w.coordinators(&region("us")) == ["us-1".to_owned()].into()
        })
        .await;
    world.pass(Duration::from_secs(10)).await;
    assert_eq!(
        world.lease(&region("eu")).await,
        eu,
        "old news made it take nothing from others"
    );
}

#[tokio::test]
async fn a_lost_agent_shows_and_a_short_break_does_not() {
    let mut world = World::three_regions().await;
    world.create_vci("demo", Some("us")).await;
    world.run_until_quiet().await;
    let writes = world.writes();
    let agent = std::sync::Arc::clone(&world.agents["us"]);
    world.cluster_offline("us");
    world.pass(Duration::from_secs(5)).await;
    world.agents.insert("us".into(), agent);
    world.cluster_online("us");
    world.run_until_quiet().await;
    assert_eq!(world.writes(), writes, "a short break writes nothing");

    world.cluster_offline("us");
    world.pass(Duration::from_secs(11)).await;
    world.run_until_quiet().await;
    let vci = world.vci("demo").await.unwrap();
    assert_eq!(condition(&vci, ONLINE), ("False", "AgentOffline"));
    assert_eq!(condition(&vci, READY), ("Unknown", "AgentOffline"));
    assert_eq!((vci.status.phase, vci.status.online), (Phase::Pending, false));
    assert!(vci.status.message.contains("start the agent"), "{}", vci.status.message);
    let status = world.region("us").await.status;
    let agents = status.conditions.iter().find(|c| c.reason == "AgentsOffline").unwrap();
    assert!(agents.message.contains("us"), "{}", agents.message);

    world.cluster_online("us");
    world.run_until_quiet().await;
    assert_eq!(world.vci("demo").await.unwrap().status.phase, Phase::Ready);
}

#[tokio::test]
async fn one_that_still_starts_is_pending_and_says_so() {
    let mut world = World::three_regions().await;
    *world.agents["eu"].manner.lock() = Manner::Slow;
    world.create_vci("demo", Some("eu")).await;
    world.run_until_quiet().await;
    let vci = world.vci("demo").await.unwrap();
    assert_eq!(
        (vci.status.phase, vci.status.reason.as_str()),
        (Phase::Pending, "Starting")
    );
    *world.cluster_online("eu").manner.lock() = Manner::Obedient;
    world.run_until_quiet().await;
    assert_eq!(world.vci("demo").await.unwrap().status.phase, Phase::Ready);
}

#[tokio::test]
async fn many_tenants_spread_evenly() {
    let world = World::three_regions().await;
    for n in 0..12 {
        world.create_vci(&format!("t{n}"), None).await;
    }
    world.run_until_quiet().await;
    for cluster in ["ap", "eu", "us"] {
        let count = world.nodes["eu-1"].regions.view().read(|view| view.tenants_on(cluster));
        assert_eq!(count, 4, "{cluster}");
        assert_eq!(world.agents[cluster].last_intent().unwrap().tenants.len(), 4);
    }
}
