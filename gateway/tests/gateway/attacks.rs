//! The faults that other proxies had (table A9 of the notes on proxies), each tried against a real gateway.

use crate::world::{API, CLUSTER, DEMO, TENANT, World, plain};
use hanse_api::access::GROUP_TENANT_ADMINS;
use hanse_tunnel::{Target, empty_body, full_body};
use http::Response;

/// CVE-2021-31999, CVE-2022-23652, CVE-2025-48865: `Connection` names a header that the proxy adds, so that it is removed on
/// the way. Here such a request does not get in, and identity travels in no header at all.
#[tokio::test]
async fn connection_cannot_name_other_headers() {
    let world = World::start().await;
    let admin = world.admin();
    for value in [
        "Impersonate-User",
        "keep-alive, Impersonate-User",
        "close, x-remote-user",
        "Authorization",
        "Audit-Id",
    ] {
        for path in [format!("{DEMO}/version"), format!("{API}/projects")] {
            admin
                .send(admin.request("GET", &path, &[("connection", value)], ""))
                .await
                .fails(400);
        }
    }
    assert_eq!(world.agent.count(), 0);
    assert_eq!(
        admin
            .send(admin.request("GET", &format!("{DEMO}/version"), &[("connection", "keep-alive")], ""))
            .await
            .code,
        200
    );
}

/// CVE-2025-64484, CVE-2026-30851 and all who pass on what they should write: identity comes from credentials alone.
#[tokio::test]
async fn no_header_of_the_caller_speaks_for_him() {
    let world = World::start().await;
    let admin = world.admin();
    let hostile = [
        ("x-remote-user", "root"),
        ("x-remote-group", "system:masters"),
        ("x_remote_user", "root"),
        ("impersonate_user", "root"),
        ("x-forwarded-for", "1.2.3.4"),
        ("x-forwarded-user", "root"),
        ("forwarded", "for=1.2.3.4"),
        ("via", "1.1 x"),
        ("audit-id", "forged"),
        ("cookie", "session=1"),
        ("x-hanse-principal", "root"),
        ("proxy-authorization", "Basic x"),
        ("te", "trailers"),
    ];
    for path in ["/version", "/api/v1/namespaces/a/services/web/proxy/x"] {
        admin
            .send(admin.request("GET", &format!("{DEMO}{path}"), &hostile, ""))
            .await;
        let seen = world.agent.last();
        let names: Vec<&str> = seen.head.headers.keys().map(http::HeaderName::as_str).collect();
        assert_eq!(names, ["audit-id", "x-forwarded-for"], "{path}");
        assert_ne!(seen.head.headers["audit-id"], "forged");
        assert_eq!(seen.head.headers["x-forwarded-for"], "127.0.0.1");
        let claims = seen.verified.claims;
        assert_eq!(claims.principal.user, "admin");
        assert_eq!(
            (claims.cluster.as_str(), &claims.target),
            (CLUSTER, &Target::Tenant { id: TENANT.into() })
        );
        assert!(claims.principal.is_in(GROUP_TENANT_ADMINS));
        // GHSA-c7xh-gjv4-4jgv: no group that means more elsewhere.
        assert!(
            claims
                .principal
                .groups
                .iter()
                .all(|g| g == "system:authenticated" || !g.starts_with("system:")),
            "{claims:?}"
        );
        assert!(!format!("{:?}", seen.head.headers).contains("admin-secret"));
    }
}

/// CVE-2020-8559, CVE-2022-3172: an upstream sends the caller, and his credentials, somewhere else.
#[tokio::test]
async fn redirects_go_nowhere() {
    let world = World::start().await;
    let admin = world.admin();
    for code in [301, 302, 303, 307, 308] {
        world.agent.answer(move |_, _| {
            Response::builder()
                .status(code)
                .header("location", "https://evil.example/")
                .body(empty_body())
                .unwrap()
        });
        let answer = admin.get(&format!("{DEMO}/version")).await;
        answer.fails(502);
        assert!(!answer.headers.contains_key("location"));
    }
    world.agent.answer(|_, _| plain(304, ""));
    assert_eq!(admin.get(&format!("{DEMO}/version")).await.code, 304);
}

/// CVE-2022-3162 and its kind: a path that the gateway reads in one way and the API server in another.
#[tokio::test]
async fn ambiguous_paths_go_nowhere() {
    let world = World::start().await;
    let admin = world.admin();
    for path in [
        "/api/v1/namespaces/a%2fb/pods",
        "/api/v1/namespaces/a%2F..%2Fkube-system/secrets",
        "/api/v1/%2e%2e/x",
        "/api/v1/../../x",
        "/api/v1/./x",
        "/api/v1//pods",
        "//api/v1/pods",
        "/api/v1/a%5cb",
        "/api/v1/a%00",
        "/api/v1/a%25b",
        "/api/v1/a;b",
        "/api/v1/%c0%ae",
    ] {
        admin.get(&format!("{DEMO}{path}")).await.fails(400);
        admin.get(&format!("/kubernetes/management{path}")).await.fails(400);
    }
    assert_eq!(world.agent.count(), 0);
    // What goes out is what was read, written anew.
    admin
        .get(&format!("{DEMO}/api/v1/namespaces/%61/pods/x%3Ay?watch=0&a=%20"))
        .await;
    assert_eq!(
        world.agent.last().head.path_and_query,
        "/api/v1/namespaces/a/pods/x:y?watch=0&a=%20"
    );
    admin
        .get(&format!(
            "{DEMO}/api/v1/namespaces/a/services/web/proxy/raw%2Fpath//..;x?%zz"
        ))
        .await;
    assert_eq!(
        world.agent.last().head.path_and_query,
        "/api/v1/namespaces/a/services/web/proxy/raw%2Fpath//..;x?%zz"
    );
}

