//! The first objects: what a server makes sure of when it starts. Running it again changes nothing.

use hanse_api::Timestamp;
use hanse_api::access::GROUP_ADMINS;
use hanse_api::kinds::{
    ACCESS_KEYS, ANNOTATION_REGION, CLUSTERS, ENROLMENT_TOKENS, KindName, PROJECTS, REGIONS, SERVERS, USERS,
};
use hanse_api::meta::{Object, ObjectMeta};
use hanse_api::resources::project::AllowedCluster;
use hanse_api::resources::{
    AccessKeySpec, ClusterSpec, ClusterStatus, EnrolmentTokenSpec, ProjectSpec, ProjectStatus, RegionSpec,
    RegionStatus, ServerSpec, ServerStatus, UserSpec,
};
use hanse_runtime::clock::Clock;
use hanse_runtime::rng::Rng;
use hanse_state::objects::{ObjectError, Objects, Op};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::address::Address;
use crate::error::{BootstrapError, StepError};
use crate::reconciler::encode;

/// The project that everybody starts with.
pub const DEFAULT_PROJECT: &str = "default";
/// Tries when several servers start at once.
const TRIES: usize = 8;

/// What a server makes sure of.
#[derive(Clone, Debug, Default)]
pub struct Seed {
    /// Name of this server.
    pub server: String,
    /// Its id, region and addresses.
    pub server_spec: ServerSpec,
    /// The first administrator, if one is configured.
    pub admin: Option<AdminSeed>,
    /// Connected clusters that the configuration names.
    pub clusters: Vec<ClusterSeed>,
}

/// The first administrator.
#[derive(Clone, Debug, Default)]
pub struct AdminSeed {
    /// Login name.
    pub user: String,
    /// Public id of the access key.
    pub key_id: String,
    /// SHA-256 of the key's secret, lower-case hex.
    pub secret_sha256: String,
}

/// A connected cluster.
#[derive(Clone, Debug, Default)]
pub struct ClusterSeed {
    /// Name.
    pub name: String,
    /// Region.
    pub region: String,
    /// Token with which its agent may enrol.
    pub token: Option<TokenSeed>,
}

/// An enrolment token.
#[derive(Clone, Debug, Default)]
pub struct TokenSeed {
    /// Public id.
    pub id: String,
    /// SHA-256 of the secret, lower-case hex.
    pub secret_sha256: String,
    /// Refused after this time.
    pub expires: Timestamp,
}

/// Makes sure of everything in `seed`. Needs a majority of servers, so a first server of three waits for its peers.
pub async fn bootstrap(objects: &Objects, clock: &dyn Clock, rng: &dyn Rng, seed: &Seed) -> Result<(), BootstrapError> {
    let maker = Maker { objects, clock, rng };
    let region = seed.server_spec.region.clone();
    maker.region(&region).await?;
    let spec = seed.server_spec.clone();
    // What is configured counts: addresses may change between two starts.
    maker
        .ensure::<ServerSpec, ServerStatus>(SERVERS, &seed.server, |server, _| server.spec = spec.clone())
        .await?;
    maker
        .ensure::<ProjectSpec, ProjectStatus>(PROJECTS, DEFAULT_PROJECT, |project, new| {
            if new {
                "Default".clone_into(&mut project.spec.display_name);
                project.spec.allowed_clusters = vec![AllowedCluster { name: "*".to_owned() }];
            }
        })
        .await?;
    if let Some(admin) = &seed.admin {
        maker.admin(admin).await?;
    }
    for cluster in &seed.clusters {
        maker.cluster(cluster).await?;
    }
    Ok(())
}

struct Maker<'a> {
    objects: &'a Objects,
    clock: &'a dyn Clock,
    rng: &'a dyn Rng,
}

