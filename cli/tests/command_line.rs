//! What the binary says when it is used wrongly or has nobody to talk to.

#![allow(missing_docs, clippy::unwrap_used, reason = "test code")]

mod support;

use support::{GOOD_KEY, Server, User, is_private, refusal};

const PROJECTS: &str = "/kubernetes/management/apis/management.loft.sh/v1/projects";
const TENANTS: &str = "/kubernetes/management/apis/management.loft.sh/v1/namespaces/p-default/virtualclusterinstances";

/// A server with project `default`, and in it the tenant `demo`, which is ready.
fn server() -> Server {
    Server::start(|method, path, body| {
        let path = path.split('?').next().unwrap();
        let tenant = r#"{"metadata":{"name":"demo","namespace":"p-default"},"status":{"phase":"Ready"}}"#;
        match (method, path.strip_prefix("/kubernetes/management/apis/").unwrap_or(path)) {
            ("GET", "management.loft.sh/v1/projects") => (200, r#"{"items":[{"metadata":{"name":"default"}}]}"#.into()),
            ("GET", "management.loft.sh/v1/projects/default") => (200, r#"{"metadata":{"name":"default"}}"#.into()),
            ("GET", "management.loft.sh/v1/users") => (200, r#"{"items":[{"metadata":{"name":"bob"}}]}"#.into()),
            ("GET", "management.loft.sh/v1/users/bob") => (200, r#"{"metadata":{"name":"bob"}}"#.into()),
            ("GET", "management.loft.sh/v1/teams/ops") => (403, refusal(403, "Forbidden", "not for you")),
            ("GET", "management.loft.sh/v1/clusterroletemplates/custom") => (200, r#"{"metadata":{"name":"custom"}}"#.into()),
            ("GET", p) if p.ends_with("/virtualclusterinstances") => (200, format!(r#"{{"items":[{tenant}]}}"#)),
            ("GET", p) if p.ends_with("/virtualclusterinstances/demo") => (200, tenant.into()),
            ("POST", p) if p.ends_with("/virtualclusterinstances") && body.contains("\"demo\"") => {
                (409, refusal(409, "AlreadyExists", "virtualclusterinstances demo already exists"))
            }
            ("POST", "management.loft.sh/v1/ownedaccesskeys") => {
                let spec = body.split_once("\"spec\":").map_or("{}", |(_, rest)| rest.trim_end_matches('}'));
                (201, format!(r#"{{"metadata":{{"name":"k1"}},"spec":{},"key":"hak1.k1.secret"}}}}"#, spec.trim_end_matches(',')))
            }
            ("GET", "management.loft.sh/v1/ownedaccesskeys") => (
                200,
                r#"{"items":[{"metadata":{"name":"k1"},"spec":{"user":"ann","disabled":true}}]}"#.into(),
            ),
            ("POST", "authorization.k8s.io/v1/selfsubjectaccessreviews") if body.contains("\"get\"") => {
                (201, r#"{"status":{"allowed":true,"reason":"role x"}}"#.into())
            }
            ("POST", "authorization.k8s.io/v1/selfsubjectaccessreviews") => {
                (201, r#"{"status":{"allowed":false,"reason":"no role of user \"ann\" allows delete"}}"#.into())
            }
            ("PUT", "management.loft.sh/v1/projects/default") if body.contains("loft-management-project-viewer") => (200, body.into()),
            ("PUT", "management.loft.sh/v1/projects/default") => (409, refusal(409, "Conflict", "it has been modified")),
            ("GET", "hanse.dev/v1/regions") => (200, r#"{"items":[{"metadata":{"name":"eu"}},{"metadata":{"name":"us"}}]}"#.into()),
            ("GET", "hanse.dev/v1/servers") => (
                200,
                r#"{"items":[{"metadata":{"name":"eu-1"},"spec":{"id":1,"region":"eu","gateway":"https://127.0.1.1:8443"}}]}"#.into(),
            ),
            _ => (404, refusal(404, "NotFound", "not found")),
        }
    })
}

#[test]
fn wrong_usage_is_told_on_standard_error_with_code_2() {
    let user = User::new();
    for args in [
        &["craete", "x"][..],
        &["create"],
        &["create", "a", "--region", "eu", "--cluster", "c"],
        &["create", "a", "--gpus", "65"],
        &["connect"],
        &["list", "-o", "xml"],
        &["login", "http://plain"],
        &["key", "create", "--user", "a", "--team", "b"],
        &["key", "create", "--ttl", "1w"],
        &["key", "create", "--only-tenant", "demo"],
        &["members", "add"],
        &["auth", "can-i", "get"],
        &["up", "--regions", "eu,EU"],
        &["up", "--regions", "eu,eu"],
    ] {
        let run = user.run(args);
        assert_eq!((run.code, run.out.as_str()), (2, ""), "{args:?}: {run:?}");
        assert!(run.err.contains("error:"), "{args:?}: {run:?}");
    }
    assert!(
        user.run(&["craete"]).err.contains("create"),
        "a slip of the finger is recognised"
    );
    assert!(!user.path("h").exists(), "nothing is left behind");
}

#[test]
fn who_is_not_logged_in_is_told_how_to() {
    let user = User::new();
    for args in [
        &["status"][..],
        &["list"],
        &["create", "a"],
        &["connect", "a"],
        &["delete", "a"],
    ] {
        let run = user.run(args);
        assert_eq!(run.code, 4, "{args:?}: {run:?}");
        assert!(
            run.err.contains("not logged in") && run.err.contains("hanse login URL") && run.err.contains("hanse up"),
            "{run:?}"
        );
    }
    assert_eq!(user.run(&["logout"]).code, 0);
}

#[test]
fn a_server_that_does_not_run_is_told_with_its_address() {
    let user = User::new();
    let server = server();
    user.log_in(&server);
    let logins = user.read(".config/hanse/config.toml");
    let closed = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    user.write(
        ".config/hanse/config.toml",
        &logins.replace(&server.url, &format!("https://{closed}")),
    );
    let run = user.run(&["status"]);
    assert_eq!(run.code, 6, "{run:?}");
    assert!(
        run.err.contains(&closed.to_string()) && run.err.contains("connection refused") && run.err.contains("hanse up"),
        "{run:?}"
    );
    let run = user.run(&["login", &format!("https://{closed}")]);
    assert_eq!(run.code, 6, "refused before any key is asked for: {run:?}");
}

#[test]
fn login_keeps_the_key_to_the_user() {
    let user = User::new();
    let server = server();
    let ca = user.write("ca.pem", &server.ca);
    let ca = ca.to_str().unwrap();
    let run = user.run_with_stdin(&["login", &server.url], GOOD_KEY);
    assert_eq!(run.code, 1, "{run:?}");
    assert!(
        run.err.contains("not trusted") && run.err.contains("--ca-file"),
        "{run:?}"
    );
    let run = user.run_with_stdin(&["login", &server.url, "--ca-file", ca], "hak1.test.wrong");
    assert_eq!(run.code, 4, "{run:?}");
    assert!(
        run.err.contains("does not accept the access key") && !run.err.contains("hak1.test.wrong"),
        "{run:?}"
    );
    assert!(
        !user.path(".config/hanse/config.toml").exists(),
        "a login that failed leaves nothing"
    );
    let run = user.run_with_stdin(&["login", &server.url, "--ca-file", ca], "\n");
    assert_eq!(run.code, 2, "{run:?}");
    user.log_in(&server);
    assert!(is_private(&user.path(".config/hanse/config.toml")));
    let run = user.run_with_stdin(&["login", &server.url, "--insecure"], GOOD_KEY);
    assert_eq!(run.code, 0, "{run:?}");
    assert!(run.err.contains("warning"), "{run:?}");
    let run = user.run(&["logout"]);
    assert_eq!(run.code, 0, "{run:?}");
    assert!(!user.read(".config/hanse/config.toml").contains("hak1"));
    assert_eq!(user.run(&["list"]).code, 4);
}

#[test]
fn a_revoked_key_asks_for_a_new_login() {
    let user = User::new();
    let server = server();
    user.log_in(&server);
    let logins = user.read(".config/hanse/config.toml");
    user.write(
        ".config/hanse/config.toml",
        &logins.replace(GOOD_KEY, "hak1.test.revoked"),
    );
    let run = user.run(&["list"]);
    assert_eq!(run.code, 4, "{run:?}");
    assert!(
        run.err.contains("does not accept the access key") && run.err.contains("hanse login"),
        "{run:?}"
    );
    assert!(!run.err.contains("revoked"), "the key is not shown: {run:?}");
}

#[test]
fn unknown_things_are_answered_with_the_known_ones() {
    let user = User::new();
    let server = server();
    user.log_in(&server);
    for (args, code, says) in [
        (
            &["create", "a", "--project", "nope"][..],
            3,
            "the projects are: default",
        ),
        (&["list", "--project", "nope"], 3, "the projects are: default"),
        (&["create", "a", "--region", "mars"], 3, "the regions are: eu, us"),
        (&["connect", "nope"], 3, "there are: demo"),
        (&["get", "nope"], 3, "there are: demo"),
        (&["delete", "nope"], 3, "there are: demo"),
        (&["get", "../../x"], 3, "there are: demo"),
        (&["create", "Not_A_Label"], 2, "RFC 1123 label"),
        (&["create", "demo"], 5, "exists already"),
        (&["kill", "eu"], 3, "hanse up"),
        (&["start", "eu"], 3, "hanse up"),
    ] {
        let run = user.run(args);
        assert_eq!(run.code, code, "{args:?}: {run:?}");
        assert!(run.err.contains(says), "{args:?}: {run:?}");
    }
    let posts: Vec<String> = server
        .requests()
        .into_iter()
        .filter(|r| r.starts_with("POST"))
        .collect();
    assert_eq!(
        posts,
        [format!("POST {TENANTS}")],
        "only the one that could not be known before"
    );
    assert!(
        server
            .requests()
            .iter()
            .any(|r| r.starts_with(&format!("GET {PROJECTS}/nope")))
    );
}

#[test]
fn results_go_to_standard_output_and_have_no_colours_in_a_pipe() {
    let user = User::new();
    let server = server();
    user.log_in(&server);
    let run = user.run(&["list"]);
    assert_eq!(run.code, 0, "{run:?}");
    assert!(
        run.out.starts_with("NAME") && run.out.contains("demo   default") && !run.out.contains('\u{1b}'),
        "{run:?}"
    );
    let run = user.run(&["list", "--project", "default", "-o", "json"]);
    assert!(
        run.out.contains("\"phase\": \"Ready\"") && run.err.is_empty(),
        "{run:?}"
    );
    let run = user.run(&["get", "demo", "-o", "yaml"]);
    assert!(run.out.contains("status:\n  phase: Ready\n"), "{run:?}");
    let run = user.run(&["completion", "bash"]);
    assert!(run.out.contains("_hanse()") && run.code == 0);
    let run = user.run(&["version"]);
    assert!(
        run.out.starts_with(&format!("hanse {}\n", env!("CARGO_PKG_VERSION"))) && run.code == 0,
        "{run:?}"
    );
}

#[test]
fn keys_rights_and_members() {
    let user = User::new();
    let server = server();
    user.log_in(&server);
    // The key alone goes to standard output, for `> file`.
    let run = user.run(&["key", "create", "k1", "--ttl", "30d", "--only-project", "x"]);
    assert_eq!((run.code, run.out.as_str()), (0, "hak1.k1.secret\n"), "{run:?}");
    assert!(
        run.err.contains("shown only now") && !run.err.contains("secret"),
        "{run:?}"
    );
    let run = user.run(&["key", "list"]);
    assert!(run.code == 0 && run.out.contains("k1     ann     Disabled"), "{run:?}");
    let run = user.run(&["key", "revoke", "nope"]);
    assert!(run.code == 3 && run.err.contains("hanse key list"), "{run:?}");
    let run = user.run(&["auth", "can-i", "get", "tenant/demo"]);
    assert_eq!((run.code, run.out.as_str()), (0, "yes\n"), "{run:?}");
    let run = user.run(&["auth", "can-i", "delete", "tenants"]);
    assert_eq!((run.code, run.out.as_str()), (4, "no\n"), "{run:?}");
    assert!(run.err.contains("no role of user"), "{run:?}");
    let run = user.run(&["auth", "why", "delete", "tenants"]);
    assert!(run.code == 0 && run.out.starts_with("no: no role"), "{run:?}");
    let run = user.run(&["auth", "why", "get", "pods"]);
    assert!(run.code == 2 && run.err.contains("the kinds are: tenant"), "{run:?}");
    let run = user.run(&["members", "add", "--user", "bob", "--role", "viewer"]);
    assert!(
        run.code == 0 && run.out.contains("bob is a member of default"),
        "{run:?}"
    );
    let run = user.run(&["members", "add", "--team", "ops", "--role", "custom"]);
    assert_eq!(run.code, 5, "somebody else was faster each time: {run:?}");
    let run = user.run(&["members", "add", "--user", "bbo"]);
    assert!(run.code == 3 && run.err.contains("the users are: bob"), "{run:?}");
    let run = user.run(&["members", "add", "--user", "bob", "--role", "king"]);
    assert!(run.code == 3 && run.err.contains("no role \"king\""), "{run:?}");
    let puts = server.requests().iter().filter(|r| r.starts_with("PUT")).count();
    assert_eq!(puts, 6, "one, and a bounded number of tries");
    let run = user.run(&["members", "remove", "--user", "bob", "--project", "nope"]);
    assert!(
        run.code == 3 && run.err.contains("the projects are: default"),
        "{run:?}"
    );
}

#[test]
fn colours_only_on_a_terminal_and_never_with_no_color() {
    let user = User::new();
    let server = server();
    user.log_in(&server);
    let on_terminal = |no_color: bool| {
        // script(1) gives the command a terminal.
        let mut command = user.command(&[]);
        let line = format!("{} list", env!("CARGO_BIN_EXE_hanse"));
        let mut script = std::process::Command::new("script");
        script
            .args(["-qec", &line, "/dev/null"])
            .env_clear()
            .env("TERM", "xterm")
            .stdin(std::process::Stdio::null());
        for (name, value) in command.env("SHELL", "/bin/sh").get_envs() {
            script.env(name, value.unwrap());
        }
        if no_color {
            script.env("NO_COLOR", "1");
        }
        script.output().map(support::finish)
    };
    let Ok(coloured) = on_terminal(false) else {
        eprintln!("script(1) is not there: the terminal's side is not tested");
        return;
    };
    assert!(coloured.out.contains("\u{1b}[32mReady"), "{coloured:?}");
    assert!(!on_terminal(true).unwrap().out.contains('\u{1b}'));
}

#[test]
fn connect_and_disconnect_change_only_their_own_entries() {
    let user = User::new();
    let server = server();
    user.log_in(&server);
    let before = "# mine\napiVersion: v1\nkind: Config\ncurrent-context: kind-a\ncontexts:\n- name: kind-a\n  context: {cluster: a, user: a}\n";
    user.write(".kube/config", before);
    // The tenant's API does not answer in this miniature, but the tenant says Ready.
    let run = user.run(&["connect", "demo"]);
    assert_eq!(run.code, 0, "{run:?}");
    let config = user.read(".kube/config");
    assert!(
        config.contains("current-context: hanse_demo_default\n") && config.starts_with("# mine\n"),
        "{config}"
    );
    assert!(
        config.contains("server: https://127.0.1.1:8443/kubernetes/project/default/virtualcluster/demo"),
        "{config}"
    );
    assert!(is_private(&user.path(".kube/config")));
    let run = user.run(&["disconnect"]);
    assert_eq!(run.code, 0, "{run:?}");
    assert!(run.err.contains("back to context kind-a"), "{run:?}");
    let run = user.run(&["disconnect"]);
    assert!(run.code == 0 && run.err.contains("nothing to do"), "{run:?}");
    let run = user.run(&["connect", "--management", "--print"]);
    assert!(
        run.out.contains("current-context: hanse_management") && run.out.contains("/kubernetes/management"),
        "{run:?}"
    );
    assert!(
        !user.read(".kube/config").contains("hanse_management"),
        "--print changes nothing"
    );
    let run = user.run(&["logout"]);
    assert_eq!(run.code, 0, "{run:?}");
    let after = user.read(".kube/config");
    assert!(!after.contains("hanse") && !after.contains("hak1"), "{after}");
    assert!(
        after.contains("- name: kind-a\n  context: {cluster: a, user: a}\n"),
        "{after}"
    );
}

#[test]
fn a_broken_kubeconfig_is_left_alone() {
    let user = User::new();
    let server = server();
    user.log_in(&server);
    user.write(".kube/config", "contexts: [\n");
    let run = user.run(&["connect", "demo"]);
    assert_eq!(run.code, 1, "{run:?}");
    assert!(
        run.err.contains(".kube/config") && run.err.contains("left as it is"),
        "{run:?}"
    );
    assert_eq!(user.read(".kube/config"), "contexts: [\n");
    assert!(!user.path(".kube/config.lock").exists());
}

#[test]
fn configurations_are_checked_with_every_fault() {
    let user = User::new();
    let file = user.write("front-door.toml", "listen = \"127.0.0.1:1\"\nca = \"x\"\n");
    let file = file.to_str().unwrap();
    let run = user.run(&["config", "check", file]);
    assert_eq!(run.code, 2, "{run:?}");
    assert!(run.err.contains("backend: needs at least one"), "{run:?}");
    let good = "listen = \"127.0.0.1:1\"\nca = \"x\"\n[[backend]]\nname = \"a\"\naddress = \"127.0.0.1:2\"\n";
    user.write("front-door.toml", good);
    assert_eq!(user.run(&["config", "check", file]).code, 0);
    assert_eq!(
        user.run(&["config", "dump", file]).out.replace('\n', ""),
        good.replace('\n', "")
    );
    assert_eq!(user.run(&["config", "check", "/nowhere"]).code, 1);
}

#[test]
fn up_says_what_is_missing_and_leaves_nothing() {
    let user = User::new();
    let run = user.run(&["up"]);
    assert_eq!(run.code, 1, "{run:?}");
    assert!(
        run.err.contains("kube-apiserver") && run.err.contains("cargo xtask kube-tools"),
        "{run:?}"
    );
    assert!(!user.path("h").exists());
    for name in ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kwok"] {
        user.write(&format!("tools/bin/{name}"), "");
    }
    // An address block that no other test uses; its front door is taken.
    let taken = std::net::TcpListener::bind("127.251.0.1:8443").unwrap();
    let output = user
        .command(&["up", "--address-block", "251"])
        .env("HANSE_KUBE_TOOLS", user.path("tools"))
        .output();
    let run = support::finish(output.unwrap());
    assert_eq!(run.code, 5, "{run:?}");
    let own = format!("pid {}", std::process::id());
    assert!(
        run.err.contains("127.251.0.1:8443") && run.err.contains("front door") && run.err.contains(&own),
        "{run:?}"
    );
    assert!(!user.path("h").exists());
    drop(taken);
    let run = user.run(&["down"]);
    assert!(run.code == 0 && run.err.contains("nothing to do"), "{run:?}");
}
