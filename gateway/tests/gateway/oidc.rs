//! Logins by a real provider, in a browser that does what people do.

use crate::oidc_world::{Browser, Front, Page, RealProvider, SECRET, authority, leaf, parameter, settings};
use crate::world::{API, Client, World};
use hanse_api::kinds::{ACCESS_KEYS, IDENTITIES, LOGIN_GRANTS, SPENT_LOGINS, TEAMS, USERS};
use hanse_gateway::{Gateway, tls_config};
use hanse_runtime::pki::{load_certs, load_key};
use hanse_runtime::supervisor::TaskKind;
use hanse_state::objects::{ObjectKey, Page as Objects};
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// Where the `vcluster` CLI waits.
const CLI: &str = "http://localhost:25843/login";

fn accounts() -> Value {
    json!({
        "ann-1": { "preferred_username": "ann", "name": "Ann Lee", "email": "ann@corp.example", "email_verified": true,
                   "groups": ["devs", "ops", "secret-club"] },
        "eve-1": { "preferred_username": "bob", "email": "bob@corp.example", "groups": ["devs"] },
    })
}

/// A gateway with a real provider, and a browser that knows both. None where there is no provider to be had.
async fn corp(more: &Value, conform: bool) -> Option<(World, RealProvider, Browser, String)> {
    let front = Front::bind().await;
    let (url, redirects) = (front.url.clone(), [front.callback("corp")]);
    let provider = RealProvider::start(&redirects, accounts(), conform).await?;
    let issuer = settings("corp", &provider.issuer, more);
    let (world, _) = front.serve(vec![(issuer, &provider.ca)]).await;
    let browser = Browser::default()
        .knows(&url, &world.ca_pem)
        .knows(&provider.issuer, &provider.ca);
    Some((world, provider, browser, url))
}

async fn spec(world: &World, kind: &hanse_api::kinds::KindName, name: &str) -> Value {
    let stored = world
        .objects
        .get(&ObjectKey::new(kind, "", name))
        .await
        .unwrap()
        .unwrap();
    serde_json::from_slice::<Value>(&stored.value).unwrap()["spec"].take()
}

async fn whoami(client: &Client) -> Value {
    client.post(&format!("{API}/selves"), &json!({})).await.good()["status"].take()
}

#[track_caller]
fn key_of(page: &Page) -> String {
    assert!(page.url.starts_with(CLI), "{page:?}");
    page.parameter("key").unwrap()
}

#[track_caller]
fn fails(page: &Page, code: u16, why: &str) {
    assert_eq!(page.code, code, "{page:?}");
    assert!(
        page.text.contains("Login failed") && page.text.contains(why),
        "{page:?}"
    );
}

