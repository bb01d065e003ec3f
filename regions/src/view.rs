//! What one server knows of the council: typed objects with their revisions, and indexes over them.
//!
//! Planners read this and nothing else. It starts from lists at one revision and then follows one watch per kind
//! ([`crate::feed`]), so within a kind it is exact and in order. Between kinds it may be a few events apart; a plan
//! that matters therefore names the revisions it rests on and the store refuses it when one of them moved.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use hanse_api::Timestamp;
use hanse_api::kinds::{
    ANNOTATION_REGION, CLUSTERS, INTENTS, KindName, PROJECTS, REGION_LEASES, REGIONS, SERVERS, TENANT_STORES,
    VIRTUAL_CLUSTER_INSTANCES,
};
use hanse_api::meta::Object;
use hanse_api::resources::{
    Cluster, IntentObject, Project, Region, RegionLease, Server, TenantStore, VirtualClusterInstance,
};
use serde::de::DeserializeOwned;

use crate::address::Address;
use crate::observation::{OBSERVATIONS, Observation};
use crate::scope::Scope;

/// Every kind that the view follows.
pub const FOLLOWED: [KindName; 9] = [
    PROJECTS,
    CLUSTERS,
    VIRTUAL_CLUSTER_INSTANCES,
    REGIONS,
    SERVERS,
    TENANT_STORES,
    INTENTS,
    REGION_LEASES,
    OBSERVATIONS,
];

/// An object and the revision of its last change.
#[derive(Debug)]
pub struct Item<T> {
    /// Revision of the last change.
    pub revision: i64,
    /// The object.
    pub object: Arc<T>,
}

impl<T> Clone for Item<T> {
    fn clone(&self) -> Self {
        Self {
            revision: self.revision,
            object: Arc::clone(&self.object),
        }
    }
}

/// A stored object as it comes from a list or a watch.
#[derive(Clone, Debug)]
pub struct Raw {
    /// Where it lives.
    pub address: Address,
    /// Its JSON.
    pub value: Bytes,
    /// Revision of its last change.
    pub revision: i64,
}

/// Whether an agent has a session with this server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Presence {
    /// It has one.
    pub connected: bool,
    /// Since when it has one or none, by this server's clock.
    pub since: Timestamp,
}

/// What changed, so that controllers can say which of their keys it concerns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A project.
    Project(String),
    /// A connected cluster.
    Cluster(String),
    /// A tenant cluster (VirtualClusterInstance).
    Tenant(Address),
    /// Host or secrets of a tenant; with the clusters that hosted it before and host it now.
    Store(Address, Vec<String>),
    /// A region.
    Region(String),
    /// A server.
    Server(String),
    /// Intent of a cluster.
    Intent(String),
    /// A lease of a coordinator.
    Lease(String),
    /// What the agent of a cluster observed.
    Observation(String),
    /// The agent of a cluster connected to or disconnected from this server.
    Presence(String),
}

/// Objects of one kind.
#[derive(Debug)]
pub struct Table<T> {
    items: BTreeMap<Address, Item<T>>,
    unreadable: BTreeSet<Address>,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self {
            items: BTreeMap::new(),
            unreadable: BTreeSet::new(),
        }
    }
}

impl<T> Table<T> {
    /// The object at `address`.
    pub fn get(&self, address: &Address) -> Option<&Item<T>> {
        self.items.get(address)
    }

    /// The object of a cluster-scoped kind.
    pub fn named(&self, name: &str) -> Option<&Item<T>> {
        self.items.get(&Address::global(name))
    }

    /// All, by address.
    pub fn iter(&self) -> impl Iterator<Item = (&Address, &Item<T>)> {
        self.items.iter()
    }

    /// Whether an object that this version cannot read is stored at `address`: it must not be taken for absent.
    pub fn is_unreadable(&self, address: &Address) -> bool {
        self.unreadable.contains(address)
    }

