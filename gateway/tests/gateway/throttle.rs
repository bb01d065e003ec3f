//! Logins that fail too often: answered 429, counted, in the trail without flooding it, and never at the cost of whoever shows what
//! holds.

use crate::oidc_world::{authority, settings};
use crate::world::{API, Client, World, soon};
use hanse_gateway::{LoginLimits, Oidc, OidcFiles, Rate, access_key};
use hanse_runtime::clock::{Clock as _, SystemClock};
use hanse_runtime::rng::SystemRng;
use hanse_runtime::seal::Sealer;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

const EVENTS: &str = "/kubernetes/management/apis/management.loft.sh/v1/events";
const SLOW: Rate = Rate {
    per_minute: 20,
    burst: 4,
};
/// None of these comes back within a test.
const NEVER: Rate = Rate {
    per_minute: 1,
    burst: 2,
};

async fn failed(client: &Client) -> u64 {
    let list = client.get(EVENTS).await.good();
    let times = |object: &Value| {
        let times = object["status"]["annotations"]["hanse.dev/times"].as_str();
        times.map_or(1, |times| times.parse::<u64>().unwrap())
    };
    let items = list["items"].as_array().unwrap().iter();
    items
        .filter(|object| object["status"]["responseStatus"]["code"] == 401)
        .map(times)
        .sum()
}

#[tokio::test]
async fn too_many_wrong_keys_are_told_to_wait_and_the_right_one_is_let_in() {
    let world = World::with(|parts| {
        parts.limits.logins = LoginLimits {
            by_address: SLOW,
            ..LoginLimits::default()
        };
    })
    .await;
    let (admin, path) = (world.admin(), format!("{API}/projects"));
    let wrong = world.client(Some(access_key("admin", "guess-c4n4ry")));
    let mut tried = 0;
    let mut throttled = None;
    while throttled.is_none() {
        tried += 1;
        let answer = wrong.get(&path).await;
        assert!(tried < 100, "nobody is throttled");
        throttled = (answer.code == 429).then_some(answer);
    }
    assert!(tried > 4, "the first ones are told that they are wrong");
    let throttled = throttled.unwrap();
    let wait: u64 = throttled.headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=4).contains(&wait), "{wait}");
    throttled.fails(429);
    // Neither the owner of the key nor others at the address pay for it, nor who shows nothing at all.
    admin.get(&path).await.good();
    world.bob().get("/kubernetes/management/version").await.good();
    for _ in 0..20 {
        world.client(None).get(&path).await.fails(401);
    }
    let metrics = admin.get("/metrics").await.text;
    assert!(
        metrics.contains("hanse_gateway_logins_throttled_total{of=\"address\"}"),
        "{metrics}"
    );
    // After a while one is told again, and its event counts all before it.
    let clock = SystemClock::new();
    let again = async {
        loop {
            tried += 1;
            if wrong.get(&path).await.code == 401 {
                break;
            }
            clock.sleep(Duration::from_millis(200)).await;
        }
        while failed(&admin).await < tried {
            clock.sleep(Duration::from_millis(50)).await;
        }
    };
    soon(again).await;
    assert_eq!(failed(&admin).await, tried, "every failure, and no more");
}

#[tokio::test]
async fn an_account_is_counted_by_itself() {
    let world = World::with(|parts| parts.limits.logins.by_account = NEVER).await;
    let path = format!("{API}/projects");
    let wrong = |id: &str| world.client(Some(access_key(id, "wrong")));
    for code in [401, 401, 429, 429] {
        wrong("admin").get(&path).await.fails(code);
    }
    wrong("bob").get(&path).await.fails(401);
    world.admin().get(&path).await.good();
}

#[tokio::test]
async fn steps_of_logins_are_counted_before_they_make_work() {
    let world = World::with(|parts| {
        let rng = SystemRng::shared();
        let sealer = Sealer::from_key(&Sealer::generate(rng.as_ref())).unwrap();
        // Nobody listens there.
        let issuer = settings("corp", "https://127.0.0.1:9", &json!({}));
        let files = OidcFiles {
            client_secret: None,
            ca: Some(authority().cert_pem().to_owned()),
        };
        let url = "https://127.0.0.1:8443";
        let oidc = Oidc::new(
            vec![(issuer, files)],
            sealer,
            url,
            Duration::from_secs(60),
            &parts.clock,
        )
        .unwrap();
        parts.oidc = Some(Arc::new(oidc));
        parts.limits.logins.steps = NEVER;
    })
    .await;
    let stranger = world.client(None);
    for code in [503, 503, 429] {
        let answer = stranger.get("/auth/corp/login").await;
        assert_eq!(answer.code, code, "{}", answer.text);
        assert!(answer.headers.contains_key("retry-after"), "{}", answer.text);
    }
    assert_eq!(stranger.post("/auth/exchange", &json!({})).await.code, 429);
    assert_eq!(stranger.get("/login").await.code, 200);
    assert_eq!(stranger.get("/auth/info").await.code, 200);
}