impl Maker<'_> {
    async fn region(&self, region: &str) -> Result<(), BootstrapError> {
        self.ensure::<RegionSpec, RegionStatus>(REGIONS, region, |_, _| {})
            .await
    }

    async fn admin(&self, admin: &AdminSeed) -> Result<(), BootstrapError> {
        self.ensure::<UserSpec, ()>(USERS, &admin.user, |user, new| {
            if new {
                user.spec = UserSpec {
                    username: admin.user.clone(),
                    groups: vec![GROUP_ADMINS.to_owned()],
                    ..UserSpec::default()
                };
            }
        })
        .await?;
        self.ensure::<AccessKeySpec, ()>(ACCESS_KEYS, &admin.key_id, |key, new| {
            if new {
                "first administrator".clone_into(&mut key.spec.display_name);
            }
            key.spec.user.clone_from(&admin.user);
            key.spec.secret_sha256.clone_from(&admin.secret_sha256);
        })
        .await
    }

    async fn cluster(&self, seed: &ClusterSeed) -> Result<(), BootstrapError> {
        self.region(&seed.region).await?;
        self.ensure::<ClusterSpec, ClusterStatus>(CLUSTERS, &seed.name, |cluster, new| {
            if new {
                cluster.spec.network_peer = true;
                cluster
                    .metadata
                    .annotations
                    .insert(ANNOTATION_REGION.to_owned(), seed.region.clone());
            }
        })
        .await?;
        let Some(token) = &seed.token else { return Ok(()) };
        self.ensure::<EnrolmentTokenSpec, ()>(ENROLMENT_TOKENS, &token.id, |object, new| {
            if new {
                object.spec = EnrolmentTokenSpec {
                    cluster: seed.name.clone(),
                    secret_sha256: token.secret_sha256.clone(),
                    expires: token.expires,
                    used_by_key_sha256: None,
                };
            }
        })
        .await
    }

    /// Makes the object as `shape` wants it; `shape` is told whether it is new.
    async fn ensure<Spec, Stat>(
        &self,
        kind: KindName,
        name: &str,
        shape: impl Fn(&mut Object<Spec, Stat>, bool) + Send + Sync,
    ) -> Result<(), BootstrapError>
    where
        Spec: Default + PartialEq,
        Stat: Default + PartialEq,
        Object<Spec, Stat>: Serialize + DeserializeOwned + Clone + PartialEq + Send + Sync,
    {
        let what = || format!("{} {name}", kind.kind);
        let key = Address::global(name).key(kind);
        for _ in 0..TRIES {
            let council = |source: ObjectError| BootstrapError::Council { what: what(), source };
            let json = |source: serde_json::Error| BootstrapError::Json { what: what(), source };
            let op = match self.objects.get(&key).await.map_err(council)? {
                Some(stored) => {
                    let old: Object<Spec, Stat> = serde_json::from_slice(&stored.value).map_err(json)?;
                    let mut new = old.clone();
                    shape(&mut new, false);
                    if new == old {
                        return Ok(());
                    }
                    new.metadata.generation += 1;
                    let value = encode(&new).map_err(|e| unwrap_json(e, what()))?;
                    Op::Update {
                        key: key.clone(),
                        value,
                        expected: stored.revision,
                    }
                }
                None => {
                    let mut new = self.fresh(kind, name);
                    shape(&mut new, true);
                    Op::Create {
                        key: key.clone(),
                        value: encode(&new).map_err(|e| unwrap_json(e, what()))?,
                    }
                }
            };
            match self.objects.commit(vec![op]).await {
                Ok(_) => return Ok(()),
                // Another server of the same configuration was quicker.
                Err(ObjectError::Failed { .. }) => {}
                Err(error) => return Err(council(error)),
            }
        }
        Err(BootstrapError::Contended { what: what() })
    }

    fn fresh<Spec: Default, Stat: Default>(&self, kind: KindName, name: &str) -> Object<Spec, Stat> {
        Object {
            api_version: kind.api_version(),
            kind: kind.kind.to_owned(),
            metadata: ObjectMeta {
                name: name.to_owned(),
                uid: self.rng.uuid(),
                generation: 1,
                creation_timestamp: Some(self.clock.wall()),
                ..ObjectMeta::default()
            },
            spec: Spec::default(),
            status: Stat::default(),
        }
    }
}

