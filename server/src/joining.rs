//! How a new server gets its place: what it says and hears over the tunnel's enrolment (`docs/design/0009-membership.md`).
//!
//! [`ask`] is the newcomer's side, [`config`] makes its configuration of the answer. `Door` is the members' side: it binds the
//! token, puts the newcomer among the members (a learner until it has the data) and signs its certificate. The newcomer's key
//! never leaves it, and neither does any key of the system leave the members.

use crate::config::{
    BootstrapSection, GatewaySection, MemberConfig, RaftSection, ServerConfig, TlsConfig, TunnelSection,
};

use crate::error::ServerError;
use crate::node::VERSION;
use bytes::Bytes;
use hanse_api::kinds::SERVERS;
use hanse_api::name::check_label;
use hanse_api::resources::{Server, ServerSpec};
use hanse_consensus::{Change, ConsensusError, Member, Node, Refusal};
use hanse_gateway::AuditSettings;
use hanse_regions::joining::{Members, Request, certificate, reserve, withdraw};
use hanse_runtime::clock::{SharedClock, timeout};
use hanse_runtime::pki::Ca;
use hanse_runtime::rng::SharedRng;
use hanse_runtime::seal::Sealer;
use hanse_runtime::supervisor::chain;
use hanse_state::objects::{Objects, Page};
use hanse_tunnel::enrol::{EnrolmentToken, Newcomer};
use hanse_tunnel::{Admitted, Credentials, Settings};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

/// Longest description of a newcomer.
const ABOUT_MAX: usize = 16 << 10;
/// For putting it among the members: two changes may have to be tried.
const ADMIT_LIMIT: Duration = Duration::from_secs(25);
/// How long a newcomer waits for the answer.
const ASK_LIMIT: Duration = Duration::from_secs(30);
/// Ids that are tried when others join at the same time.
const TRIES: usize = 4;
/// What is sealed for newcomers to open, and the context that it is bound to.
const SEAL_PROBE: (&[u8], &[u8]) = (b"the same seal key", b"hanse join");

/// What a new server says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// Its name.
    pub name: String,
    /// HTTPS base of its gateway.
    pub gateway: String,
    /// `host:port` of its Raft service.
    pub raft: String,
    /// `host:port` (UDP) of its tunnel endpoint.
    pub tunnel: String,
    /// Version of its program.
    #[serde(default)]
    pub version: String,
}

/// The place of a new server, and what its configuration must have in common with the others'.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Place {
    /// Its id.
    pub id: u64,
    /// Its region, as its token says.
    pub region: String,
    /// All members, itself included.
    pub members: Vec<MemberConfig>,
    /// HTTPS base that clients use.
    pub external_url: String,
    /// Of Raft, in milliseconds.
    pub heartbeat_ms: u64,
    /// Of Raft, in milliseconds.
    pub election_ms: u64,
    /// [`SEAL_PROBE`], sealed: only who has the system's seal key can open it.
    pub sealed: Vec<u8>,
    /// Identity providers in the configuration of the server that answered: the same belong into every one.
    #[serde(default)]
    pub oidc: Vec<String>,
}

/// What a newcomer got.
#[derive(Clone, Debug)]
pub struct Joined {
    /// Its certificate, PEM.
    pub cert_pem: String,
    /// The system's authority, PEM.
    pub ca_pem: String,
    /// Its place.
    pub place: Place,
}

/// Asks the server whose tunnel endpoint is at `address` for a place. The same key and token may ask again.
pub async fn ask(
    address: &str,
    token: &str,
    key_pem: &str,
    mut about: About,
    clock: &SharedClock,
) -> Result<Joined, ServerError> {
    let fault = |error| ServerError::part("joining", error);
    let token = EnrolmentToken::parse(token).map_err(fault)?;
    VERSION.clone_into(&mut about.version);
    let bytes = serde_json::to_vec(&about).map_err(|error| ServerError::part("joining", error))?;
    let newcomer = Newcomer {
        name: about.name,
        about: Bytes::from(bytes),
    };
    let settings = Settings::default();
    let limit = (ASK_LIMIT, clock);
    let admitted = hanse_tunnel::join(address, &token, key_pem, &newcomer, &settings, limit).await;
    let admitted = admitted.map_err(fault)?;
    let place = serde_json::from_slice(&admitted.place);
    Ok(Joined {
        place: place.map_err(|error| ServerError::part("reading the place that was given to this server", error))?,
        cert_pem: admitted.cert_pem,
        ca_pem: admitted.ca_pem,
    })
}

