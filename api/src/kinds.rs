//! The names of the kinds that the management API serves or that the control plane keeps for itself.

/// Names of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KindName {
    /// API group.
    pub group: &'static str,
    /// API version.
    pub version: &'static str,
    /// CamelCase kind.
    pub kind: &'static str,
    /// Plural resource name in URLs and keys.
    pub plural: &'static str,
    /// Whether objects live in a namespace.
    pub namespaced: bool,
}

impl KindName {
    /// `group/version`.
    pub fn api_version(&self) -> String {
        format!("{}/{}", self.group, self.version)
    }
}

/// Kinds shared with vCluster Platform.
pub const LOFT_GROUP: &str = "management.loft.sh";
/// Kinds that vCluster Platform serves as it stores them.
pub const STORAGE_GROUP: &str = "storage.loft.sh";
/// Kinds that only Hanse has.
pub const HANSE_GROUP: &str = "hanse.dev";

const fn loft(kind: &'static str, plural: &'static str, namespaced: bool) -> KindName {
    KindName {
        group: LOFT_GROUP,
        version: "v1",
        kind,
        plural,
        namespaced,
    }
}

const fn hanse(kind: &'static str, plural: &'static str, namespaced: bool) -> KindName {
    KindName {
        group: HANSE_GROUP,
        version: "v1",
        kind,
        plural,
        namespaced,
    }
}

/// Policy boundary of tenants.
pub const PROJECTS: KindName = loft("Project", "projects", false);
/// Connected clusters.
pub const CLUSTERS: KindName = loft("Cluster", "clusters", false);
/// Tenant clusters.
pub const VIRTUAL_CLUSTER_INSTANCES: KindName = loft("VirtualClusterInstance", "virtualclusterinstances", true);
/// Secrets of a project.
pub const PROJECT_SECRETS: KindName = loft("ProjectSecret", "projectsecrets", true);
/// Secrets of the installation, in [`PLATFORM_NAMESPACE`].
pub const SHARED_SECRETS: KindName = loft("SharedSecret", "sharedsecrets", true);
/// Users.
pub const USERS: KindName = loft("User", "users", false);
/// Teams.
pub const TEAMS: KindName = loft("Team", "teams", false);
/// Roles that administrators define.
pub const CLUSTER_ROLE_TEMPLATES: KindName = loft("ClusterRoleTemplate", "clusterroletemplates", false);
/// Access keys, by id, with the hash of the secret. The name under which they are stored.
pub const ACCESS_KEYS: KindName = loft("AccessKey", "accesskeys", false);
/// Access keys, as they are served.
pub const STORAGE_ACCESS_KEYS: KindName = KindName {
    group: STORAGE_GROUP,
    version: "v1",
    kind: "AccessKey",
    plural: "accesskeys",
    namespaced: false,
};
/// Events of the audit trail, by number.
pub const AUDIT_EVENTS: KindName = loft("Event", "events", false);
/// Where the chain of the audit trail begins and ends.
pub const AUDIT_CHAINS: KindName = hanse("AuditChain", "auditchains", false);
/// How much of the audit trail each of its sinks was given.
pub const AUDIT_SINKS: KindName = hanse("AuditSink", "auditsinks", false);
/// Regions.
pub const REGIONS: KindName = hanse("Region", "regions", false);
/// Servers.
pub const SERVERS: KindName = hanse("Server", "servers", false);
/// Who somebody of an identity provider is here.
pub const IDENTITIES: KindName = hanse("Identity", "identities", false);
/// Words given in a browser for programs that wait to be logged in. Never served.
pub const LOGIN_GRANTS: KindName = hanse("LoginGrant", "logingrants", false);
/// Logins that were used and must not be again. Never served.
pub const SPENT_LOGINS: KindName = hanse("SpentLogin", "spentlogins", false);
/// Programs that Hanse is the identity provider of.
pub const OIDC_CLIENTS: KindName = loft("OIDCClient", "oidcclients", false);
/// Logins of people at those programs.
pub const OIDC_GRANTS: KindName = hanse("OidcGrant", "oidcgrants", false);
/// Keys, sealed, that sign tokens for those programs.
pub const OIDC_KEYS: KindName = hanse("OidcKey", "oidckeys", false);
/// Host, epoch and sealed PKI of each tenant cluster. Never served: it holds (sealed) keys.
pub const TENANT_STORES: KindName = hanse("TenantStore", "tenantstores", true);
/// What each connected cluster's agent shall run. Never served.
pub const INTENTS: KindName = hanse("Intent", "intents", false);
/// One-time enrolment tokens of agents, hashed. Never served.
pub const ENROLMENT_TOKENS: KindName = hanse("EnrolmentToken", "enrolmenttokens", false);
/// One-time tokens by which new servers join, hashed. A kind of their own: no token of an agent can ever make a server. Never served.
pub const JOIN_TOKENS: KindName = hanse("JoinToken", "jointokens", false);
/// Keys of servers that were removed, by their hashes: their certificates are refused. Never served.
pub const REVOKED_KEYS: KindName = hanse("RevokedKey", "revokedkeys", false);
/// Leases of regions (coordinator election). Never served.
pub const REGION_LEASES: KindName = hanse("RegionLease", "regionleases", false);

/// Namespace of what belongs to the installation and to no project; vCluster Platform's clients look into it.
pub const PLATFORM_NAMESPACE: &str = "vcluster-platform";

/// Annotation of a Cluster: the region it belongs to. A shared kind gets no new fields.
pub const ANNOTATION_REGION: &str = "hanse.dev/region";
/// Annotation of a VirtualClusterInstance: how many simulated nodes it gets (0 to 1000, default 3).
pub const ANNOTATION_SIMULATED_NODES: &str = "hanse.dev/simulated-nodes";
/// Annotation of a VirtualClusterInstance: GPUs (`nvidia.com/gpu`) per simulated node.
pub const ANNOTATION_SIMULATED_GPUS: &str = "hanse.dev/simulated-gpus-per-node";
/// Annotation of a VirtualClusterInstance: bytes that its objects may take in the store.
pub const ANNOTATION_STORE_BYTES: &str = "hanse.dev/store-bytes";
/// Annotation of a VirtualClusterInstance: objects that it may have in the store.
pub const ANNOTATION_STORE_KEYS: &str = "hanse.dev/store-keys";
/// Annotation of a VirtualClusterInstance: writes to the store that each server takes from it in a second.
pub const ANNOTATION_STORE_WRITES: &str = "hanse.dev/store-writes-per-second";
/// Annotation of a VirtualClusterInstance: the wanted region, when no cluster is named.
pub const ANNOTATION_WANTED_REGION: &str = "hanse.dev/wanted-region";
/// Finalizer that keeps a tenant cluster's object until its processes and keys are gone.
pub const FINALIZER_TENANT: &str = "hanse.dev/tenant";