#[tokio::test]
async fn the_vcluster_clis_browser_flow_gives_a_login_key() {
    let more = json!({ "display_name": "Corp & Co", "groups": ["devs", "ops"] });
    let Some((world, _provider, mut browser, url)) = corp(&more, true).await else {
        return;
    };
    world
        .put(&TEAMS, "", "builders", json!({ "groups": ["corp:devs"] }))
        .await;
    let page = browser
        .log_in(&format!("{url}/login?cli=true"), "Corp &amp; Co", "ann-1")
        .await;
    let key = key_of(&page);
    let ann = world.client(Some(key));
    let me = whoami(&ann).await;
    assert_eq!(
        (&me["user"]["name"], &me["accessKeyType"]),
        (&json!("ann"), &json!("Login"))
    );
    let user = spec(&world, &USERS, "ann").await;
    assert_eq!(user["ssoGroups"], json!(["corp:devs", "corp:ops"]));
    assert_eq!(
        (&user["displayName"], &user["email"]),
        (&json!("Ann Lee"), &json!("ann@corp.example"))
    );
    long(async {
        while whoami(&ann).await["user"]["teams"][0]["name"] != "builders" {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await;
    // What the CLI does when it is told to log out.
    let id = me["accessKey"].as_str().unwrap();
    ann.delete(&format!("{API}/ownedaccesskeys/{id}")).await.good();
    ann.get(&format!("{API}/projects")).await.fails(401);
    // The browser is known at the provider by now, and the person here.
    let again = browser
        .log_in(&format!("{url}/login?cli=true"), "Corp &amp; Co", "nobody")
        .await;
    let again = world.client(Some(key_of(&again)));
    assert_eq!(whoami(&again).await["user"]["name"], "ann");
    let identities = world.objects.list(&IDENTITIES, None, Objects::default()).await.unwrap();
    assert_eq!(identities.items.len(), 1);
    let done = browser.get(&format!("{url}/spaces")).await;
    assert!(done.code == 200 && done.text.contains("You are logged in"), "{done:?}");
}

#[tokio::test]
async fn who_is_disabled_or_new_where_nobody_comes_or_named_like_another_stays_out() {
    let Some((world, _provider, mut browser, url)) = corp(&json!({}), true).await else {
        return;
    };
    let login = format!("{url}/login?cli=true");
    // There is a user bob, and eve calls herself so at the provider.
    let eve = Browser::default();
    let mut eve = eve.knows(&url, &world.ca_pem).knows(&_provider.issuer, &_provider.ca);
    fails(
        &eve.log_in(&login, "corp", "eve-1").await,
        403,
        "there is a user &quot;bob&quot; already",
    );
    key_of(&browser.log_in(&login, "corp", "ann-1").await);
    let patch = json!({ "spec": { "disabled": true } });
    world.admin().merge(&format!("{API}/users/ann"), &patch).await.good();
    fails(&browser.log_in(&login, "corp", "ann-1").await, 403, "is disabled");
    // Somebody else of that name is not she.
    world.admin().delete(&format!("{API}/users/ann")).await.good();
    world.user("ann", &[]).await;
    fails(
        &browser.log_in(&login, "corp", "ann-1").await,
        403,
        "there is a user &quot;ann&quot; already",
    );
    assert!(
        world
            .objects
            .list(&ACCESS_KEYS, None, Objects::default())
            .await
            .unwrap()
            .items
            .len()
            == 3
    );
}

#[tokio::test]
async fn where_nobody_comes_by_himself_an_administrator_binds_people() {
    let Some((world, provider, mut browser, url)) = corp(&json!({ "create_users": false }), true).await else {
        return;
    };
    let login = format!("{url}/login?cli=true");
    let page = browser.log_in(&login, "corp", "ann-1").await;
    fails(&page, 403, "has to bind the identity id-");
    let name = page.between("bind the identity ", " ");
    let all = "/kubernetes/management/apis/hanse.dev/v1/identities";
    let spec = json!({ "issuer": provider.issuer, "subject": "ann-1", "user": "bob" });
    let named = |name: &str| json!({ "metadata": { "name": name }, "spec": spec });
    let wrong = world.admin().post(all, &named("id-other")).await.fails(422);
    assert!(wrong["message"].as_str().unwrap().contains(&name), "{wrong}");
    // Whoever may bind somebody to bob could be bob.
    world.bob().post(all, &named(&name)).await.fails(403);
    world.admin().post(all, &named(&name)).await.good();
    let bob = world.client(Some(key_of(&browser.log_in(&login, "corp", "ann-1").await)));
    assert_eq!(whoami(&bob).await["user"]["name"], "bob");
}

#[tokio::test]
async fn two_issuers_at_once_never_mix_people() {
    let front = Front::bind().await;
    let url = front.url.clone();
    let redirects = [front.callback("one"), front.callback("two")];
    let Some(one) = RealProvider::start(&redirects, accounts(), true).await else {
        return;
    };
    let two = RealProvider::start(&redirects, accounts(), false).await.unwrap();
    let issuers = vec![
        (settings("one", &one.issuer, &json!({})), one.ca.as_str()),
        (
            settings("two", &two.issuer, &json!({ "username_prefix": "two-" })),
            two.ca.as_str(),
        ),
    ];
    let (world, _) = front.serve(issuers).await;
    let browser = || {
        let known = Browser::default().knows(&url, &world.ca_pem);
        known.knows(&one.issuer, &one.ca).knows(&two.issuer, &two.ca)
    };
    let login = format!("{url}/login?cli=true");
    let first = key_of(&browser().log_in(&login, "one", "ann-1").await);
    let second = key_of(&browser().log_in(&login, "two", "ann-1").await);
    assert_eq!(whoami(&world.client(Some(first))).await["user"]["name"], "ann");
    assert_eq!(whoami(&world.client(Some(second))).await["user"]["name"], "two-ann");
    assert_eq!(spec(&world, &USERS, "two-ann").await["ssoGroups"][0], "two:devs");
    // The answer of one, led to the callback of the other.
    let mut mixed = browser();
    let (_, headers, _) = mixed.step("GET", &format!("{url}/auth/one/login?cli=true"), "").await;
    let at_one = headers["location"].to_str().unwrap().to_owned();
    let page = mixed.get(&at_one).await;
    let answer = stop_before(&mut mixed, page, &url).await;
    fails(
        &mixed.get(&answer.replace("/auth/one/", "/auth/two/")).await,
        403,
        "another identity provider",
    );
}

/// Logs in at the provider and stops before its answer is followed to the gateway.
async fn stop_before(browser: &mut Browser, page: Page, url: &str) -> String {
    let authority = browser.forget(url);
    let answer = browser.at_provider(page, "ann-1").await;
    *browser = std::mem::take(browser).knows(url, &authority);
    assert!(answer.url.starts_with(url), "{answer:?}");
    answer.url
}

#[tokio::test]
async fn any_server_goes_on_with_a_login_and_nobody_does_twice() {
    let front = Front::bind().await;
    let url = front.url.clone();
    let redirects = [front.callback("corp")];
    let Some(provider) = RealProvider::start(&redirects, accounts(), true).await else {
        return;
    };
    let issuer = settings("corp", &provider.issuer, &json!({}));
    let (world, parts) = front.serve(vec![(issuer, &provider.ca)]).await;
    // Another server of the installation: same store, same keys.
    let pki = authority();
    let cert = leaf(&pki);
    let tls = tls_config(load_certs(&cert.cert).unwrap(), load_key(&cert.key).unwrap()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let other = format!("https://{}", listener.local_addr().unwrap());
    let gateway = Gateway::new(parts);
    world.supervisor.spawn(TaskKind::Listener, "other gateway", async move {
        Ok(gateway.serve(listener, tls).await?)
    });
    let mut browser = Browser::default()
        .knows(&url, &world.ca_pem)
        .knows(&provider.issuer, &provider.ca)
        .knows(&other, pki.cert_pem());
    let begun = browser
        .step("GET", &format!("{url}/auth/corp/login?cli=true"), "")
        .await;
    let at_provider = begun.1["location"].to_str().unwrap().to_owned();
    let cookies = browser.cookies(&url);
    let page = browser.get(&at_provider).await;
    let answer = stop_before(&mut browser, page, &url).await;
    browser.set_cookies(&other, cookies.clone());
    let page = browser.get(&answer.replace(&url, &other)).await;
    assert_eq!(whoami(&world.client(Some(key_of(&page)))).await["user"]["name"], "ann");
    // Without its cookie a browser is any other one; with a copy of it the provider knows that the code was used.
    browser.set_cookies(&url, std::collections::BTreeMap::new());
    fails(&browser.get(&answer).await, 403, "begin again");
    browser.set_cookies(&url, cookies.clone());
    fails(&browser.get(&answer).await, 403, "refused the code");
    browser.set_cookies(&url, cookies);
    fails(&browser.get(&format!("{answer}x")).await, 403, "begin again");
    let spent = world
        .objects
        .list(&SPENT_LOGINS, None, Objects::default())
        .await
        .unwrap();
    assert_eq!(spent.items.len(), 1);
}

#[tokio::test]
async fn an_outage_of_the_issuer_ends_no_session() {
    let Some((world, mut provider, mut browser, url)) = corp(&json!({}), true).await else {
        return;
    };
    let login = format!("{url}/login?cli=true");
    let key = key_of(&browser.log_in(&login, "corp", "ann-1").await);
    provider.kill().await;
    let (code, headers, _) = browser.step("GET", &format!("{url}/auth/corp/login"), "").await;
    assert_eq!(code, 303, "the way there is known");
    let state = parameter(headers["location"].to_str().unwrap(), "state").unwrap();
    let back = browser
        .get(&format!("{url}/auth/corp/callback?code=x&state={state}"))
        .await;
    fails(&back, 503, "cannot be asked now");
    assert_eq!(whoami(&world.client(Some(key))).await["user"]["name"], "ann");
}

#[tokio::test]
async fn id_tokens_of_configured_audiences_are_credentials_and_keys_rotate() {
    let Some((world, mut provider, mut browser, url)) = corp(&json!({ "api_audiences": ["kubectl"] }), false).await
    else {
        return;
    };
    let token = id_token(&mut browser, &provider, "ann-1").await;
    let projects = format!("{API}/projects");
    // Good, but nobody here yet.
    world.client(Some(token.clone())).get(&projects).await.fails(401);
    key_of(&browser.log_in(&format!("{url}/login?cli=true"), "corp", "ann-1").await);
    let ann = world.client(Some(token));
    let me = whoami(&ann).await;
    assert_eq!((&me["user"]["name"], &me["accessKey"]), (&json!("ann"), &json!("")));
    provider.rotate().await;
    let mut fresh = Browser::default().knows(&provider.issuer, &provider.ca);
    let token = id_token(&mut fresh, &provider, "ann-1").await;
    let renewed = world.client(Some(token));
    // New keys are asked for soon, not at once for everybody who asks.
    long(async {
        while renewed.get(&projects).await.code != 200 {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    })
    .await;
    provider.kill().await;
    assert_eq!(whoami(&renewed).await["user"]["name"], "ann", "its keys are known");
    let patch = json!({ "spec": { "disabled": true } });
    world.admin().merge(&format!("{API}/users/ann"), &patch).await.good();
    // The tries above were failures, so that she may be told to wait.
    let code = renewed.get(&projects).await.code.as_u16();
    assert!(matches!(code, 401 | 429), "{code}");
}

/// An ID token for `kubectl`, as a plugin of it gets one.
async fn id_token(browser: &mut Browser, provider: &RealProvider, login: &str) -> String {
    let (verifier, challenge) = verifier();
    let begin = format!(
        "{}/auth?client_id=kubectl&response_type=code&scope=openid+profile+groups&redirect_uri=http://127.0.0.1/done\
         &code_challenge={challenge}&code_challenge_method=S256&state=s",
        provider.issuer
    );
    let page = browser.get(&begin).await;
    let page = browser.at_provider(page, login).await;
    let code = page.parameter("code").unwrap_or_else(|| panic!("{page:?}"));
    let form = format!(
        "grant_type=authorization_code&client_id=kubectl&code={code}&redirect_uri=http://127.0.0.1/done\
         &code_verifier={verifier}"
    );
    let answer = browser.post(&format!("{}/token", provider.issuer), &form).await;
    let answer: Value = serde_json::from_str(&answer.text).unwrap();
    answer["id_token"]
        .as_str()
        .unwrap_or_else(|| panic!("{answer}"))
        .to_owned()
}

/// What a client of the command line keeps, and what it says of it.
fn verifier() -> (String, String) {
    use base64::Engine as _;
    let verifier = "w".repeat(43);
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, verifier.as_bytes());
    let challenge = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(hash);
    (verifier, challenge)
}

#[tokio::test]
async fn a_code_is_a_key_once_and_for_its_client_alone() {
    let Some((world, _provider, mut browser, url)) = corp(&json!({}), true).await else {
        return;
    };
    let (verifier, challenge) = verifier();
    let nobody = world.client(None);
    let exchange = async |code: &str, verifier: &str| {
        let body = json!({ "code": code, "verifier": verifier });
        nobody.post("/auth/exchange", &body).await
    };
    // To be pasted.
    let page = browser
        .log_in(&format!("{url}/login?challenge={challenge}"), "corp", "ann-1")
        .await;
    assert!(page.text.contains("You are <b>ann</b>"), "{page:?}");
    let code = page.between("<code>", "</code>");
    exchange(&code, "guessed").await.fails(403);
    let made = exchange(&code, &verifier).await.good();
    let ann = world.client(Some(made["accessKey"].as_str().unwrap().to_owned()));
    assert_eq!(
        (&whoami(&ann).await["user"]["name"], &made["user"]),
        (&json!("ann"), &json!("ann"))
    );
    let used = exchange(&code, &verifier).await.fails(403);
    assert!(used["message"].as_str().unwrap().contains("used already"), "{used}");
    // To a port of the person's machine.
    let login = format!("{url}/login?challenge={challenge}&port=41234&state=mine");
    let page = browser.log_in(&login, "corp", "ann-1").await;
    assert!(
        page.url.starts_with("http://127.0.0.1:41234/callback?code="),
        "{page:?}"
    );
    assert_eq!(page.parameter("state").unwrap(), "mine");
    let code = page.parameter("code").unwrap();
    let patch = json!({ "spec": { "disabled": true } });
    world.admin().merge(&format!("{API}/users/ann"), &patch).await.good();
    let gone = exchange(&code, &verifier).await.fails(403);
    assert!(gone["message"].as_str().unwrap().contains("disabled"), "{gone}");
}

#[tokio::test]
async fn a_device_gets_its_key_when_a_person_lets_it_in() {
    let Some((world, _provider, mut browser, url)) = corp(&json!({}), true).await else {
        return;
    };
    let nobody = world.client(None);
    let begun = nobody.post("/auth/device/start", &json!({})).await.good();
    let (code, device) = (
        begun["userCode"].as_str().unwrap(),
        begun["deviceCode"].as_str().unwrap(),
    );
    let poll = async |device: &str| nobody.post("/auth/device/poll", &json!({ "deviceCode": device })).await;
    assert_eq!(poll(device).await.code, 202);
    let whole = begun["verificationUriComplete"].as_str().unwrap();
    assert_eq!(begun["verificationUri"], format!("{url}/login/device"));
    let page = browser.log_in(whole, "corp", "ann-1").await;
    assert!(
        page.text.contains("Let a device in?") && page.text.contains(code),
        "{page:?}"
    );
    assert_eq!(poll(device).await.code, 202, "a login is no yes");
    let question = format!("question={}", page.between("name=\"question\" value=\"", "\""));
    let confirm = format!("{url}/auth/device/confirm");
    let page = browser.post(&confirm, &question).await;
    assert!(page.code == 200 && page.text.contains("You are logged in"), "{page:?}");
    fails(&browser.post(&confirm, &question).await, 403, "used already");
    // Another device with another code gets nothing by it.
    let other = nobody.post("/auth/device/start", &json!({})).await.good();
    assert_eq!(poll(other["deviceCode"].as_str().unwrap()).await.code, 202);
    let made = poll(device).await.good();
    let ann = world.client(Some(made["accessKey"].as_str().unwrap().to_owned()));
    assert_eq!(whoami(&ann).await["user"]["name"], "ann");
    assert_ne!(poll(device).await.code, 200, "it is given once");
    poll(&format!("{device}A")).await.fails(403);
    let grants = world
        .objects
        .list(&LOGIN_GRANTS, None, Objects::default())
        .await
        .unwrap();
    assert!(grants.items.is_empty());
}

#[tokio::test]
async fn the_steps_of_a_login_are_public_and_nothing_beside_them() {
    let front = Front::bind().await;
    let pki = authority();
    let issuer = settings("corp", "https://127.0.0.1:1", &json!({}));
    let (world, _) = front.serve(vec![(issuer, pki.cert_pem())]).await;
    let nobody = world.client(None);
    for (method, path, code) in [
        ("GET", "/login", 200),
        ("GET", "/login?cli=true", 200),
        ("GET", "/login?challenge=x", 403),
        ("GET", "/login/device", 200),
        ("GET", "/spaces", 200),
        ("GET", "/auth/info", 200),
        ("GET", "/auth/none/login", 404),
        ("GET", "/auth/corp/login", 503),
        ("GET", "/auth/corp/callback", 403),
        ("GET", "/auth/corp/callback?code=x&state=y", 403),
        ("POST", "/auth/device/start", 200),
        ("POST", "/auth/device/confirm", 403),
    ] {
        let answer = nobody.send(nobody.request(method, path, &[], "")).await;
        assert_eq!(answer.code, code, "{method} {path}: {}", answer.text);
        assert!(!answer.text.contains(SECRET));
        let page = answer.headers["content-type"]
            .to_str()
            .unwrap()
            .starts_with("text/html");
        assert!(
            !page
                || answer.headers["content-security-policy"]
                    .to_str()
                    .unwrap()
                    .contains("frame-ancestors")
        );
        let other = if method == "GET" { "POST" } else { "GET" };
        assert_eq!(
            nobody.send(nobody.request(other, path, &[], "")).await.code,
            405,
            "{other} {path}"
        );
    }
    for (path, body) in [
        ("/auth/exchange", json!({ "code": "x", "verifier": "y" })),
        ("/auth/device/poll", json!({ "deviceCode": "x" })),
    ] {
        nobody.post(path, &body).await.fails(403);
        nobody.post(path, &json!({ "code": 1 })).await.fails(400);
        nobody.post(path, &json!("x".repeat(20_000))).await.fails(413);
    }
    for path in [
        "/",
        "/auth",
        "/auth/corp",
        "/login/x",
        "/auth/corp/logout",
        "/kubernetes/management/api",
    ] {
        nobody.get(path).await.fails(401);
    }
    assert_eq!(nobody.get("/login").await.text.matches("class=\"button\"").count(), 1);
}

/// The unmodified `vcluster` CLI, with a browser of its own: what it opens is noted for ours.
#[tokio::test]
async fn the_unmodified_vcluster_cli_logs_in_through_the_browser() {
    let Some(program) = vcluster() else {
        return;
    };
    let Some((world, _provider, mut browser, url)) = corp(&json!({}), true).await else {
        return;
    };
    // Its port is fixed, so tests take turns.
    let turn = std::fs::File::create(std::env::temp_dir().join("hanse-vcluster-login.lock")).unwrap();
    let turn = tokio::task::spawn_blocking(move || turn.lock().map(|()| turn))
        .await
        .unwrap();
    let home = tempfile::tempdir().unwrap();
    let opened = home.path().join("opened");
    let script = format!(
        "#!/bin/sh\necho \"$1\" > '{0}.part' && mv '{0}.part' '{0}'\n",
        opened.display()
    );
    let tool = home.path().join("xdg-open");
    std::fs::write(&tool, script).unwrap();
    std::fs::set_permissions(&tool, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let vcluster = |args: &[&str]| {
        let mut command = tokio::process::Command::new(&program);
        command.args(args).env_clear().kill_on_drop(true);
        command
            .env("HOME", home.path())
            .env("PATH", format!("{}:/usr/bin:/bin", home.path().display()));
        command
    };
    let login = ["platform", "login", &url, "--insecure", "--docker-login=false"];
    let mut child = vcluster(&login).spawn().unwrap();
    let page = long(async {
        loop {
            if let Ok(page) = std::fs::read_to_string(&opened) {
                return page.trim().to_owned();
            }
            assert!(
                child.try_wait().unwrap().is_none(),
                "it ended before it opened a browser"
            );
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    })
    .await;
    assert_eq!(page, format!("{url}/login?cli=true"));
    let back = browser.log_in(&page, "corp", "ann-1").await;
    assert!(back.url.starts_with(CLI), "{back:?}");
    let answer = long(plain_get(back.url.trim_start_matches("http://"))).await;
    assert!(answer.contains(&format!("{url}/spaces")), "it leads on: {answer}");
    assert!(long(child.wait()).await.unwrap().success());
    drop(turn);
    let me = long(vcluster(&["platform", "get", "current-user"]).output())
        .await
        .unwrap();
    let text = String::from_utf8_lossy(&me.stdout).into_owned();
    assert!(me.status.success() && text.contains("ann@corp.example"), "{me:?}");
    // The key is one of a login, so leaving ends it.
    let keys = async || {
        world
            .objects
            .list(&ACCESS_KEYS, None, Objects::default())
            .await
            .unwrap()
            .items
            .len()
    };
    assert_eq!(keys().await, 3);
    assert!(
        long(vcluster(&["platform", "logout"]).output())
            .await
            .unwrap()
            .status
            .success()
    );
    assert_eq!(keys().await, 2);
}

/// Where `cargo xtask kube-tools --clients` left it. Where it is missing the test is left out, but not in CI.
fn vcluster() -> Option<std::path::PathBuf> {
    let variable = |name: &str| {
        std::env::var_os(name)
            .filter(|v| !v.is_empty())
            .map(std::path::PathBuf::from)
    };
    let cache = variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache")));
    let folders = [
        variable("HANSE_KUBE_CLIENTS"),
        cache.map(|c| c.join("hanse/kube-tools/clients")),
    ];
    let mut programs = folders.into_iter().flatten().map(|dir| dir.join("bin/vcluster"));
    let found = programs.find(|p| p.is_file());
    if found.is_none() {
        assert!(
            std::env::var_os("CI").is_none(),
            "there is no vcluster: `cargo xtask test` builds it"
        );
        eprintln!("left out: there is no vcluster; `cargo xtask kube-tools --clients` builds it");
    }
    found
}

/// A program of others takes its time on a busy machine.
async fn long<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(std::time::Duration::from_secs(120), future)
        .await
        .expect("it happens in time")
}

/// The answer of a plain HTTP server that may not listen yet.
async fn plain_get(address: &str) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let (host, path) = address.split_once('/').unwrap();
    loop {
        if let Ok(mut stream) = tokio::net::TcpStream::connect(host).await {
            let request = format!("GET /{path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            return answer;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}