/// Whether the system's two keys, which its operator brought here, are those of the system that was joined; or which is not.
pub fn check_keys(joined: &Joined, ca_key_pem: &str, seal_key: &Path) -> Result<(), ServerError> {
    let authority = Credentials::from_pem(&joined.ca_pem, ca_key_pem, &joined.ca_pem);
    let authority = authority.map_err(|error| ServerError::part("reading the authority's key", error))?;
    if !authority.key_fits() {
        return Err(ServerError::part(
            "joining",
            "the authority's key is another system's: bring tls.ca_key of a running server",
        ));
    }
    let sealer = Sealer::from_key_file(seal_key).map_err(|error| ServerError::part("reading the seal key", error))?;
    match sealer.open(&joined.place.sealed, SEAL_PROBE.1) {
        Ok(plain) if plain.as_slice() == SEAL_PROBE.0 => Ok(()),
        Ok(_) | Err(_) => Err(ServerError::part(
            "joining",
            "the seal key is another system's: bring tls.seal_key of a running server",
        )),
    }
}

/// The configuration of a server that joined. It listens on `listen`, on the ports of its addresses.
pub fn config(joined: &Joined, tls: TlsConfig, data_dir: &Path, listen: IpAddr) -> Result<ServerConfig, ServerError> {
    let place = &joined.place;
    let missing = || ServerError::part("joining", "the answer does not have this server among the members");
    let own = place.members.iter().find(|m| m.id == place.id).ok_or_else(missing)?;
    let bind = |address: &str| -> Result<SocketAddr, ServerError> {
        let (_, port) = host_and_port(address).map_err(|why| ServerError::part("joining", why))?;
        Ok((listen, port).into())
    };
    let gateway = own.gateway.strip_prefix("https://").unwrap_or_default();
    Ok(ServerConfig {
        name: own.name.clone(),
        id: place.id,
        region: place.region.clone(),
        data_dir: data_dir.to_owned(),
        log_format: hanse_runtime::telemetry::Format::Json,
        tls,
        gateway: GatewaySection {
            listen: bind(gateway)?,
            external_url: place.external_url.clone(),
            login_seconds: crate::config::default_login_seconds(),
            failed_logins_per_minute: crate::config::default_failed_logins(),
            login_steps_per_minute: crate::config::default_login_steps(),
        },
        raft: RaftSection {
            listen: bind(&own.raft)?,
            heartbeat_ms: place.heartbeat_ms,
            election_ms: place.election_ms,
            joins: true,
            rejoin: crate::config::default_rejoin(),
            snapshot_mib_per_second: 0,
        },
        tunnel: TunnelSection {
            listen: bind(&own.tunnel)?,
        },
        members: place.members.clone(),
        bootstrap: BootstrapSection::default(),
        oidc: Vec::new(),
        audit: AuditSettings::default(),
    })
}

/// `host:port`, taken apart; an IPv6 address stands in brackets. Pure.
fn host_and_port(address: &str) -> Result<(&str, u16), String> {
    let bad = || format!("{address:?} is not of the form host:port");
    let (host, port) = address.rsplit_once(':').ok_or_else(bad)?;
    let port: u16 = port.parse().map_err(|_| bad())?;
    let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    if port == 0 || host.is_empty() || host.contains(['/', ' ', '@']) {
        return Err(bad());
    }
    Ok((host, port))
}

/// The host in an HTTPS base. Pure.
fn host_of(url: &str) -> Result<&str, String> {
    let bad = || format!("{url:?} is not of the form https://host:port");
    let rest = url.strip_prefix("https://").ok_or_else(bad)?;
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    if rest.contains('/') {
        return Err(bad());
    }
    let with_port = rest
        .rsplit_once(':')
        .is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    if with_port {
        host_and_port(rest).map(|(host, _)| host)
    } else {
        Ok(rest.trim_matches(['[', ']']))
    }
}

impl About {
    fn read(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() > ABOUT_MAX {
            return Err("what the server says of itself is too long".to_owned());
        }
        let about: Self = serde_json::from_slice(bytes)
            .map_err(|error| format!("what the server says of itself cannot be read: {error}"))?;
        check_label(&about.name).map_err(|why| format!("the name {:?} cannot be: {why}", about.name))?;
        host_of(&about.gateway)?;
        host_and_port(&about.raft)?;
        host_and_port(&about.tunnel)?;
        Ok(about)
    }
}

