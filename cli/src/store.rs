//! `hanse store`: etcd's flags and environment, read into what the store runs with. What is not supported is refused by name:
//! a flag that is silently ignored is a setting that silently does not hold.

use crate::error::{Error, Result};
use crate::output::Output;
use hanse_runtime::supervisor::chain;
use hanse_runtime::telemetry::{self, Format};
use hanse_server::store_role::{
    ClientListen, ClientTls, Compaction, ETCD_VERSION, PeerTls, StoreConfig, StorePeer, TlsFiles, run_store,
};
use std::collections::BTreeMap;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::time::Duration;

/// What the log filter is read from.
const LOG_FILTER: &str = "HANSE_LOG";
/// How etcd's environment variables begin.
const PREFIX: &str = "ETCD_";
/// Variables of that prefix that are no flags of etcd, and change nothing here.
const IGNORED_VARIABLES: [&str; 2] = ["ETCD_VERIFY", "ETCD_UNSUPPORTED_ARCH"];

/// Quota where none is given; etcd's.
const DEFAULT_QUOTA: u64 = 2 << 30;

/// What a flag is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// Takes a value.
    Value,
    /// May stand alone for true.
    Switch,
    /// Does what etcd does by default, and only that: the value that is accepted.
    Fixed(&'static str),
    /// The same, as a switch.
    FixedSwitch(&'static str),
}

/// Flags, their default and what they are, in the order of the help.
const FLAGS: [(&str, Form, &str, &str); 44] = [
    ("name", Form::Value, "default", "name of this member"),
    (
        "data-dir",
        Form::Value,
        "",
        "directory of its data [default: <name>.etcd]",
    ),
    (
        "listen-client-urls",
        Form::Value,
        "http://localhost:2379",
        "URLs to serve clients on",
    ),
    (
        "advertise-client-urls",
        Form::Value,
        "http://localhost:2379",
        "URLs that clients are told of",
    ),
    (
        "listen-peer-urls",
        Form::Value,
        "http://localhost:2380",
        "URL to serve members on; one",
    ),
    (
        "initial-advertise-peer-urls",
        Form::Value,
        "http://localhost:2380",
        "URL at which members find this one",
    ),
    (
        "initial-cluster",
        Form::Value,
        "",
        "all members as name=URL [default: this one]",
    ),
    ("initial-cluster-state", Form::Value, "new", "new or existing"),
    (
        "initial-cluster-token",
        Form::Value,
        "etcd-cluster",
        "tells clusters apart",
    ),
    (
        "heartbeat-interval",
        Form::Value,
        "100",
        "milliseconds between heartbeats",
    ),
    (
        "election-timeout",
        Form::Value,
        "1000",
        "milliseconds without a leader before an election",
    ),
    (
        "snapshot-count",
        Form::Value,
        "50000",
        "log entries that are kept behind the newest",
    ),
    ("auto-compaction-mode", Form::Value, "periodic", "periodic or revision"),
    (
        "auto-compaction-retention",
        Form::Value,
        "0",
        "age (hours or 30m) or number of revisions; 0: off",
    ),
    ("cert-file", Form::Value, "", "certificate for clients"),
    ("key-file", Form::Value, "", "its key"),
    ("trusted-ca-file", Form::Value, "", "authority of clients' certificates"),
    (
        "client-cert-auth",
        Form::Switch,
        "false",
        "refuse clients without a certificate",
    ),
    ("peer-cert-file", Form::Value, "", "certificate for members"),
    ("peer-key-file", Form::Value, "", "its key"),
    (
        "peer-trusted-ca-file",
        Form::Value,
        "",
        "authority of members' certificates",
    ),
    (
        "peer-client-cert-auth",
        Form::Switch,
        "false",
        "refuse members without a certificate; always so",
    ),
    ("log-level", Form::Value, "info", "debug, info, warn or error"),
    ("logger", Form::Fixed("zap"), "zap", "lines of JSON"),
    ("log-format", Form::Fixed("json"), "json", "lines of JSON"),
    (
        "log-outputs",
        Form::Fixed("default stderr"),
        "default",
        "standard error",
    ),
    (
        "quota-backend-bytes",
        Form::Value,
        "0",
        "bytes of keys and history before writes are refused; 0: 2 GiB, negative: no limit",
    ),
    ("max-txn-ops", Form::Fixed("128"), "128", "operations of a transaction"),
    (
        "max-request-bytes",
        Form::Fixed("1572864"),
        "1572864",
        "size of a request",
    ),
    ("pre-vote", Form::FixedSwitch("true"), "true", "ask before an election"),
    (
        "strict-reconfig-check",
        Form::Switch,
        "true",
        "change members only 5 s after a start; the quorum is minded in any case",
    ),
    (
        "enable-pprof",
        Form::FixedSwitch("false"),
        "false",
        "no profiles are served",
    ),
    (
        "auto-tls",
        Form::Switch,
        "false",
        "make up a certificate for clients if none is given",
    ),
    (
        "peer-auto-tls",
        Form::Switch,
        "false",
        "make up a certificate for members if none is given",
    ),
    (
        "force-new-cluster",
        Form::FixedSwitch("false"),
        "false",
        "not supported",
    ),
    ("metrics", Form::Fixed("basic"), "basic", "which metrics are served"),
    ("auth-token", Form::Fixed("simple"), "simple", "there are no users"),
    ("proxy", Form::Fixed("off"), "off", "not supported"),
    ("listen-metrics-urls", Form::Fixed(""), "", "not supported"),
    (
        "unsafe-no-fsync",
        Form::FixedSwitch("false"),
        "false",
        "every write is synced",
    ),
    (
        "max-snapshots",
        Form::Fixed("5"),
        "5",
        "files of snapshots; none are kept here",
    ),
    (
        "max-wals",
        Form::Fixed("5"),
        "5",
        "files of the log; kept by snapshot-count",
    ),
    (
        "grpc-keepalive-min-time",
        Form::Fixed("5s"),
        "5s",
        "how often clients may ping",
    ),
    ("discovery-srv", Form::Fixed(""), "", "not supported"),
];

fn refused(what: impl std::fmt::Display) -> Error {
    Error::usage(what.to_string()).hint("hanse store --help lists what is supported")
}

fn known(name: &str) -> Option<&'static (&'static str, Form, &'static str, &'static str)> {
    FLAGS.iter().find(|flag| flag.0 == name)
}

