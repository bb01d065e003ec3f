//! Keys, certificates and configurations of a new installation. The plan is written last: as long as it is missing,
//! nothing has been started and everything may be made again.

use super::installation::Installation;
use super::layout::{Layout, Plan, Region};
use crate::error::{Error, Result};
use crate::files::{self, PRIVATE, PUBLIC};
use hanse_api::Timestamp;
use hanse_runtime::pki::{Ca, LeafSpec, PkiError, sha256_hex};
use hanse_runtime::rng::Rng;
use hanse_runtime::seal::Sealer;
use std::net::IpAddr;
use std::path::Path;

/// Ten years: an installation on one machine outlives none of its certificates.
const DAYS: u32 = 3650;
/// Public id of the administrator's access key.
const ADMIN_KEY_ID: &str = "admin";
/// What every access key begins with (gateway/src/authn/bearer.rs).
const ACCESS_KEY_PREFIX: &str = "hak1";

/// Where randomness and time come from.
pub(crate) struct Source<'a> {
    pub(crate) rng: &'a dyn Rng,
    pub(crate) now: Timestamp,
}

fn pki_fault(error: PkiError) -> Error {
    Error::failed(format!("cannot make certificates: {error}"))
}

/// Makes everything that `plan` needs.
pub(crate) fn generate(layout: &Layout, plan: &Plan, source: &Source<'_>) -> Result<Installation> {
    refuse_data_without_plan(layout, plan)?;
    files::create_dir(layout.home(), true)?;
    files::remove_dir(&layout.pki(""))?;
    files::create_dir(&layout.pki(""), true)?;
    let ca = Ca::generate("Hanse", DAYS, source.now).map_err(pki_fault)?;
    files::write(&layout.pki("ca.pem"), ca.cert_pem().as_bytes(), PUBLIC)?;
    files::write(&layout.pki("ca-key.pem"), ca.key_pair().key.as_bytes(), PRIVATE)?;
    files::write(
        &layout.pki("seal.key"),
        Sealer::generate(source.rng).as_slice(),
        PRIVATE,
    )?;
    let secret = source.rng.token();
    let key = format!("{ACCESS_KEY_PREFIX}.{ADMIN_KEY_ID}.{secret}\n");
    files::write(&layout.pki("admin.key"), key.as_bytes(), PRIVATE)?;
    files::write(
        &layout.pki("admin.sha256"),
        sha256_hex(secret.as_bytes()).as_bytes(),
        PUBLIC,
    )?;
    for region in plan.regions() {
        let leaf = ca.issue(&server_leaf(plan, &region), source.now).map_err(pki_fault)?;
        let name = region.server();
        files::write(&layout.pki(&format!("{name}.pem")), leaf.cert.as_bytes(), PUBLIC)?;
        files::write(&layout.pki(&format!("{name}-key.pem")), leaf.key.as_bytes(), PRIVATE)?;
    }
    let installation = Installation {
        layout: layout.clone(),
        plan: plan.clone(),
    };
    forget_configurations(&installation)?;
    complete(&installation)?;
    let text = toml::to_string(plan).map_err(|e| Error::failed(format!("cannot write the plan: {e}")))?;
    files::write(&layout.plan(), text.as_bytes(), PUBLIC)?;
    Ok(installation)
}

/// An interrupted start may have written configurations that name the keys of its own, which are gone. Without a plan nothing
/// was ever started, so nobody has edited them.
fn forget_configurations(installation: &Installation) -> Result<()> {
    let Installation { layout, plan } = installation;
    for region in &plan.regions {
        files::remove(&layout.region(region, "server.toml"))?;
        files::remove(&layout.region(region, "agent.toml"))?;
    }
    files::remove(&layout.front_door())
}

/// New keys over old data would make it unreadable.
fn refuse_data_without_plan(layout: &Layout, plan: &Plan) -> Result<()> {
    for region in &plan.regions {
        let data = layout.region(region, "server");
        if std::fs::read_dir(&data).is_ok_and(|mut entries| entries.next().is_some()) {
            let message = format!(
                "{} holds data, but {} is missing",
                data.display(),
                layout.plan().display()
            );
            return Err(
                Error::failed(message).hint("restore that file, or remove the installation with `hanse down --delete`")
            );
        }
    }
    Ok(())
}

/// Writes the configurations that are missing; those that are there stay, they may have been edited.
pub(crate) fn complete(installation: &Installation) -> Result<()> {
    let Installation { layout, plan } = installation;
    for file in ["ca.pem", "ca-key.pem", "seal.key", "admin.key", "admin.sha256"] {
        if !layout.pki(file).is_file() {
            return Err(Error::failed(format!("{} is missing", layout.pki(file).display()))
                .hint("restore it; without it the data cannot be used (`hanse down --delete` removes all)"));
        }
    }
    let hash = files::read_required(&layout.pki("admin.sha256"))?;
    for region in plan.regions() {
        for dir in ["server", "agent", "log", "run"] {
            files::create_dir(&layout.region(&region.name, dir), dir != "log")?;
        }
        write_missing(&layout.region(&region.name, "server.toml"), || {
            server_toml(layout, plan, &region, hash.trim())
        })?;
        write_missing(&layout.region(&region.name, "agent.toml"), || {
            agent_toml(layout, plan, &region)
        })?;
    }
    for dir in ["run", "log"] {
        files::create_dir(&layout.home().join(dir), false)?;
    }
    write_missing(&layout.front_door(), || front_door_toml(layout, plan))
}