    /// Whether any object of the kind cannot be read by this version.
    pub fn has_unreadable(&self) -> bool {
        !self.unreadable.is_empty()
    }

    fn addresses(&self) -> Vec<Address> {
        self.items.keys().chain(&self.unreadable).cloned().collect()
    }

    fn delete(&mut self, address: &Address) {
        self.items.remove(address);
        self.unreadable.remove(address);
    }
}

impl<Spec, Stat> Table<Object<Spec, Stat>>
where
    Object<Spec, Stat>: DeserializeOwned,
{
    fn put(&mut self, kind: KindName, raw: &Raw) {
        match serde_json::from_slice::<Object<Spec, Stat>>(&raw.value) {
            Ok(mut object) => {
                object.metadata.name.clone_from(&raw.address.name);
                object.metadata.namespace = Some(raw.address.namespace.clone()).filter(|n| !n.is_empty());
                self.unreadable.remove(&raw.address);
                self.items.insert(
                    raw.address.clone(),
                    Item {
                        revision: raw.revision,
                        object: Arc::new(object),
                    },
                );
            }
            Err(error) => {
                tracing::error!(
                    kind = kind.kind, object = %raw.address, revision = raw.revision, %error,
                    "a stored object cannot be read; it is left alone until it is repaired"
                );
                self.items.remove(&raw.address);
                self.unreadable.insert(raw.address.clone());
            }
        }
    }
}

/// What one server knows of the council.
#[derive(Debug, Default)]
pub struct View {
    /// Projects.
    pub projects: Table<Project>,
    /// Connected clusters.
    pub clusters: Table<Cluster>,
    /// Tenant clusters.
    pub tenants: Table<VirtualClusterInstance>,
    /// Regions.
    pub regions: Table<Region>,
    /// Servers.
    pub servers: Table<Server>,
    /// Hosts and secrets of tenants.
    pub stores: Table<TenantStore>,
    /// Intents of clusters.
    pub intents: Table<IntentObject>,
    /// Leases and their renewals.
    pub leases: Table<RegionLease>,
    /// What agents observed.
    pub observations: Table<Observation>,
    by_tenant: BTreeMap<String, Address>,
    by_cluster: BTreeMap<String, BTreeSet<Address>>,
    presence: BTreeMap<String, Presence>,
    started: Timestamp,
    /// Highest revision seen of each kind, by plural name.
    revisions: BTreeMap<&'static str, i64>,
}

impl View {
    /// An empty view of a server that started at `started`.
    pub fn new(started: Timestamp) -> Self {
        Self {
            started,
            ..Self::default()
        }
    }

    /// Takes in one changed object; says what changed.
    pub fn put(&mut self, kind: KindName, raw: &Raw) -> Option<Change> {
        self.saw(kind, raw.revision);
        let name = || raw.address.name.clone();
        match kind.plural {
            p if p == PROJECTS.plural => self.projects.put(kind, raw),
            p if p == CLUSTERS.plural => self.clusters.put(kind, raw),
            p if p == VIRTUAL_CLUSTER_INSTANCES.plural => self.tenants.put(kind, raw),
            p if p == REGIONS.plural => self.regions.put(kind, raw),
            p if p == SERVERS.plural => self.servers.put(kind, raw),
            p if p == INTENTS.plural => self.intents.put(kind, raw),
            p if p == REGION_LEASES.plural => self.leases.put(kind, raw),
            p if p == OBSERVATIONS.plural => self.observations.put(kind, raw),
            p if p == TENANT_STORES.plural => {
                let mut clusters = self.unindex(&raw.address);
                self.stores.put(kind, raw);
                clusters.extend(self.index(&raw.address));
                clusters.dedup();
                return Some(Change::Store(raw.address.clone(), clusters));
            }
            _ => return None,
        }
        change(kind, &raw.address, name())
    }

