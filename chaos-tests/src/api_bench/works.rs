//! What is asked of both sides, with the same bodies.

use super::Plan;
use super::client::{Call, Connection};
use super::sides::{PROJECTS, Side};
use super::watch;
use crate::bench::{Aim, Ask, Figures, Window, closed_loop};
use anyhow::{Context as _, Result, ensure};
use futures::stream::{StreamExt as _, TryStreamExt as _, iter};
use hanse_runtime::rng::{Rng as _, SeededRng};
use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::json;
use std::collections::HashMap;

pub(super) const JSON: &str = "application/json";
pub(super) const MERGE: &str = "application/merge-patch+json";
const APPLY: &str = "application/apply-patch+yaml";
/// Clients share connections beyond this many.
const CONNECTIONS: usize = 32;
/// Clients that list at once, at most: a list keeps a server busy for long.
const LISTERS: usize = 4;
/// Objects that are made at once, before anything counts.
const FILLERS: usize = 32;
/// Objects in a part of a list, as `kubectl` asks for them.
const CHUNK: usize = 500;
/// Twice the throughput at half the memory.
const AIM: Aim = Aim {
    throughput: Some(2.0),
    p99: None,
    cpu: None,
    memory: Some(0.5),
};
/// The rate is given, so what an event costs is compared.
const WATCH_AIM: Aim = Aim {
    throughput: None,
    p99: Some(1.0),
    cpu: Some(0.5),
    memory: Some(0.5),
};

/// What one request of a load is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One object, as it is now.
    Get,
    /// All in one answer.
    List,
    /// All, by parts of 500; the whole walk counts as one answer.
    Chunks,
    /// PUT with the revision that the client knows.
    Update,
    /// Server-side apply that changes a field.
    Apply,
    /// Watchers of all, told of writes at a steady rate; events per second are given.
    Watch,
    /// POST of a new object.
    Create,
}

/// One line of the table.
#[derive(Clone, Debug)]
pub struct Work {
    /// What it is called.
    pub title: String,
    /// What is asked.
    pub kind: Kind,
    /// By how many at once.
    pub clients: usize,
    /// What Hanse aims at beside kube-apiserver.
    pub aim: Aim,
}

/// Of a number, with commas.
fn grouped(number: usize) -> String {
    match number {
        0..1000 => number.to_string(),
        _ => format!("{},{:03}", grouped(number / 1000), number % 1000),
    }
}

/// All works of a plan. Those that make objects come last: all others find as many on both sides.
pub fn works(plan: &Plan) -> Vec<Work> {
    let (clients, listers, objects) = (plan.clients, plan.clients.min(LISTERS), grouped(plan.objects));
    let work = |what: String, kind, clients: usize| {
        let client = if clients == 1 { "client" } else { "clients" };
        Work {
            title: format!("{what}, {clients} {client}"),
            kind,
            clients,
            aim: AIM,
        }
    };
    let watch = Work {
        title: format!("{} watchers, {}/s", grouped(plan.watchers), plan.rate),
        kind: Kind::Watch,
        clients: plan.watchers,
        aim: WATCH_AIM,
    };
    vec![
        work("get".into(), Kind::Get, clients),
        work(format!("list of {objects}"), Kind::List, listers),
        work(format!("list of {objects} by {CHUNK}"), Kind::Chunks, listers),
        work("update".into(), Kind::Update, clients),
        work("server-side apply".into(), Kind::Apply, clients),
        watch,
        work("create".into(), Kind::Create, clients),
    ]
}

/// `count` connections at most, spread over the servers.
pub(super) async fn connections(side: &Side, count: usize) -> Result<Vec<Connection>> {
    let targets = side.targets();
    let mut all = Vec::new();
    for n in 0..count.min(CONNECTIONS) {
        let target = targets.get(n % targets.len().max(1)).context("no server")?;
        all.push(Connection::open(target).await?);
    }
    Ok(all)
}

/// Of an object that all works find. Hanse begins with a project of its own, which is one of them, so both have as many.
pub(super) fn name(number: usize) -> String {
    match number {
        0 => "default".to_owned(),
        _ => format!("bench-{number:06}"),
    }
}