fn write_missing(path: &Path, text: impl FnOnce() -> String) -> Result<()> {
    if path.exists() {
        Ok(())
    } else {
        files::write(path, text().as_bytes(), PUBLIC)
    }
}

fn server_leaf(plan: &Plan, region: &Region) -> LeafSpec {
    LeafSpec {
        common_name: region.server(),
        dns: vec!["localhost".to_owned()],
        ips: vec![IpAddr::V4(region.ip), plan.front_door().ip()],
        uris: vec![format!("hanse://server/{}", region.server())],
        client: true,
        server: true,
        days: DAYS,
        ..LeafSpec::default()
    }
}

/// A string as TOML.
fn quote(text: &str) -> String {
    toml::Value::from(text).to_string()
}

fn path(path: &Path) -> String {
    // `Layout::find` takes only homes that are UTF-8.
    quote(&path.to_string_lossy())
}

const HEAD: &str =
    "# Written by `hanse up` when it was missing; edits are kept. Check it with `hanse config check FILE`.\n";

fn server_toml(layout: &Layout, plan: &Plan, region: &Region, admin_sha256: &str) -> String {
    let name = region.server();
    let mut text = format!(
        "{HEAD}name = {}\nid = {}\nregion = {}\ndata_dir = {}\nlog_format = \"json\"\n",
        quote(&name),
        region.id,
        quote(&region.name),
        path(&layout.region(&region.name, "server")),
    );
    text.push_str(&format!(
        "\n[tls]\nca = {}\nca_key = {}\ncert = {}\nkey = {}\nseal_key = {}\n",
        path(&layout.pki("ca.pem")),
        path(&layout.pki("ca-key.pem")),
        path(&layout.pki(&format!("{name}.pem"))),
        path(&layout.pki(&format!("{name}-key.pem"))),
        path(&layout.pki("seal.key")),
    ));
    text.push_str(&format!(
        "\n[gateway]\nlisten = \"{}\"\nexternal_url = \"{}\"\n\n[raft]\nlisten = \"{}\"\n\n[tunnel]\nlisten = \"{}\"\n",
        region.gateway(),
        plan.url(),
        region.raft(),
        region.tunnel(),
    ));
    text.push_str(&format!(
        "\n[bootstrap]\nadmin_key_id = {}\nadmin_key_sha256 = {}\n",
        quote(ADMIN_KEY_ID),
        quote(admin_sha256)
    ));
    for member in plan.regions() {
        text.push_str(&format!(
            "\n[[member]]\nid = {}\nname = {}\nregion = {}\ngateway = \"{}\"\nraft = \"{}\"\ntunnel = \"{}\"\n",
            member.id,
            quote(&member.server()),
            quote(&member.name),
            member.url(),
            member.raft(),
            member.tunnel(),
        ));
    }
    text
}

fn agent_toml(layout: &Layout, plan: &Plan, region: &Region) -> String {
    let mut text = format!(
        "{HEAD}cluster = {name}\ndata_dir = {}\nregion = {name}\nca_file = {}\nenrolment_token_file = {}\n\
         listen_address = \"{}\"\nlog_format = \"json\"\n\n[simulation]\n\
         # `kubectl exec` in a simulated pod runs on this machine, without a sandbox: for development only.\n\
         exec_on_host = true\n",
        path(&layout.region(&region.name, "agent")),
        path(&layout.pki("ca.pem")),
        path(&enrolment_token(layout, &region.name)),
        region.ip,
        name = quote(&region.name),
    );
    for server in plan.regions() {
        text.push_str(&format!(
            "\n[[server]]\nname = {}\nregion = {}\naddress = \"{}\"\n",
            quote(&server.server()),
            quote(&server.name),
            server.tunnel(),
        ));
    }
    text
}

/// Where the agent of `region` finds its one-time token.
pub(crate) fn enrolment_token(layout: &Layout, region: &str) -> std::path::PathBuf {
    layout.region(region, "run/enrolment.token")
}