    /// Takes in one deletion; says what changed.
    pub fn delete(&mut self, kind: KindName, address: &Address, revision: i64) -> Option<Change> {
        self.saw(kind, revision);
        match kind.plural {
            p if p == PROJECTS.plural => self.projects.delete(address),
            p if p == CLUSTERS.plural => self.clusters.delete(address),
            p if p == VIRTUAL_CLUSTER_INSTANCES.plural => self.tenants.delete(address),
            p if p == REGIONS.plural => self.regions.delete(address),
            p if p == SERVERS.plural => self.servers.delete(address),
            p if p == INTENTS.plural => self.intents.delete(address),
            p if p == REGION_LEASES.plural => self.leases.delete(address),
            p if p == OBSERVATIONS.plural => self.observations.delete(address),
            p if p == TENANT_STORES.plural => {
                let clusters = self.unindex(address);
                self.stores.delete(address);
                return Some(Change::Store(address.clone(), clusters));
            }
            _ => return None,
        }
        change(kind, address, address.name.clone())
    }

    /// Objects that the view has and a new list does not: they went while nobody watched.
    pub fn forget_absent(&self, listed: &[(KindName, Raw)]) -> Vec<(KindName, Address)> {
        let there: BTreeSet<(&str, &Address)> = listed.iter().map(|(k, raw)| (k.plural, &raw.address)).collect();
        FOLLOWED
            .into_iter()
            .flat_map(|kind| self.addresses(kind).into_iter().map(move |address| (kind, address)))
            .filter(|(kind, address)| !there.contains(&(kind.plural, address)))
            .collect()
    }

    fn addresses(&self, kind: KindName) -> Vec<Address> {
        match kind.plural {
            p if p == PROJECTS.plural => self.projects.addresses(),
            p if p == CLUSTERS.plural => self.clusters.addresses(),
            p if p == VIRTUAL_CLUSTER_INSTANCES.plural => self.tenants.addresses(),
            p if p == REGIONS.plural => self.regions.addresses(),
            p if p == SERVERS.plural => self.servers.addresses(),
            p if p == INTENTS.plural => self.intents.addresses(),
            p if p == REGION_LEASES.plural => self.leases.addresses(),
            p if p == OBSERVATIONS.plural => self.observations.addresses(),
            p if p == TENANT_STORES.plural => self.stores.addresses(),
            _ => Vec::new(),
        }
    }

    /// Notes that everything of `kind` up to `revision` has been taken in.
    pub fn saw(&mut self, kind: KindName, revision: i64) {
        let seen = self.revisions.entry(kind.plural).or_default();
        *seen = revision.max(*seen);
    }

    /// Revision up to which `kind` has been taken in.
    pub fn seen(&self, kind: KindName) -> i64 {
        self.revisions.get(kind.plural).copied().unwrap_or(0)
    }

    /// Takes in who has a session now; says whose state changed.
    pub fn set_sessions(&mut self, connected: &BTreeSet<String>, now: Timestamp) -> Vec<Change> {
        let mut changes = Vec::new();
        for cluster in connected {
            if !self.presence.get(cluster).is_some_and(|p| p.connected) {
                self.presence.insert(
                    cluster.clone(),
                    Presence {
                        connected: true,
                        since: now,
                    },
                );
                changes.push(Change::Presence(cluster.clone()));
            }
        }
        for (cluster, presence) in &mut self.presence {
            if presence.connected && !connected.contains(cluster) {
                *presence = Presence {
                    connected: false,
                    since: now,
                };
                changes.push(Change::Presence(cluster.clone()));
            }
        }
        changes
    }

    /// Whether the agent of `cluster` has a session here. One that was never seen is absent since this server started.
    pub fn presence(&self, cluster: &str) -> Presence {
        self.presence.get(cluster).copied().unwrap_or(Presence {
            connected: false,
            since: self.started,
        })
    }