fn unwrap_json(error: StepError, what: String) -> BootstrapError {
    match error {
        StepError::Json { source, .. } => BootstrapError::Json { what, source },
        other => BootstrapError::Json {
            what,
            source: serde::ser::Error::custom(other),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{START, objects};
    use hanse_api::resources::{AccessKey, Cluster, Project, Server, User};
    use hanse_runtime::clock::testing::ManualClock;
    use hanse_runtime::rng::SeededRng;

    fn seed() -> Seed {
        Seed {
            server: "eu-1".into(),
            server_spec: ServerSpec {
                id: 1,
                region: "eu".into(),
                raft: "127.0.1.1:8444".into(),
                ..Default::default()
            },
            admin: Some(AdminSeed {
                user: "admin".into(),
                key_id: "k1".into(),
                secret_sha256: "aa".into(),
            }),
            clusters: vec![ClusterSeed {
                name: "eu".into(),
                region: "eu".into(),
                token: Some(TokenSeed {
                    id: "t1".into(),
                    secret_sha256: "bb".into(),
                    expires: START,
                }),
            }],
        }
    }

    async fn read<T: DeserializeOwned>(objects: &Objects, kind: KindName, name: &str) -> T {
        let stored = objects.get(&Address::global(name).key(kind)).await.unwrap().unwrap();
        serde_json::from_slice(&stored.value).unwrap()
    }

    #[tokio::test]
    async fn a_second_run_writes_nothing_and_a_changed_address_is_taken_over() {
        let (objects, clock, rng) = (objects(), ManualClock::new(START), SeededRng::new(1));
        let run = |seed: Seed| {
            let (objects, clock, rng) = (&objects, &clock, &rng);
            async move { bootstrap(objects, clock, rng, &seed).await.unwrap() }
        };
        run(seed()).await;
        let user: User = read(&objects, USERS, "admin").await;
        assert_eq!(user.spec.groups, [GROUP_ADMINS]);
        let key: AccessKey = read(&objects, ACCESS_KEYS, "k1").await;
        assert_eq!(
            (key.spec.user.as_str(), key.spec.secret_sha256.as_str()),
            ("admin", "aa")
        );
        let project: Project = read(&objects, PROJECTS, DEFAULT_PROJECT).await;
        assert!(project.spec.allows_cluster("anything"));
        let cluster: Cluster = read(&objects, CLUSTERS, "eu").await;
        assert_eq!(cluster.metadata.annotations[ANNOTATION_REGION], "eu");
        let revision = objects.store().revision();
        run(seed()).await;
        assert_eq!(objects.store().revision(), revision);

        let mut moved = seed();
        moved.server_spec.raft = "127.0.1.9:8444".into();
        run(moved).await;
        let server: Server = read(&objects, SERVERS, "eu-1").await;
        assert_eq!(
            (server.spec.raft.as_str(), server.metadata.generation),
            ("127.0.1.9:8444", 2)
        );
        assert_eq!(objects.store().revision(), revision + 1);
    }

    #[tokio::test]
    async fn what_people_changed_stays() {
        let (objects, clock, rng) = (objects(), ManualClock::new(START), SeededRng::new(1));
        bootstrap(&objects, &clock, &rng, &seed()).await.unwrap();
        let key = Address::global(DEFAULT_PROJECT).key(PROJECTS);
        let stored = objects.get(&key).await.unwrap().unwrap();
        let mut project: Project = serde_json::from_slice(&stored.value).unwrap();
        project.spec.allowed_clusters = vec![AllowedCluster { name: "eu".into() }];
        let value = encode(&project).unwrap();
        objects
            .commit(vec![Op::Update {
                key,
                value,
                expected: stored.revision,
            }])
            .await
            .unwrap();
        bootstrap(&objects, &clock, &rng, &seed()).await.unwrap();
        let project: Project = read(&objects, PROJECTS, DEFAULT_PROJECT).await;
        assert!(!project.spec.allows_cluster("us"));
    }

    #[tokio::test]
    async fn servers_that_start_at_once_do_not_disturb_each_other() {
        let (objects, clock) = (objects(), ManualClock::new(START));
        let rngs: Vec<SeededRng> = (0..3).map(SeededRng::new).collect();
        let seed = seed();
        let all = rngs.iter().map(|rng| bootstrap(&objects, &clock, rng, &seed));
        for done in futures::future::join_all(all).await {
            done.unwrap();
        }
    }
}
