//! What a tenant's processes read and how they are started: pure functions of the intent and of facts about the host.

use crate::error::AgentError;
use crate::paths::{Layout, TenantDir};
use crate::plan::{Part, Wanted};
use crate::process::Spec;
use crate::tools::KubeTools;
use hanse_api::intent::{TenantIntent, TenantPki};
use hanse_api::name::check_subdomain;
use hanse_runtime::pki::sha256_hex;
use serde_json::json;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

/// Addresses of Services. Nothing routes them on a host of simulated nodes.
const SERVICE_CIDR: &str = "10.96.0.0/16";
/// The first address of [`SERVICE_CIDR`]: the `kubernetes` Service.
pub const KUBERNETES_SERVICE_IP: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 96, 0, 1));
/// Addresses of simulated pods.
const POD_CIDR: &str = "10.244.0.0/16";
/// Issuer of service account tokens: the same on every host, so that tokens stay good when the tenant moves.
const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
/// Nodes with this label are simulated; others, such as private nodes, are left alone.
pub const SIMULATED_LABEL: &str = "hanse.dev/simulated";
/// Lease of a simulated node. Each renewal (every quarter of it) is a write to the replicated store.
const NODE_LEASE_SECONDS: u32 = 600;
/// When a node counts as lost: more than two leases.
const NODE_GRACE: &str = "1500s";
/// Without those that have nothing to do where there are no volumes and no cloud; the attach-detach one alone wakes ten
/// times a second.
const CONTROLLERS: &str = "--controllers=*,-persistentvolume-attach-detach-controller,\
     -persistentvolume-expander-controller,-selinux-warning-controller,-node-route-controller,\
     -service-lb-controller,-cloud-node-lifecycle-controller,-node-ipam-controller,-bootstrap-signer-controller,\
     -token-cleaner-controller";
/// Go collects at 1.5 times the live heap instead of twice. Measured: kube-apiserver with 250 MB instead of 295 MB, at no
/// cost in a tenant's start.
const TIGHT_HEAP: (&str, &str) = ("GOGC", "50");

/// Facts about the host that a tenant's processes depend on.
#[derive(Clone, Debug)]
pub struct HostFacts {
    /// The agent's directories.
    pub layout: Layout,
    /// Programs.
    pub tools: KubeTools,
    /// Address on which tenants' processes listen.
    pub address: IpAddr,
    /// Port of the listener that answers for simulated pods.
    pub pod_port: u16,
    /// Whether commands of `kubectl exec` run on the host.
    pub exec_on_host: bool,
    /// Whether the agent is root: commands of `kubectl exec` then run as `nobody`.
    pub root: bool,
}

/// Ports of one tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TenantPorts {
    /// kube-apiserver.
    pub api: u16,
    /// The kubelet API of simulated nodes.
    pub kubelet: u16,
}

/// What a tenant needs on this host.
#[derive(Clone, Debug)]
pub struct Rendered {
    /// Files by path, with their content.
    pub files: BTreeMap<PathBuf, String>,
    /// Processes.
    pub specs: BTreeMap<Part, Spec>,
    /// The same as digests.
    pub wanted: Wanted,
}

/// Checks that `tenant` may be the name of a directory.
pub fn check_tenant(tenant: &str) -> Result<(), AgentError> {
    check_subdomain(tenant).map_err(|fault| AgentError::BadTenant {
        tenant: tenant.to_owned(),
        fault,
    })
}

/// Everything that `intent` means on this host.
pub fn render(intent: &TenantIntent, facts: &HostFacts, ports: TenantPorts) -> Result<Rendered, AgentError> {
    check_tenant(&intent.tenant)?;
    let pki = intent.pki.as_ref().ok_or_else(|| AgentError::NoKeys {
        tenant: intent.tenant.clone(),
    })?;
    if intent.simulated_nodes > 0 && facts.tools.kwok.is_none() {
        return Err(AgentError::Tools {
            missing: "kwok with its stages (for simulated nodes)".into(),
            searched: facts
                .tools
                .apiserver
                .parent()
                .unwrap_or(Path::new("/"))
                .display()
                .to_string(),
        });
    }
    let context = Context {
        intent,
        facts,
        ports,
        dir: facts.layout.tenant(&intent.tenant),
    };
    let files = context.files(pki);
    let digest = digest(&files);
    let mut specs = BTreeMap::from([
        (Part::ApiServer, context.apiserver()),
        (Part::ControllerManager, context.controller_manager()),
        (Part::Scheduler, context.scheduler()),
    ]);
    specs.extend(context.kwok().map(|spec| (Part::Kwok, spec)));
    for spec in specs.values_mut() {
        spec.inputs = context.inputs(&files, &spec.name);
    }
    let parts = specs.iter().map(|(part, spec)| (*part, spec.digest())).collect();
    Ok(Rendered {
        files,
        specs,
        wanted: Wanted {
            epoch: intent.epoch,
            files: digest,
            parts,
        },
    })
}