fn set(values: &mut BTreeMap<&'static str, String>, name: &str, value: &str, shown: &str) -> Result<()> {
    let Some((name, form, ..)) = known(name) else {
        return Err(refused(format!("{shown} is not supported by hanse store")));
    };
    let fine = match form {
        Form::Fixed(accepted) => value == *accepted || accepted.split(' ').any(|word| word == value),
        Form::FixedSwitch(accepted) => value == *accepted,
        Form::Switch => value == "true" || value == "false",
        Form::Value => true,
    };
    if !fine {
        let accepted = match form {
            Form::Fixed(accepted) | Form::FixedSwitch(accepted) => *accepted,
            Form::Switch | Form::Value => "true or false",
        };
        return Err(refused(format!(
            "{shown} cannot be {value:?}: hanse store knows only {accepted:?} there"
        )));
    }
    values.insert(name, value.to_owned());
    Ok(())
}

/// Flags go before variables, variables before defaults, as with etcd.
fn read(args: &[String], variables: impl Iterator<Item = (String, String)>) -> Result<BTreeMap<&'static str, String>> {
    let mut values = FLAGS.iter().map(|flag| (flag.0, flag.2.to_owned())).collect();
    for (name, value) in variables {
        let Some(flag) = name.strip_prefix(PREFIX) else {
            continue;
        };
        if IGNORED_VARIABLES.contains(&name.as_str()) {
            continue;
        }
        set(&mut values, &flag.to_lowercase().replace('_', "-"), &value, &name)?;
    }
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let Some(flag) = arg.strip_prefix("--").or_else(|| arg.strip_prefix('-')) else {
            return Err(refused(format!("{arg:?} is no flag")));
        };
        let (name, given) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (flag, None),
        };
        let shown = format!("--{name}");
        let alone = matches!(known(name), Some((_, Form::Switch | Form::FixedSwitch(_), ..)));
        let value = match given {
            Some(value) => value,
            None if alone || known(name).is_none() => "true".to_owned(),
            None => args
                .next()
                .cloned()
                .ok_or_else(|| refused(format!("{shown} needs a value")))?,
        };
        set(&mut values, name, &value, &shown)?;
    }
    Ok(values)
}