/// A project as people have them.
fn project(name: &str, display: &str, revision: Option<&str>) -> String {
    let member = |kind: &str, who: &str, role: &str| json!({ "kind": kind, "name": who, "clusterRole": format!("loft-management-project-{role}") });
    let mut metadata = json!({
        "name": name,
        "labels": { "example.com/stage": "production", "example.com/owner": "payments" },
        "annotations": { "example.com/contact": "payments@example.com, on call at any time" },
    });
    if let Some(revision) = revision {
        metadata["resourceVersion"] = revision.into();
    }
    let members = [
        member("Team", "payments", "admin"),
        member("User", "ann", "user"),
        member("User", "bob", "viewer"),
    ];
    json!({
        "apiVersion": "management.loft.sh/v1", "kind": "Project", "metadata": metadata,
        "spec": { "displayName": display, "members": members, "allowedClusters": [{ "name": "eu" }, { "name": "us" }] },
    })
    .to_string()
}

fn create(name: &str) -> Call {
    Call {
        method: Method::POST,
        path: format!("{PROJECTS}?fieldManager=bench"),
        media: JSON,
        body: project(name, name, None),
    }
}

/// Makes the objects that all works find.
pub(super) async fn fill(side: &Side, plan: &Plan) -> Result<()> {
    let connections = connections(side, FILLERS).await?;
    let made = (0..plan.objects).map(|number| {
        let mut connection = connections[number % connections.len()].clone();
        async move {
            let (code, body) = connection.outcome(create(&name(number))).await?;
            let there = number == 0 && code == StatusCode::CONFLICT;
            ensure!(there || code.is_success(), "{code}: {}", String::from_utf8_lossy(&body));
            Ok(())
        }
    });
    let made = iter(made).buffer_unordered(FILLERS);
    made.try_for_each(|_| async { Ok(()) }).await.context("fill")
}

/// One client: its connection, its randomness, what it knows.
struct Client {
    number: usize,
    connection: Connection,
    rng: SeededRng,
    /// Revisions of its objects, as a controller's cache has them.
    revisions: HashMap<usize, String>,
    asked: usize,
}

/// A client's requests.
struct Requests {
    kind: Kind,
    clients: usize,
    objects: usize,
}

#[derive(Deserialize)]
struct Object {
    metadata: Metadata,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    resource_version: String,
}

pub(super) fn revision(body: &[u8]) -> Result<String> {
    let object: Object = serde_json::from_slice(body).context("an object or a list")?;
    Ok(object.metadata.resource_version)
}

impl Work {
    /// One run on one side.
    pub(super) async fn run(&self, side: &Side, plan: &Plan, window: Window) -> Result<Figures> {
        if self.kind == Kind::Watch {
            return watch::run(side, plan, window).await;
        }
        let connections = connections(side, self.clients).await?;
        let client = |number: usize| Client {
            number,
            connection: connections[number % connections.len()].clone(),
            rng: SeededRng::new(number as u64 + 1),
            revisions: HashMap::new(),
            asked: 0,
        };
        let clients: Vec<Client> = (0..self.clients).map(client).collect();
        let requests = Requests {
            kind: self.kind,
            clients: self.clients,
            objects: plan.objects,
        };
        closed_loop(&side.processes(), clients, window, requests).await
    }
}

impl Ask<Client> for Requests {
    type Error = String;

    async fn ask(&self, client: &mut Client) -> Result<(), String> {
        client.asked += 1;
        self.try_ask(client).await.map_err(|error| format!("{error:#}"))
    }
}

impl Requests {
    async fn try_ask(&self, client: &mut Client) -> Result<()> {
        match self.kind {
            Kind::Get => {
                let path = format!("{PROJECTS}/{}", name(below(self.objects, &client.rng)));
                client.connection.send(Call::get(path)).await.map(|_| ())
            }
            Kind::List => self.list(client).await,
            Kind::Chunks => self.chunks(client).await,
            Kind::Update => self.update(client).await,
            Kind::Apply => self.apply(client).await,
            Kind::Create => {
                let name = format!("made-{}-{}", client.number, client.asked);
                client.connection.send(create(&name)).await.map(|_| ())
            }
            Kind::Watch => anyhow::bail!("watchers are no closed loop"),
        }
    }

    async fn list(&self, client: &mut Client) -> Result<()> {
        let body = client.connection.send(Call::get(PROJECTS.to_owned())).await?;
        self.complete(objects_of(&body)?)
    }