fn front_door_toml(layout: &Layout, plan: &Plan) -> String {
    let mut text = format!(
        "{HEAD}listen = \"{}\"\nca = {}\n",
        plan.front_door(),
        path(&layout.pki("ca.pem"))
    );
    for region in plan.regions() {
        text.push_str(&format!(
            "\n[[backend]]\nname = {}\naddress = \"{}\"\n",
            quote(&region.name),
            region.gateway()
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::front_door::config::FrontDoorConfig;
    use hanse_agent::config::AgentConfig;
    use hanse_runtime::config::load;
    use hanse_runtime::rng::SeededRng;
    use hanse_server::ServerConfig;
    use std::os::unix::fs::PermissionsExt as _;

    const NOW: Timestamp = Timestamp::from_millis(1_790_000_000_000);

    fn generated(dir: &Path) -> Installation {
        let layout = Layout::find(Some(dir)).unwrap();
        let plan = Plan::new(&["eu".into(), "us".into(), "ap".into()], 3).unwrap();
        generate(
            &layout,
            &plan,
            &Source {
                rng: &SeededRng::new(1),
                now: NOW,
            },
        )
        .unwrap()
    }

    #[test]
    fn every_process_takes_its_configuration() {
        let dir = tempfile::tempdir().unwrap();
        let installation = generated(dir.path());
        let layout = &installation.layout;
        for region in installation.plan.regions() {
            let server: ServerConfig = load(&layout.region(&region.name, "server.toml")).unwrap();
            assert_eq!(
                (server.name, server.id, server.members.len()),
                (region.server(), region.id, 3)
            );
            assert_eq!(server.gateway.external_url, "https://127.3.0.1:8443");
            let key = installation.admin_key().unwrap();
            let secret = key.rsplit('.').next().unwrap();
            assert_eq!(
                server.bootstrap.admin_key_sha256.unwrap(),
                sha256_hex(secret.as_bytes())
            );
            let agent: AgentConfig = load(&layout.region(&region.name, "agent.toml")).unwrap();
            assert_eq!((agent.cluster, agent.servers.len()), (region.name.clone(), 3));
            assert_eq!(agent.listen_address, IpAddr::V4(region.ip));
        }
        let door: FrontDoorConfig = load(&layout.front_door()).unwrap();
        assert_eq!(door.backends.len(), 3);
        assert!(Installation::load(layout).unwrap().is_some());
    }

    #[test]
    fn configurations_of_an_interrupted_start_do_not_outlive_its_keys() {
        let dir = tempfile::tempdir().unwrap();
        let layout = generated(dir.path()).layout;
        std::fs::remove_file(layout.plan()).unwrap();
        let plan = Plan::new(&["eu".into(), "us".into(), "ap".into()], 3).unwrap();
        let rng = SeededRng::new(2);
        generate(&layout, &plan, &Source { rng: &rng, now: NOW }).unwrap();
        let hash = files::read_required(&layout.pki("admin.sha256")).unwrap();
        let server: ServerConfig = load(&layout.region("eu", "server.toml")).unwrap();
        assert_eq!(server.bootstrap.admin_key_sha256.unwrap(), hash.trim());
    }

    #[test]
    fn secrets_are_private_and_in_no_configuration() {
        let dir = tempfile::tempdir().unwrap();
        let installation = generated(dir.path());
        let layout = &installation.layout;
        for file in ["ca-key.pem", "seal.key", "admin.key", "eu-1-key.pem"] {
            let mode = std::fs::metadata(layout.pki(file)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{file}");
        }
        let key = installation.admin_key().unwrap();
        for path in [
            layout.region("eu", "server.toml"),
            layout.region("eu", "agent.toml"),
            layout.front_door(),
        ] {
            assert!(
                !std::fs::read_to_string(&path)
                    .unwrap()
                    .contains(key.rsplit('.').next().unwrap())
            );
        }
    }

    #[test]
    fn a_half_made_installation_is_made_again_but_never_over_data() {
        let dir = tempfile::tempdir().unwrap();
        let installation = generated(dir.path());
        let layout = &installation.layout;
        std::fs::remove_file(layout.plan()).unwrap();
        std::fs::remove_file(layout.pki("seal.key")).unwrap();
        let again = generated(dir.path());
        assert!(again.layout.pki("seal.key").is_file());
        std::fs::remove_file(layout.plan()).unwrap();
        std::fs::write(layout.region("us", "server").join("CURRENT"), "x").unwrap();
        let plan = installation.plan.clone();
        let error = generate(
            layout,
            &plan,
            &Source {
                rng: &SeededRng::new(2),
                now: NOW,
            },
        )
        .unwrap_err();
        assert!(error.to_string().contains("holds data"), "{error}");
    }

    #[test]
    fn edited_configurations_stay_and_missing_ones_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let installation = generated(dir.path());
        let layout = &installation.layout;
        std::fs::write(layout.front_door(), "# mine\n").unwrap();
        let server = layout.region("eu", "server.toml");
        let before = std::fs::read_to_string(&server).unwrap();
        std::fs::remove_file(&server).unwrap();
        complete(&installation).unwrap();
        assert_eq!(std::fs::read_to_string(layout.front_door()).unwrap(), "# mine\n");
        assert_eq!(std::fs::read_to_string(&server).unwrap(), before);
        std::fs::remove_file(layout.pki("seal.key")).unwrap();
        assert!(complete(&installation).unwrap_err().to_string().contains("seal.key"));
    }
}