    /// Who is responsible for `cluster`: the region that its annotation names, if that exists; else the fleet.
    pub fn scope_of_cluster(&self, cluster: &str) -> Scope {
        self.clusters
            .named(cluster)
            .and_then(|c| c.object.metadata.annotations.get(ANNOTATION_REGION))
            .filter(|region| self.regions.named(region).is_some())
            .map_or(Scope::Fleet, |region| Scope::Region(region.clone()))
    }

    /// Who is responsible for the tenant at `address`: the scope of its host, or the fleet while it has none.
    pub fn scope_of_tenant(&self, address: &Address) -> Scope {
        self.stores
            .get(address)
            .map_or(Scope::Fleet, |store| self.scope_of_cluster(&store.object.spec.cluster))
    }

    /// Tenants that `cluster` hosts.
    pub fn hosted_by(&self, cluster: &str) -> impl Iterator<Item = (&Address, &Item<TenantStore>)> {
        self.by_cluster
            .get(cluster)
            .into_iter()
            .flatten()
            .filter_map(|address| self.stores.get(address).map(|store| (address, store)))
    }

    /// How many tenants `cluster` hosts.
    pub fn tenants_on(&self, cluster: &str) -> usize {
        self.by_cluster.get(cluster).map_or(0, BTreeSet::len)
    }

    /// Host record of the tenant with the key space `tenant`.
    pub fn host_of(&self, tenant: &str) -> Option<&Item<TenantStore>> {
        self.by_tenant.get(tenant).and_then(|address| self.stores.get(address))
    }

    /// Names of the servers of `region`.
    pub fn servers_of<'a>(&'a self, region: &'a str) -> impl Iterator<Item = &'a str> {
        self.servers
            .iter()
            .filter(move |(_, s)| s.object.spec.region == region)
            .map(|(a, _)| a.name.as_str())
    }

    /// Region of a server.
    pub fn region_of_server(&self, server: &str) -> Option<&str> {
        self.servers.named(server).map(|s| s.object.spec.region.as_str())
    }

    fn index(&mut self, address: &Address) -> Option<String> {
        let spec = self.stores.get(address).map(|s| s.object.spec.clone())?;
        self.by_tenant.insert(spec.tenant, address.clone());
        self.by_cluster
            .entry(spec.cluster.clone())
            .or_default()
            .insert(address.clone());
        Some(spec.cluster)
    }

    fn unindex(&mut self, address: &Address) -> Vec<String> {
        let Some(spec) = self.stores.get(address).map(|s| s.object.spec.clone()) else {
            return Vec::new();
        };
        self.by_tenant.remove(&spec.tenant);
        if let Some(hosted) = self.by_cluster.get_mut(&spec.cluster) {
            hosted.remove(address);
            if hosted.is_empty() {
                self.by_cluster.remove(&spec.cluster);
            }
        }
        vec![spec.cluster]
    }
}