/// A URL of etcd's: only scheme, host and port.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Url {
    tls: bool,
    address: String,
}

fn url(flag: &str, text: &str) -> Result<Url> {
    let fault = |what: &str| refused(format!("--{flag}: {text:?} {what}"));
    let (scheme, rest) = text
        .trim()
        .split_once("://")
        .ok_or_else(|| fault("needs a scheme, such as http://127.0.0.1:2379"))?;
    let tls = match scheme {
        "http" => false,
        "https" => true,
        _ => return Err(fault("has a scheme other than http and https")),
    };
    let address = rest.trim_end_matches('/');
    let port = address.rsplit_once(':').map(|(_, port)| port.parse::<u16>());
    match port {
        Some(Ok(_)) if !address.contains('/') => Ok(Url {
            tls,
            address: address.to_owned(),
        }),
        _ => Err(fault("must be of the form scheme://host:port")),
    }
}

fn one_url(flag: &str, text: &str) -> Result<Url> {
    if text.contains(',') {
        return Err(refused(format!(
            "--{flag}: hanse store knows one URL only, found {text:?}"
        )));
    }
    url(flag, text)
}

struct Values(BTreeMap<&'static str, String>);

impl Values {
    fn get(&self, flag: &str) -> &str {
        self.0.get(flag).map_or("", String::as_str)
    }

    fn millis(&self, flag: &str) -> Result<Duration> {
        let number: u64 = self.number(flag)?;
        if number == 0 {
            return Err(refused(format!("--{flag} must be more than zero")));
        }
        Ok(Duration::from_millis(number))
    }

    fn number(&self, flag: &str) -> Result<u64> {
        let value = self.get(flag);
        value
            .parse()
            .map_err(|_| refused(format!("--{flag} must be a whole number, found {value:?}")))
    }

    fn tls(&self, side: &str, asked: &str) -> Result<Option<TlsFiles>> {
        let flag = |name: &str| format!("{side}{name}");
        let file = |name: &str| {
            Some(self.get(&flag(name)))
                .filter(|file| !file.is_empty())
                .map(PathBuf::from)
        };
        let ca = file("trusted-ca-file");
        if self.get(asked) == "true" && ca.is_none() {
            return Err(refused(format!("--{asked} needs --{}", flag("trusted-ca-file"))));
        }
        match (file("cert-file"), file("key-file")) {
            (Some(cert), Some(key)) => Ok(Some(TlsFiles { cert, key, ca })),
            (None, None) => Ok(None),
            _ => Err(refused(format!(
                "--{} and --{} go together",
                flag("cert-file"),
                flag("key-file")
            ))),
        }
    }

    fn compaction(&self) -> Result<Compaction> {
        let (mode, retention) = (self.get("auto-compaction-mode"), self.get("auto-compaction-retention"));
        let fault = || {
            refused(format!(
                "--auto-compaction-retention cannot be {retention:?} with mode {mode:?}"
            ))
        };
        match mode {
            _ if retention == "0" => Ok(Compaction::Off),
            "revision" => retention.parse().map(Compaction::Revision).map_err(|_| fault()),
            "periodic" => duration(retention).map(Compaction::Periodic).ok_or_else(fault),
            _ => Err(refused(format!(
                "--auto-compaction-mode must be periodic or revision, found {mode:?}"
            ))),
        }
    }

    fn quota(&self) -> Result<Option<u64>> {
        let given = self.get("quota-backend-bytes");
        let number: i64 = given
            .parse()
            .map_err(|_| refused(format!("--quota-backend-bytes must be a whole number, found {given:?}")))?;
        Ok(match number {
            0 => Some(DEFAULT_QUOTA),
            _ => u64::try_from(number).ok(),
        })
    }

    /// All members; this one by its own flags, which must agree.
    fn members(&self) -> Result<(Vec<StorePeer>, bool)> {
        let (name, own) = (self.get("name"), self.get("initial-advertise-peer-urls"));
        let own_url = one_url("initial-advertise-peer-urls", own)?;
        let listed = self.get("initial-cluster");
        let mut members = Vec::new();
        for entry in listed.split(',').filter(|entry| !entry.is_empty()) {
            let (peer, at) = entry
                .split_once('=')
                .ok_or_else(|| refused(format!("--initial-cluster: {entry:?} is not of the form name=URL")))?;
            let at = url("initial-cluster", at)?;
            if at.tls != own_url.tls {
                return Err(refused("--initial-cluster mixes http and https: members must agree"));
            }
            members.push(StorePeer {
                name: peer.trim().to_owned(),
                address: at.address,
            });
        }
        if listed.is_empty() {
            members.push(StorePeer {
                name: name.to_owned(),
                address: own_url.address.clone(),
            });
        }
        let names: std::collections::BTreeSet<_> = members.iter().map(|peer| &peer.name).collect();
        if names.len() != members.len() {
            return Err(refused(
                "--initial-cluster names a member twice: every member has one peer URL",
            ));
        }
        let me = members.iter().find(|peer| peer.name == name);
        match me {
            Some(me) if me.address == own_url.address => Ok((members, own_url.tls)),
            Some(_) => Err(refused(format!(
                "--initial-cluster has another URL for {name} than --initial-advertise-peer-urls ({own})"
            ))),
            None => Err(refused(format!("--initial-cluster does not name this member, {name}"))),
        }
    }

    fn clients(&self, tls: bool) -> Result<Vec<ClientListen>> {
        let flag = "listen-client-urls";
        let listen = |text: &str| {
            let found = url(flag, text)?;
            if found.tls && !tls {
                return Err(refused(format!(
                    "--{flag} has https but there is neither --cert-file and --key-file nor --auto-tls"
                )));
            }
            Ok(ClientListen {
                address: found.address,
                tls: found.tls,
            })
        };
        self.get(flag).split(',').map(listen).collect()
    }

    fn config(&self) -> Result<StoreConfig> {
        let (heartbeat, election) = (self.millis("heartbeat-interval")?, self.millis("election-timeout")?);
        if heartbeat * 5 > election {
            return Err(refused(
                "--election-timeout must be five times --heartbeat-interval or more",
            ));
        }
        let (members, secure) = self.members()?;
        let client_tls = match self.tls("", "client-cert-auth")? {
            Some(files) => Some(ClientTls::Files(files)),
            None => (self.get("auto-tls") == "true").then_some(ClientTls::Auto),
        };
        let peer_files = self.tls("peer-", "peer-client-cert-auth")?;
        let peer_tls = match (secure, peer_files) {
            (false, _) => PeerTls::Open,
            (true, Some(files)) if files.ca.is_some() => PeerTls::Files(files),
            (true, None) if self.get("peer-auto-tls") == "true" => PeerTls::Auto,
            (true, _) => {
                let needs = "--peer-cert-file, --peer-key-file and --peer-trusted-ca-file, or --peer-auto-tls";
                return Err(refused(format!(
                    "https peer URLs need {needs}: members check each other"
                )));
            }
        };
        let peer_listen = one_url("listen-peer-urls", self.get("listen-peer-urls"))?;
        if peer_listen.tls != secure {
            return Err(refused(
                "--listen-peer-urls and --initial-advertise-peer-urls differ in their scheme",
            ));
        }
        let state = self.get("initial-cluster-state");
        if state != "new" && state != "existing" {
            return Err(refused(format!(
                "--initial-cluster-state must be new or existing, found {state:?}"
            )));
        }
        let name = self.get("name");
        let data_dir = match self.get("data-dir") {
            "" => PathBuf::from(format!("{name}.etcd")),
            given => PathBuf::from(given),
        };
        Ok(StoreConfig {
            name: name.to_owned(),
            data_dir,
            token: self.get("initial-cluster-token").to_owned(),
            members,
            existing: state == "existing",
            strict: self.get("strict-reconfig-check") == "true",
            peer_listen: peer_listen.address,
            peer_tls,
            clients: self.clients(client_tls.is_some())?,
            advertise: self
                .get("advertise-client-urls")
                .split(',')
                .map(str::to_owned)
                .collect(),
            client_tls,
            heartbeat,
            election,
            snapshot_every: self.number("snapshot-count")?.max(1),
            compaction: self.compaction()?,
            quota: self.quota()?,
        })
    }
}

/// Go's notation with one unit; a bare number means hours.
fn duration(text: &str) -> Option<Duration> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits.parse().ok()?;
    match &text[digits.len()..] {
        "" | "h" => Some(Duration::from_secs(number.checked_mul(3600)?)),
        "m" => Some(Duration::from_secs(number.checked_mul(60)?)),
        "s" => Some(Duration::from_secs(number)),
        "ms" => Some(Duration::from_millis(number)),
        _ => None,
    }
}