/// CVE-2023-48312: an empty token counts as somebody. CVE-2026-39429: an endpoint beside authentication.
/// (`access::every_route_needs_credentials` walks the routes.)
#[tokio::test]
async fn an_empty_token_is_nobody() {
    let world = World::start().await;
    for value in ["Bearer ", "Bearer", "Bearer  ", "", "Basic Og=="] {
        let nobody = world.client(None);
        let request = nobody.request("GET", &format!("{DEMO}/version"), &[("authorization", value)], "");
        nobody.send(request).await.fails(401);
    }
    let admin = world.admin();
    let twice = admin.request(
        "GET",
        &format!("{DEMO}/version"),
        &[("authorization", "Bearer hak1.bob.bob-secret")],
        "",
    );
    admin.send(twice).await.fails(401);
    assert_eq!(world.agent.count(), 0);
}

/// CVE-2024-52280 (watch not authorized like list), CVE-2021-36776 (the object, not only the path), CVE-2022-3294 (no address of
/// the caller's choice): what is asked for is looked up and authorized by name.
#[tokio::test]
async fn targets_are_authorized_and_looked_up() {
    let world = World::start().await;
    let (admin, bob) = (world.admin(), world.bob());
    for query in ["", "?watch=1", "?watch=true&resourceVersion=0"] {
        bob.get(&format!("{API}/clusters{query}")).await.fails(403);
        bob.get(&format!("{DEMO}/api/v1/pods{query}")).await.fails(403);
    }
    admin
        .get("/kubernetes/project/default/virtualcluster/none/version")
        .await
        .fails(404);
    admin.get("/kubernetes/cluster/none/version").await.fails(404);
    admin.get("/kubernetes/cluster/127.0.0.1:6443/version").await.fails(404);
    assert_eq!(world.agent.count(), 0);
    world.agent.answer(|_, _| plain(200, "cluster"));
    assert_eq!(admin.get("/kubernetes/cluster/eu/version").await.text, "cluster");
    assert_eq!(world.agent.last().verified.claims.target, Target::Cluster);
}

/// What a tenant's server sends acts on nothing but the answer's meaning.
#[tokio::test]
async fn answers_carry_nothing_for_the_gateways_origin() {
    let world = World::start().await;
    world.agent.answer(|_, _| {
        Response::builder()
            .header("set-cookie", "session=evil")
            .header("access-control-allow-origin", "*")
            .header("alt-svc", "h3=\":1\"")
            .header("strict-transport-security", "max-age=0")
            .header("warning", "299 - \"old\"")
            .header("audit-id", "theirs")
            .header("content-type", "application/json")
            .body(full_body("{}"))
            .unwrap()
    });
    let answer = world.admin().get(&format!("{DEMO}/version")).await;
    for name in [
        "set-cookie",
        "access-control-allow-origin",
        "alt-svc",
        "strict-transport-security",
    ] {
        assert!(!answer.headers.contains_key(name), "{name}");
    }
    assert_eq!(answer.headers["warning"], "299 - \"old\"");
    assert_eq!(answer.headers["audit-id"], world.agent.last().head.request_id.as_str());
}

/// A 401 of the API server is about the agent's credentials: the caller must not throw his own away. That of an application
/// behind the API server is for the caller.
#[tokio::test]
async fn a_401_of_the_upstream_is_not_the_callers() {
    let world = World::start().await;
    world.agent.answer(|_, _| plain(401, "Unauthorized"));
    world.admin().get(&format!("{DEMO}/version")).await.fails(502);
    let app = world
        .admin()
        .get(&format!("{DEMO}/api/v1/namespaces/a/services/web/proxy/"))
        .await;
    assert_eq!(app.code, 401);
}

/// Header floods end at the door, big but honest requests do not.
#[tokio::test]
async fn many_headers_are_bounded() {
    let world = World::start().await;
    let admin = world.admin();
    let many = |n: usize| -> Vec<(String, String)> { (0..n).map(|i| (format!("x-h{i}"), "v".to_owned())).collect() };
    let send = async |n: usize| {
        let headers = many(n);
        let headers: Vec<(&str, &str)> = headers.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
        admin
            .send(admin.request("GET", &format!("{DEMO}/version"), &headers, ""))
            .await
    };
    assert_eq!(send(600).await.code, 200);
    assert_eq!(send(1200).await.code, 431);
}