fn change(kind: KindName, address: &Address, name: String) -> Option<Change> {
    Some(match kind.plural {
        p if p == PROJECTS.plural => Change::Project(name),
        p if p == CLUSTERS.plural => Change::Cluster(name),
        p if p == VIRTUAL_CLUSTER_INSTANCES.plural => Change::Tenant(address.clone()),
        p if p == REGIONS.plural => Change::Region(name),
        p if p == SERVERS.plural => Change::Server(name),
        p if p == INTENTS.plural => Change::Intent(name),
        p if p == REGION_LEASES.plural => Change::Lease(name),
        p if p == OBSERVATIONS.plural => Change::Observation(name),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Fixture, START, at, vci};

    #[test]
    fn indexes_follow_the_host_of_a_tenant() {
        let mut fixture = Fixture::new();
        fixture.tenant(&vci("a")).store("a", "eu");
        assert_eq!(fixture.view.scope_of_tenant(&at("a")), Scope::Region("eu".into()));
        assert_eq!((fixture.view.tenants_on("eu"), fixture.view.tenants_on("us")), (1, 0));
        fixture.store("a", "us");
        assert_eq!((fixture.view.tenants_on("eu"), fixture.view.tenants_on("us")), (0, 1));
        assert_eq!(fixture.view.host_of("uid-a").unwrap().object.spec.cluster, "us");
        let change = fixture.view.delete(TENANT_STORES, &at("a"), 999);
        assert_eq!(change, Some(Change::Store(at("a"), vec!["us".into()])));
        assert!(fixture.view.host_of("uid-a").is_none());
        assert_eq!(fixture.view.scope_of_tenant(&at("a")), Scope::Fleet);
    }

    #[test]
    fn a_moved_tenant_concerns_both_clusters() {
        let mut fixture = Fixture::new();
        fixture.store("a", "eu");
        let mut store = fixture.view.stores.get(&at("a")).unwrap().object.as_ref().clone();
        store.spec.cluster = "us".into();
        let value = serde_json::to_vec(&store).unwrap().into();
        let change = fixture.view.put(
            TENANT_STORES,
            &Raw {
                address: at("a"),
                value,
                revision: 900,
            },
        );
        assert_eq!(change, Some(Change::Store(at("a"), vec!["eu".into(), "us".into()])));
    }

    #[test]
    fn a_cluster_of_an_unknown_region_is_the_fleets() {
        let mut fixture = Fixture::new();
        fixture.cluster("x", "nowhere", true);
        assert_eq!(fixture.view.scope_of_cluster("x"), Scope::Fleet);
        assert_eq!(fixture.view.scope_of_cluster("absent"), Scope::Fleet);
        fixture.region("nowhere");
        assert_eq!(fixture.view.scope_of_cluster("x"), Scope::Region("nowhere".into()));
    }

    #[test]
    fn what_cannot_be_read_is_neither_there_nor_absent() {
        let mut fixture = Fixture::new();
        fixture.tenant(&vci("a"));
        let broken = Raw {
            address: at("a"),
            value: "{".into(),
            revision: 900,
        };
        fixture.view.put(VIRTUAL_CLUSTER_INSTANCES, &broken);
        assert!(fixture.view.tenants.get(&at("a")).is_none() && fixture.view.tenants.is_unreadable(&at("a")));
        fixture.tenant(&vci("a"));
        assert!(!fixture.view.tenants.is_unreadable(&at("a")));
    }

    #[test]
    fn sessions_change_once_each_way() {
        let mut view = View::new(START);
        let later = Timestamp::from_millis(START.as_millis() + 1000);
        let connected = BTreeSet::from(["eu".to_owned()]);
        assert_eq!(view.set_sessions(&connected, later), [Change::Presence("eu".into())]);
        assert_eq!(view.set_sessions(&connected, later), []);
        assert_eq!(
            view.presence("eu"),
            Presence {
                connected: true,
                since: later
            }
        );
        assert_eq!(
            view.presence("us"),
            Presence {
                connected: false,
                since: START
            }
        );
        assert_eq!(
            view.set_sessions(&BTreeSet::new(), later),
            [Change::Presence("eu".into())]
        );
        assert_eq!(view.set_sessions(&BTreeSet::new(), later), []);
    }

    #[test]
    fn a_new_list_shows_what_went_while_nobody_watched() {
        let mut fixture = Fixture::new();
        fixture.tenant(&vci("a")).tenant(&vci("b"));
        let kept = Raw {
            address: at("b"),
            value: Bytes::new(),
            revision: 1,
        };
        let gone = fixture.view.forget_absent(&[(VIRTUAL_CLUSTER_INSTANCES, kept)]);
        assert!(gone.contains(&(VIRTUAL_CLUSTER_INSTANCES, at("a"))));
        assert!(!gone.contains(&(VIRTUAL_CLUSTER_INSTANCES, at("b"))));
        assert!(gone.contains(&(PROJECTS, Address::global("default"))));
    }
}