fn digest(files: &BTreeMap<PathBuf, String>) -> String {
    let mut text = String::new();
    for (path, content) in files {
        text.push_str(&path.to_string_lossy());
        text.push('\0');
        text.push_str(content);
        text.push('\0');
    }
    sha256_hex(text.as_bytes())
}

struct Context<'a> {
    intent: &'a TenantIntent,
    facts: &'a HostFacts,
    ports: TenantPorts,
    dir: TenantDir,
}

impl Context<'_> {
    fn files(&self, pki: &TenantPki) -> BTreeMap<PathBuf, String> {
        let key_files = [
            ("ca.crt", &pki.ca.cert),
            ("ca.key", &pki.ca.key),
            ("controller-manager.crt", &pki.controller_manager.cert),
            ("controller-manager.key", &pki.controller_manager.key),
            ("scheduler.crt", &pki.scheduler.cert),
            ("scheduler.key", &pki.scheduler.key),
            ("kubelet-client.crt", &pki.kubelet_client.cert),
            ("kubelet-client.key", &pki.kubelet_client.key),
            ("sa.pub", &pki.service_account.cert),
            ("sa.key", &pki.service_account.key),
        ];
        let mut files: BTreeMap<PathBuf, String> = key_files
            .into_iter()
            .map(|(name, text)| (self.dir.pki().join(name), text.clone()))
            .collect();
        for user in ["controller-manager", "scheduler", "kwok"] {
            files.insert(self.kubeconfig_path(user), self.kubeconfig(user));
        }
        if self.facts.tools.kwok.is_some() {
            files.insert(self.kwok_config_path(), self.kwok_config());
            files.insert(self.pod_log_path(), pod_log());
        }
        files
    }

    /// Digest of the files that the process called `name` reads: changed ones restart it, and it only.
    fn inputs(&self, files: &BTreeMap<PathBuf, String>, name: &str) -> String {
        let reads: &[&str] = match Part::by_name(name) {
            Some(Part::ApiServer) => &["ca.crt", "kubelet-client.crt", "kubelet-client.key", "sa.pub", "sa.key"],
            Some(Part::ControllerManager) => &[
                "ca.crt",
                "ca.key",
                "sa.key",
                "controller-manager.crt",
                "controller-manager.key",
            ],
            Some(Part::Scheduler) => &["ca.crt", "scheduler.crt", "scheduler.key"],
            Some(Part::Kwok) | None => &["ca.crt", "ca.key", "kwok.yaml"],
        };
        let read = |path: &Path| {
            path.file_name()
                .is_some_and(|file| reads.iter().any(|name| file == *name))
        };
        digest(
            &files
                .iter()
                .filter(|(path, _)| read(path))
                .map(|(path, text)| (path.clone(), text.clone()))
                .collect(),
        )
    }

    fn pki_path(&self, name: &str) -> String {
        self.dir.pki().join(name).display().to_string()
    }

    fn kubeconfig_path(&self, user: &str) -> PathBuf {
        self.dir.conf().join(format!("{user}.kubeconfig"))
    }

    fn kwok_config_path(&self) -> PathBuf {
        self.dir.conf().join("kwok.yaml")
    }

    fn pod_log_path(&self) -> PathBuf {
        self.dir.conf().join("pods.log")
    }

    /// A kubeconfig (JSON is YAML) that names key files, so that it holds no secret itself.
    fn kubeconfig(&self, user: &str) -> String {
        let server = format!("https://{}", SocketAddr::new(self.facts.address, self.ports.api));
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{
                "name": "tenant",
                "cluster": { "server": server, "certificate-authority": self.pki_path("ca.crt") },
            }],
            "users": [{
                "name": user,
                "user": {
                    "client-certificate": self.pki_path(&format!("{user}.crt")),
                    "client-key": self.pki_path(&format!("{user}.key")),
                },
            }],
            "contexts": [{ "name": "tenant", "context": { "cluster": "tenant", "user": user } }],
            "current-context": "tenant",
        });
        format!("{config:#}\n")
    }

    fn kwok_config(&self) -> String {
        let version = "kwok.x-k8s.io/v1alpha1";
        let kind = |kind: &str, spec: serde_json::Value| {
            let metadata = json!({ "name": "simulated" });
            json!({ "apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec })
        };
        let log = self.pod_log_path();
        let mut documents = vec![
            kind("ClusterLogs", json!({ "logs": [{ "logsFile": log, "follow": true }] })),
            kind("ClusterAttach", json!({ "attaches": [{ "logsFile": log }] })),
            kind(
                "ClusterPortForward",
                json!({ "forwards": [{
                    "target": { "port": self.facts.pod_port, "address": self.facts.address.to_string() },
                }] }),
            ),
        ];
        if self.facts.exec_on_host {
            let mut local = json!({
                "workDir": "/",
                "envs": [{ "name": "HOME", "value": "/" }, { "name": "HANSE_SIMULATED_POD", "value": "true" }],
            });
            if self.facts.root {
                local["securityContext"] = json!({ "runAsUser": 65534, "runAsGroup": 65534 });
            }
            documents.push(kind("ClusterExec", json!({ "execs": [{ "local": local }] })));
        }
        documents
            .iter()
            .map(|document| format!("---\n{document:#}\n"))
            .collect()
    }

    fn spec(&self, part: Part, program: &Path, args: Vec<String>, ports: Vec<u16>) -> Spec {
        let env = vec![
            ("PATH".to_owned(), "/usr/local/bin:/usr/bin:/bin".to_owned()),
            ("HOME".to_owned(), self.dir.home().display().to_string()),
            (TIGHT_HEAP.0.to_owned(), TIGHT_HEAP.1.to_owned()),
        ];
        Spec {
            name: part.name().to_owned(),
            program: program.to_owned(),
            args,
            env,
            dir: self.dir.home(),
            inputs: String::new(),
            ports,
            stop_rank: part.stop_rank(),
        }
    }

    fn apiserver(&self) -> Spec {
        let socket = self.facts.layout.socket(&self.intent.tenant);
        let address = self.facts.address;
        let args = vec![
            format!("--etcd-servers=unix://{}", socket.display()),
            // Counts of all kinds each minute are metrics that nobody reads here, over the wide area.
            "--etcd-count-metric-poll-period=0".to_owned(),
            format!("--bind-address={address}"),
            format!("--advertise-address={address}"),
            format!("--secure-port={}", self.ports.api),
            // No node could reach a loopback address, and the lease of the default reconciler is a write each 10 s.
            "--endpoint-reconciler-type=none".to_owned(),
            // One API server per tenant: its identity lease is a write each 10 s, too. The second gate needs the first.
            "--feature-gates=APIServerIdentity=false,UnknownVersionInteroperabilityProxy=false".to_owned(),
            format!("--tls-cert-file={}", self.pki_path("apiserver.crt")),
            format!("--tls-private-key-file={}", self.pki_path("apiserver.key")),
            format!("--client-ca-file={}", self.pki_path("ca.crt")),
            format!("--service-account-issuer={ISSUER}"),
            format!("--service-account-key-file={}", self.pki_path("sa.pub")),
            format!("--service-account-signing-key-file={}", self.pki_path("sa.key")),
            format!("--service-cluster-ip-range={SERVICE_CIDR}"),
            "--authorization-mode=Node,RBAC".to_owned(),
            "--enable-admission-plugins=NodeRestriction".to_owned(),
            "--allow-privileged=true".to_owned(),
            format!("--kubelet-certificate-authority={}", self.pki_path("ca.crt")),
            format!("--kubelet-client-certificate={}", self.pki_path("kubelet-client.crt")),
            format!("--kubelet-client-key={}", self.pki_path("kubelet-client.key")),
            "--kubelet-preferred-address-types=InternalIP".to_owned(),
            "--profiling=false".to_owned(),
        ];
        self.spec(Part::ApiServer, &self.facts.tools.apiserver, args, vec![self.ports.api])
    }

    fn controller_manager(&self) -> Spec {
        let args = vec![
            format!("--kubeconfig={}", self.kubeconfig_path("controller-manager").display()),
            format!("--service-account-private-key-file={}", self.pki_path("sa.key")),
            format!("--root-ca-file={}", self.pki_path("ca.crt")),
            format!("--cluster-signing-cert-file={}", self.pki_path("ca.crt")),
            format!("--cluster-signing-key-file={}", self.pki_path("ca.key")),
            "--use-service-account-credentials=true".to_owned(),
            "--leader-elect=false".to_owned(),
            // No port of its own: one thing less to listen, and no metrics server in memory.
            "--secure-port=0".to_owned(),
            "--profiling=false".to_owned(),
            "--kube-api-qps=100".to_owned(),
            "--kube-api-burst=200".to_owned(),
            format!("--node-monitor-grace-period={NODE_GRACE}"),
            "--node-monitor-period=30s".to_owned(),
            CONTROLLERS.to_owned(),
        ];
        self.spec(
            Part::ControllerManager,
            &self.facts.tools.controller_manager,
            args,
            Vec::new(),
        )
    }

    fn scheduler(&self) -> Spec {
        let args = vec![
            format!("--kubeconfig={}", self.kubeconfig_path("scheduler").display()),
            "--leader-elect=false".to_owned(),
            "--secure-port=0".to_owned(),
        ];
        self.spec(Part::Scheduler, &self.facts.tools.scheduler, args, Vec::new())
    }

    fn kwok(&self) -> Option<Spec> {
        let kwok = self
            .facts
            .tools
            .kwok
            .as_ref()
            .filter(|_| self.intent.simulated_nodes > 0)?;
        let address = self.facts.address;
        let mut args = vec![
            format!("--kubeconfig={}", self.kubeconfig_path("kwok").display()),
            format!("--manage-nodes-with-label-selector={SIMULATED_LABEL}=true"),
            format!("--node-ip={address}"),
            format!("--node-port={}", self.ports.kubelet),
            format!("--server-address={}", SocketAddr::new(address, self.ports.kubelet)),
            format!("--tls-cert-file={}", self.pki_path("kubelet.crt")),
            format!("--tls-private-key-file={}", self.pki_path("kubelet.key")),
            format!("--cidr={POD_CIDR}"),
            format!("--node-lease-duration-seconds={NODE_LEASE_SECONDS}"),
        ];
        let configs = kwok.stages.iter().cloned().chain([self.kwok_config_path()]);
        args.extend(configs.map(|path| format!("--config={}", path.display())));
        Some(self.spec(Part::Kwok, &kwok.program, args, vec![self.ports.kubelet]))
    }
}

/// What `kubectl logs` shows of any simulated pod, in the CRI's log format.
fn pod_log() -> String {
    let lines = [
        "This pod is simulated: it is scheduled and counted, but no container runs.",
        "Give the tenant real nodes to run containers.",
    ];
    lines
        .iter()
        .map(|line| format!("2026-01-01T00:00:00.000000000Z stdout F {line}\n"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tools::Kwok;
    use hanse_api::intent::KeyPair;

    fn facts() -> HostFacts {
        HostFacts {
            layout: Layout::new(Path::new("/d")),
            tools: KubeTools {
                apiserver: "/k/kube-apiserver".into(),
                controller_manager: "/k/kube-controller-manager".into(),
                scheduler: "/k/kube-scheduler".into(),
                kwok: Some(Kwok {
                    program: "/k/kwok".into(),
                    stages: vec!["/s/a.yaml".into(), "/s/b.yaml".into()],
                }),
            },
            address: "127.0.2.1".parse().unwrap(),
            pod_port: 20_000,
            exec_on_host: false,
            root: true,
        }
    }

    fn pair(name: &str) -> KeyPair {
        KeyPair {
            cert: format!("{name} cert"),
            key: format!("{name} SECRET"),
        }
    }

    fn intent() -> TenantIntent {
        TenantIntent {
            tenant: "t1".into(),
            epoch: 3,
            simulated_nodes: 2,
            pki: Some(TenantPki {
                ca: pair("ca"),
                admin: pair("admin"),
                controller_manager: pair("cm"),
                scheduler: pair("sched"),
                kubelet_client: pair("kubelet"),
                service_account: pair("sa"),
            }),
            ..TenantIntent::default()
        }
    }

    fn rendered(change: impl FnOnce(&mut TenantIntent, &mut HostFacts, &mut TenantPorts)) -> Rendered {
        let (mut intent, mut facts, mut ports) = (
            intent(),
            facts(),
            TenantPorts {
                api: 20_001,
                kubelet: 20_002,
            },
        );
        change(&mut intent, &mut facts, &mut ports);
        render(&intent, &facts, ports).unwrap()
    }

    fn changed(a: &Rendered, b: &Rendered) -> Vec<Part> {
        let parts = Part::ALL.into_iter();
        parts
            .filter(|part| a.wanted.parts.get(part) != b.wanted.parts.get(part))
            .collect()
    }

    #[test]
    fn only_what_a_change_touches_restarts() {
        let base = rendered(|_, _, _| {});
        let cases: Vec<(&str, Rendered, Vec<Part>)> = vec![
            ("nothing", rendered(|_, _, _| {}), vec![]),
            ("epoch", rendered(|i, _, _| i.epoch = 4), vec![]),
            ("more nodes", rendered(|i, _, _| i.simulated_nodes = 9), vec![]),
            ("no nodes", rendered(|i, _, _| i.simulated_nodes = 0), vec![Part::Kwok]),
            ("exec", rendered(|_, f, _| f.exec_on_host = true), vec![Part::Kwok]),
            ("port of kwok", rendered(|_, _, p| p.kubelet = 1), vec![Part::Kwok]),
            (
                "key of the scheduler",
                rendered(|i, _, _| i.pki.as_mut().unwrap().scheduler.key.push('x')),
                vec![Part::Scheduler],
            ),
        ];
        for (name, other, parts) in cases {
            assert_eq!(changed(&base, &other), parts, "{name}");
        }
        assert_eq!(base.wanted.epoch, 3);
    }

    #[test]
    fn arguments_and_kubeconfigs_name_files_and_hold_no_secret() {
        let rendered = rendered(|_, _, _| {});
        for spec in rendered.specs.values() {
            assert!(!format!("{spec:?}").contains("SECRET"), "{}", spec.name);
            assert!(
                spec.args.iter().all(|arg| arg.starts_with("--") && !arg.contains(' ')),
                "{:?}",
                spec.args
            );
        }
        let conf = rendered
            .files
            .iter()
            .filter(|(path, _)| path.starts_with("/d/tenants/t1/conf"));
        assert!(conf.into_iter().all(|(_, text)| !text.contains("SECRET")));
        assert!(
            rendered.files.keys().all(|path| !path.ends_with("admin.key")),
            "the admin key stays in memory"
        );
    }

    #[test]
    fn commands_run_on_the_host_only_when_asked_and_never_as_root() {
        let config = |r: &Rendered| r.files[Path::new("/d/tenants/t1/conf/kwok.yaml")].clone();
        assert!(!config(&rendered(|_, _, _| {})).contains("ClusterExec"));
        let text = config(&rendered(|_, f, _| f.exec_on_host = true));
        assert!(text.contains("ClusterExec") && text.contains("65534"), "{text}");
    }

    #[test]
    fn what_cannot_run_is_said() {
        let facts = facts();
        let ports = TenantPorts { api: 1, kubelet: 2 };
        let fault = |intent: &TenantIntent, facts: &HostFacts| render(intent, facts, ports).unwrap_err().to_string();
        let no_keys = TenantIntent { pki: None, ..intent() };
        assert!(fault(&no_keys, &facts).contains("carries no keys"));
        for id in ["", "../x", "a/b", "A"] {
            let bad = TenantIntent {
                tenant: id.into(),
                ..intent()
            };
            assert!(fault(&bad, &facts).contains("no valid id"), "{id}");
        }
        let mut without = facts.clone();
        without.tools.kwok = None;
        assert!(fault(&intent(), &without).contains("kwok"));
        assert!(
            render(
                &TenantIntent {
                    simulated_nodes: 0,
                    ..intent()
                },
                &without,
                ports
            )
            .is_ok()
        );
    }
}