    async fn chunks(&self, client: &mut Client) -> Result<()> {
        let (mut found, mut token) = (0, String::new());
        loop {
            let mut path = format!("{PROJECTS}?limit={CHUNK}");
            if !token.is_empty() {
                path.push_str(&format!("&continue={}", token.replace('+', "%2B")));
            }
            let body = client.connection.send(Call::get(path)).await?;
            found += objects_of(&body)?;
            match resume(&body)? {
                Some(next) => token = next,
                None => return self.complete(found),
            }
        }
    }

    fn complete(&self, found: usize) -> Result<()> {
        ensure!(found == self.objects, "{found} objects instead of {}", self.objects);
        Ok(())
    }

    /// The number of one of the objects that only this client changes.
    fn own(&self, client: &Client) -> usize {
        let share = (self.objects / self.clients).max(1);
        (client.number * share + below(share, &client.rng)) % self.objects
    }

    async fn update(&self, client: &mut Client) -> Result<()> {
        let number = self.own(client);
        let (name, display) = (name(number), format!("update {}", client.asked));
        let known = match client.revisions.remove(&number) {
            Some(known) => known,
            None => {
                let path = format!("{PROJECTS}/{name}");
                revision(&client.connection.send(Call::get(path)).await?)?
            }
        };
        let call = Call {
            method: Method::PUT,
            path: format!("{PROJECTS}/{name}?fieldManager=bench"),
            media: JSON,
            body: project(&name, &display, Some(&known)),
        };
        let answer = client.connection.send(call).await?;
        client.revisions.insert(number, revision(&answer)?);
        Ok(())
    }

    async fn apply(&self, client: &mut Client) -> Result<()> {
        let name = name(self.own(client));
        let call = Call {
            method: Method::PATCH,
            path: format!("{PROJECTS}/{name}?fieldManager=applier&force=true"),
            media: APPLY,
            body: project(&name, &format!("apply {}", client.asked), None),
        };
        client.connection.send(call).await.map(|_| ())
    }
}

fn below(count: usize, rng: &SeededRng) -> usize {
    ((rng.unit() * count as f64) as usize).min(count.saturating_sub(1))
}

/// How many objects a list holds. Read as text: what the driver costs comes from the servers' processors.
fn objects_of(body: &[u8]) -> Result<usize> {
    let text = std::str::from_utf8(body).context("a list")?;
    Ok(text.matches(r#""uid":""#).count())
}

/// The token by which a list goes on.
fn resume(body: &[u8]) -> Result<Option<String>> {
    let text = std::str::from_utf8(body).context("a list")?;
    let token = text
        .split_once(r#""continue":""#)
        .and_then(|(_, rest)| rest.split_once('"'));
    Ok(token
        .map(|(token, _)| token.to_owned())
        .filter(|token| !token.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_as_text() {
        let managed = r#"{"f:uid":{},"k:{\"uid\":\"1\"}":{}}"#;
        let item = format!(r#"{{"metadata":{{"name":"a","uid":"1","managedFields":[{{"fieldsV1":{managed}}}]}}}}"#);
        let list = format!(r#"{{"items":[{item},{item}],"metadata":{{"continue":"x+y=","resourceVersion":"7"}}}}"#);
        assert_eq!(objects_of(list.as_bytes()).unwrap(), 2);
        assert_eq!(resume(list.as_bytes()).unwrap().as_deref(), Some("x+y="));
        assert_eq!(revision(list.as_bytes()).unwrap(), "7");
        let last = list.replace("x+y=", "");
        assert_eq!(resume(last.as_bytes()).unwrap(), None);
        assert_eq!(resume(b"{}").unwrap(), None);
    }

    #[test]
    fn clients_change_objects_of_their_own() {
        let plan = Plan {
            clients: 7,
            objects: 100,
            ..Plan::default()
        };
        let share = plan.objects / plan.clients;
        let mut seen = vec![None; plan.objects];
        for number in 0..plan.clients {
            let rng = SeededRng::new(number as u64 + 1);
            for _ in 0..1000 {
                let own = number * share + below(share, &rng);
                assert!(seen[own].replace(number).is_none_or(|owner| owner == number));
            }
        }
        assert!(seen.iter().filter(|owner| owner.is_some()).count() > plan.objects / 2);
    }

    #[test]
    fn titles_say_how_many() {
        let titles: Vec<String> = works(&Plan::default()).into_iter().map(|work| work.title).collect();
        assert!(
            titles.contains(&"list of 10,000 by 500, 4 clients".to_owned()),
            "{titles:?}"
        );
        assert!(titles.contains(&"1,000 watchers, 20/s".to_owned()), "{titles:?}");
    }
}