/// What of a server's configuration newcomers are told.
#[derive(Clone, Debug)]
pub(crate) struct Common {
    pub(crate) external_url: String,
    pub(crate) heartbeat_ms: u64,
    pub(crate) election_ms: u64,
    pub(crate) oidc: Vec<String>,
}

impl Common {
    pub(crate) fn of(config: &ServerConfig) -> Self {
        Self {
            external_url: config.gateway.external_url.clone(),
            heartbeat_ms: config.raft.heartbeat_ms,
            election_ms: config.raft.election_ms,
            oidc: config.oidc.iter().map(|issuer| issuer.id.clone()).collect(),
        }
    }
}

/// Takes new servers in.
pub(crate) struct Door {
    pub(crate) node: Node,
    pub(crate) objects: Objects,
    pub(crate) sealer: Sealer,
    pub(crate) clock: SharedClock,
    pub(crate) rng: SharedRng,
    pub(crate) common: Common,
}

impl fmt::Debug for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Door").field("node", &self.node).finish_non_exhaustive()
    }
}

impl Door {
    /// Takes a server in that shows `token`. The error is for its operator.
    pub(crate) async fn admit(
        &self,
        ca: &Ca,
        token: &EnrolmentToken,
        csr_pem: &str,
        about: &[u8],
    ) -> Result<Admitted, String> {
        let about = About::read(about)?;
        let work = timeout(self.clock.as_ref(), ADMIT_LIMIT, self.seat(token, csr_pem, &about)).await;
        let spec = work.map_err(|_| "the members were not changed in time; try the same again".to_owned())??;
        let hosts = [host_of(&about.gateway)?, host_of(&self.common.external_url)?].map(str::to_owned);
        let cert_pem = certificate(ca, csr_pem, &about.name, &hosts, self.clock.wall());
        let cert_pem = cert_pem.map_err(|error| chain(&error))?;
        let place = self.place(&about, &spec).await?;
        tracing::info!(name = about.name, id = spec.id, region = spec.region, "a server joins");
        Ok(Admitted {
            cert_pem,
            ca_pem: ca.cert_pem().to_owned(),
            name: about.name,
            place: Bytes::from(serde_json::to_vec(&place).map_err(|error| error.to_string())?),
        })
    }

    /// Enters the newcomer and puts it among the members.
    async fn seat(&self, token: &EnrolmentToken, csr_pem: &str, about: &About) -> Result<ServerSpec, String> {
        let words = |error: ConsensusError| chain(&error);
        let secret = format!("{}.{}", token.id(), token.secret());
        let wanted = ServerSpec {
            gateway: about.gateway.clone(),
            raft: about.raft.clone(),
            tunnel: about.tunnel.clone(),
            ..ServerSpec::default()
        };
        let request = Request {
            token: &secret,
            csr_pem,
            name: &about.name,
            wanted: &wanted,
        };
        let member = Member {
            name: about.name.clone(),
            address: about.raft.clone(),
        };
        for _ in 0..TRIES {
            self.node.catch_up().await.map_err(words)?;
            let roster = self.node.roster();
            let members = Members {
                seats: roster
                    .seats
                    .iter()
                    .map(|(id, s)| (*id, s.member.name.clone()))
                    .collect(),
                removed: self.node.removed(),
            };
            let spec = reserve(&self.objects, &request, &members, self.rng.as_ref(), self.clock.wall()).await;
            let spec = spec.map_err(|error| chain(&error))?;
            let change = match roster.seats.get(&spec.id) {
                Some(seat) if seat.member.address == member.address => return Ok(spec),
                Some(_) => Change::Update {
                    id: spec.id,
                    address: member.address.clone(),
                },
                None => Change::Add {
                    id: spec.id,
                    member: member.clone(),
                    learner: false,
                },
            };
            let is_new = matches!(change, Change::Add { .. });
            match self.node.change(change).await {
                Ok(()) => return Ok(spec),
                // Another one was faster: the next try has another id.
                Err(ConsensusError::Refused(Refusal::IdUsed { .. })) => {}
                Err(error @ ConsensusError::Refused(_)) if is_new => {
                    // Nobody must take it for a server; the token stays good for the same key.
                    if let Err(error) = withdraw(&self.objects, &about.name, spec.id).await {
                        tracing::warn!(
                            name = about.name,
                            error = chain(&error),
                            "a refused server's entry stays"
                        );
                    }
                    return Err(words(error));
                }
                Err(error) => return Err(words(error)),
            }
        }
        Err("others joined at the same time; try the same again".to_owned())
    }