fn version() -> String {
    let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
    let arch = if arch == "x86_64" { "amd64" } else { arch };
    let own = env!("CARGO_PKG_VERSION");
    format!(
        "etcd Version: {ETCD_VERSION}\nGit SHA: hanse-{own}\nGo Version: none (Hanse {own})\nGo OS/Arch: {os}/{arch}\n"
    )
}

fn help() -> String {
    let mut text =
        "The replicated store alone, in the place of etcd.\n\nUsage: hanse store [FLAGS]\n\nEvery flag is also an \
environment variable: --data-dir is ETCD_DATA_DIR. Flags of etcd that are not listed are refused.\n\n"
            .to_owned();
    for (name, form, default, what) in FLAGS {
        let only = match form {
            Form::Fixed(_) | Form::FixedSwitch(_) => "; only the default",
            Form::Value | Form::Switch => "",
        };
        text.push_str(&format!("  --{name} ({default:?}{only})\n        {what}\n"));
    }
    text
}

/// The log's filter is read from the environment, which a process may change only of its successor.
fn with_log_level(level: &str, args: &[String]) -> Result<()> {
    let filter = match level {
        "info" => return Ok(()),
        "debug" => "debug,openraft=info,h2=info,hyper=info,tower=info,rustls=info",
        "warn" => "warn,openraft=error",
        "error" | "panic" | "fatal" => "error",
        other => {
            return Err(refused(format!(
                "--log-level must be debug, info, warn or error, found {other:?}"
            )));
        }
    };
    if std::env::var_os(LOG_FILTER).is_some() {
        return Ok(());
    }
    let program = std::env::current_exe().map_err(|e| Error::failed(format!("cannot find this program: {e}")))?;
    let failed = std::process::Command::new(program)
        .arg("store")
        .args(args)
        .env(LOG_FILTER, filter)
        .exec();
    Err(Error::failed(format!(
        "cannot start again with the log level: {failed}"
    )))
}