    async fn place(&self, about: &About, spec: &ServerSpec) -> Result<Place, String> {
        self.node.catch_up().await.map_err(|error| chain(&error))?;
        let entered = self.objects.list(&SERVERS, None, Page::default()).await;
        let entered = entered.map_err(|error| chain(&error))?.items;
        let entered: Vec<Server> = entered
            .iter()
            .filter_map(|s| serde_json::from_slice(&s.value).ok())
            .collect();
        let mut members: Vec<MemberConfig> = Vec::new();
        for (id, member) in self.node.members() {
            let known = entered.iter().find(|server| server.spec.id == id);
            let known = known.map(|server| server.spec.clone()).unwrap_or_default();
            members.push(MemberConfig {
                id,
                name: member.name,
                region: known.region,
                gateway: known.gateway,
                raft: member.address,
                tunnel: known.tunnel,
            });
        }
        if !members
            .iter()
            .any(|member| member.id == spec.id && member.name == about.name)
        {
            return Err("the server is not among the members any more; was it removed? Make a new token".to_owned());
        }
        let sealed = self.sealer.seal(self.rng.as_ref(), SEAL_PROBE.0, SEAL_PROBE.1);
        Ok(Place {
            id: spec.id,
            region: spec.region.clone(),
            members,
            external_url: self.common.external_url.clone(),
            heartbeat_ms: self.common.heartbeat_ms,
            election_ms: self.common.election_ms,
            sealed: sealed.map_err(|error| chain(&error))?,
            oidc: self.common.oidc.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hanse_runtime::config::parse_text;
    use std::path::PathBuf;

    fn about() -> About {
        About {
            name: "us-1".into(),
            gateway: "https://127.0.2.1:8443".into(),
            raft: "us.example.com:8444".into(),
            tunnel: "[::1]:8445".into(),
            version: String::new(),
        }
    }

    #[test]
    fn what_a_newcomer_says_is_checked() {
        let read = |about: &About| About::read(&serde_json::to_vec(about).unwrap());
        assert_eq!(read(&about()), Ok(about()));
        assert_eq!(host_of("https://hanse.example.com/"), Ok("hanse.example.com"));
        assert_eq!(host_of("https://[::1]:8443"), Ok("::1"));
        let bad: [fn(&mut About); 6] = [
            |a| a.name = "US".into(),
            |a| a.name = "../x".into(),
            |a| a.gateway = "http://a:1".into(),
            |a| a.gateway = "https://a:1/x".into(),
            |a| a.raft = "nowhere".into(),
            |a| a.tunnel = "h:0".into(),
        ];
        for change in bad {
            let mut about = about();
            change(&mut about);
            assert!(read(&about).is_err(), "{about:?}");
        }
        assert!(About::read(&vec![b' '; ABOUT_MAX + 1]).is_err());
    }

    #[test]
    fn the_configuration_of_a_newcomer_is_a_good_one() {
        let about = about();
        let member = |id: u64, name: &str| MemberConfig {
            id,
            name: name.into(),
            region: "us".into(),
            gateway: about.gateway.clone(),
            raft: about.raft.clone(),
            tunnel: about.tunnel.clone(),
        };
        let mut joined = Joined {
            cert_pem: String::new(),
            ca_pem: String::new(),
            place: Place {
                id: 4,
                region: "us".into(),
                members: vec![member(1, "eu-1"), member(4, "us-1")],
                external_url: "https://127.0.0.1:8443".into(),
                heartbeat_ms: 50,
                election_ms: 200,
                sealed: Vec::new(),
                oidc: Vec::new(),
            },
        };
        let tls = TlsConfig {
            ca: PathBuf::from("ca.pem"),
            ca_key: PathBuf::from("ca-key.pem"),
            cert: PathBuf::from("cert.pem"),
            key: PathBuf::from("key.pem"),
            seal_key: PathBuf::from("seal.key"),
        };
        let listen = "127.0.2.1".parse().unwrap();
        let made = config(&joined, tls.clone(), Path::new("data"), listen).unwrap();
        let text = toml::to_string(&made).unwrap();
        let read: ServerConfig = parse_text(&text, Path::new("server.toml")).unwrap();
        assert_eq!((read.id, read.raft.joins, read.raft.election_ms), (4, true, 200));
        assert_eq!(read.tunnel.listen.to_string(), "127.0.2.1:8445");
        joined.place.members.pop();
        assert!(config(&joined, tls, Path::new("data"), listen).is_err());
    }
}