/// Runs `hanse store`.
pub(crate) fn run(args: &[String], output: &Output) -> Result<()> {
    match args.first().map(|first| first.trim_start_matches('-')) {
        Some("version") => return output.print(&version()),
        Some("help" | "h") => return output.print(&help()),
        _ => {}
    }
    let values = Values(read(args, std::env::vars())?);
    let config = values.config()?;
    with_log_level(values.get("log-level"), args)?;
    telemetry::init(Format::Json);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Error::failed(format!("cannot start threads: {e}")))?;
    let outcome = runtime.block_on(run_store(config));
    outcome.map_err(|e| Error::failed(chain(&e)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configured(args: &[&str], variables: &[(&str, &str)]) -> Result<StoreConfig> {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let variables = variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        Values(read(&args, variables)?).config()
    }

    #[test]
    fn without_flags_it_is_one_member_where_etcd_would_be() {
        let config = configured(&[], &[]).unwrap();
        assert_eq!(config.data_dir, PathBuf::from("default.etcd"));
        assert_eq!(config.peer_listen, "localhost:2380");
        assert_eq!(config.clients[0].address, "localhost:2379");
        assert_eq!(config.members.len(), 1);
        assert_eq!(config.peer_tls, PeerTls::Open);
        assert_eq!((config.client_tls, config.quota), (None, Some(2 << 30)));
    }

    #[test]
    fn flags_go_before_variables_in_any_of_gos_forms() {
        let variables = [
            ("ETCD_NAME", "env"),
            ("ETCD_DATA_DIR", "/env"),
            ("PATH", "x"),
            ("ETCD_VERIFY", "all"),
        ];
        let config = configured(&["-data-dir", "/a", "--auto-compaction-retention=1"], &variables).unwrap();
        assert_eq!((config.name.as_str(), config.data_dir), ("env", PathBuf::from("/a")));
        assert_eq!(config.compaction, Compaction::Periodic(Duration::from_secs(3600)));
    }

    #[test]
    fn what_is_not_supported_is_refused_by_name() {
        let cases: [(&[&str], &str); 12] = [
            (&["--gateway"], "--gateway"),
            (&["--discovery-srv=x"], "--discovery-srv"),
            (&["--unsafe-no-fsync"], "--unsafe-no-fsync"),
            (&["--quota-backend-bytes=1G"], "--quota-backend-bytes"),
            (&["--peer-client-cert-auth"], "--peer-trusted-ca-file"),
            (&["--listen-client-urls", "https://localhost:1"], "--cert-file"),
            (&["--listen-client-urls", "unix://x:1"], "scheme"),
            (&["--heartbeat-interval=300"], "five times"),
            (
                &["--initial-cluster", "other=http://localhost:2380"],
                "does not name this member",
            ),
            (&["--initial-cluster", "default=http://localhost:1"], "another URL"),
            (
                &["--initial-advertise-peer-urls=https://localhost:2380"],
                "--peer-cert-file",
            ),
            (&["--name"], "needs a value"),
        ];
        for (args, word) in cases {
            let error = configured(args, &[]).unwrap_err().to_string();
            assert!(error.contains(word), "{args:?}: {error}");
        }
        let error = configured(&[], &[("ETCD_DISCOVERY", "x")]).unwrap_err().to_string();
        assert!(error.contains("ETCD_DISCOVERY"), "{error}");
    }

    #[test]
    fn certificates_are_made_up_only_where_none_are_given() {
        let urls = [
            "--listen-client-urls=https://localhost:1",
            "--initial-advertise-peer-urls=https://localhost:2",
            "--listen-peer-urls=https://localhost:2",
        ];
        let with = |more: &[&'static str]| configured(&[&urls, more].concat(), &[]);
        let auto = with(&["--auto-tls", "--peer-auto-tls", "--quota-backend-bytes=-1"]).unwrap();
        assert_eq!(
            (auto.peer_tls, auto.client_tls, auto.quota),
            (PeerTls::Auto, Some(ClientTls::Auto), None)
        );
        let files = ["--peer-auto-tls", "--auto-tls", "--cert-file=a", "--key-file=b"];
        assert!(matches!(with(&files).unwrap().client_tls, Some(ClientTls::Files(_))));
        assert!(with(&["--auto-tls"]).is_err(), "members need certificates, too");
    }

    #[test]
    fn the_version_is_in_etcds_form() {
        assert!(version().starts_with("etcd Version: 3."));
    }
}
