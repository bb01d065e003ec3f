//! One client that makes, changes, reads and deletes objects of one kind, and knows at each moment what must be there.

use super::book::{Book, Life, state_faults};
use super::kinds::Kind;
use super::tally::{Tally, excuse};
use anyhow::{Result, bail, ensure};
use hanse_runtime::rng::{Rng as _, SeededRng};
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, PostParams, Preconditions};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Without an answer for so long a request is given up, and asked about.
const TRY_LIMIT: Duration = Duration::from_secs(20);
/// A request that still fails after so long is a fault whatever it says.
const SETTLE_LIMIT: Duration = Duration::from_secs(300);
const AGAIN: Duration = Duration::from_millis(100);
/// Objects that one writer keeps.
const LIVE: usize = 8;
/// Of one page of a list, less than [`LIVE`].
const PAGE: u32 = 3;

/// What came of one request.
#[derive(Debug)]
enum Answer<T> {
    Done(T),
    /// 404.
    Missing,
    /// 409.
    Conflict,
    /// It failed, and may yet be carried out.
    Unknown,
}

/// One writer.
pub(super) struct Writer {
    pub(super) kind: Kind,
    pub(super) book: Book,
    name: String,
    api: Api<DynamicObject>,
    rng: SeededRng,
    pause: Duration,
    live: Vec<String>,
    made: u64,
    contents: u64,
    tally: Arc<Tally>,
}

pub(super) fn revision(object: &DynamicObject) -> Result<u64> {
    let text = object.metadata.resource_version.as_deref().unwrap_or_default();
    text.parse().map_err(|_| anyhow::anyhow!("{text:?} is no revision"))
}

fn uid(object: &DynamicObject) -> String {
    object.metadata.uid.clone().unwrap_or_default()
}

impl Writer {
    pub(super) fn new(kind: Kind, number: u64, client: &kube::Client, seed: u64, tally: &Arc<Tally>) -> Self {
        // Events are not updated and are many.
        let pause = if kind == Kind::Event { 20 } else { 2 };
        Self {
            kind,
            book: Book::new(),
            name: format!("w{number}"),
            api: kind.api(client),
            rng: SeededRng::new(seed.wrapping_mul(1000).wrapping_add(number)),
            pause: Duration::from_millis(pause),
            live: Vec::new(),
            made: 0,
            contents: 0,
            tally: tally.clone(),
        }
    }

    /// Writes until it is told to stop. An error is a fault of the store or the API server, never a passing one.
    pub(super) async fn run(mut self, stop: watch::Receiver<bool>) -> Result<Self> {
        while !*stop.borrow() {
            self.step().await?;
            tokio::time::sleep(self.pause).await;
        }
        Ok(self)
    }

    async fn step(&mut self) -> Result<()> {
        let dice = self.rng.unit();
        if self.kind == Kind::Event {
            return self.create().await;
        }
        let Some(name) = self.pick() else {
            return self.create().await;
        };
        match dice {
            d if d < 0.12 && self.live.len() < LIVE => self.create().await,
            d if d < 0.22 => self.delete(&name).await,
            d if d < 0.80 => self.update(&name).await,
            d if d < 0.95 => self.get(&name).await,
            _ => self.list().await,
        }
    }

    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a small number"
    )]
    fn pick(&self) -> Option<String> {
        let place = (self.rng.unit() * self.live.len() as f64) as usize;
        self.live.get(place).cloned()
    }

    /// Sends one request, once.
    async fn ask<T>(&self, verb: &'static str, request: impl Future<Output = kube::Result<T>>) -> Result<Answer<T>> {
        let begun = Instant::now();
        let why = match tokio::time::timeout(TRY_LIMIT, request).await {
            Ok(Ok(done)) => {
                self.tally.done(verb, begun.elapsed(), Instant::now());
                return Ok(Answer::Done(done));
            }
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => return Ok(Answer::Missing),
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => return Ok(Answer::Conflict),
            Ok(Err(error)) => match excuse(&error) {
                Some(why) => why,
                None => bail!("{verb} of {} by {}: {error:?}", self.kind.plural(), self.name),
            },
            Err(_) => "no answer",
        };
        self.tally.failed(why, Instant::now());
        tokio::time::sleep(AGAIN).await;
        Ok(Answer::Unknown)
    }

    async fn create(&mut self) -> Result<()> {
        self.made += 1;
        self.contents += 1;
        let name = format!("{}-{}", self.name, self.made);
        let object = self.kind.object(&name, &self.name, self.contents);
        let begun = Instant::now();
        let mut life = Life {
            born: Some(begun),
            ..Life::default()
        };
        let (api, params) = (self.api.clone(), PostParams::default());
        let made = loop {
            ensure!(begun.elapsed() < SETTLE_LIMIT, "{name} cannot be made");
            match self.ask("create", api.create(&params, &object)).await? {
                Answer::Done(made) => break made,
                Answer::Unknown => life.doubtful = true,
                Answer::Conflict if life.doubtful => match self.read(&name).await? {
                    Some(made) => break made,
                    // One that was made at once may have lived its time meanwhile.
                    None if self.kind == Kind::Event => {}
                    None => bail!("{name} is there when it is to be made, and is not when it is read"),
                },
                answer => bail!("{name} is to be made: {answer:?}"),
            }
        };
        life.uid = uid(&made);
        life.revisions.push(revision(&made)?);
        self.book.insert(name.clone(), life);
        if self.kind != Kind::Event {
            self.live.push(name);
        }
        Ok(())
    }

    async fn update(&mut self, name: &str) -> Result<()> {
        let Some(life) = self.book.get(name).cloned() else {
            return Ok(());
        };
        self.contents += 1;
        let before = life.revisions.last().copied().unwrap_or_default();
        let mut object = self.kind.object(name, &self.name, self.contents);
        object.metadata.resource_version = Some(before.to_string());
        let (begun, mut unknown) = (Instant::now(), false);
        let (api, params) = (self.api.clone(), PostParams::default());
        let changed = loop {
            ensure!(begun.elapsed() < SETTLE_LIMIT, "{name} cannot be changed");
            match self.ask("update", api.replace(name, &params, &object)).await? {
                Answer::Done(changed) => break changed,
                Answer::Unknown => unknown = true,
                // An earlier try was carried out.
                Answer::Conflict if unknown => match self.read(name).await? {
                    Some(changed) if self.kind.number(&changed) == Some(self.contents) => break changed,
                    read => bail!("{name} was to become {}: a conflict, and then {read:?}", self.contents),
                },
                answer => bail!("{name} at {before} is to be changed: {answer:?}"),
            }
        };
        let after = revision(&changed)?;
        ensure!(uid(&changed) == life.uid, "{name} is another one now: {changed:?}");
        ensure!(after > before, "{name} was changed at {before}, and that was {after}");
        if let Some(life) = self.book.get_mut(name) {
            life.revisions.push(after);
        }
        Ok(())
    }

    async fn delete(&mut self, name: &str) -> Result<()> {
        let Some(life) = self.book.get(name).cloned() else {
            return Ok(());
        };
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: Some(life.uid.clone()),
                resource_version: life.revisions.last().map(u64::to_string),
            }),
            ..DeleteParams::default()
        };
        let (begun, mut unknown) = (Instant::now(), false);
        let api = self.api.clone();
        loop {
            ensure!(begun.elapsed() < SETTLE_LIMIT, "{name} cannot be deleted");
            match self.ask("delete", api.delete(name, &params)).await? {
                Answer::Done(_) => break,
                Answer::Unknown => unknown = true,
                Answer::Missing if unknown => break,
                answer => bail!("{name} is to be deleted ({life:?}): {answer:?}"),
            }
        }
        if let Some(life) = self.book.get_mut(name) {
            life.ended = true;
        }
        self.live.retain(|one| one != name);
        Ok(())
    }

    /// The object as a linearizable read finds it.
    async fn read(&self, name: &str) -> Result<Option<DynamicObject>> {
        let begun = Instant::now();
        loop {
            ensure!(begun.elapsed() < SETTLE_LIMIT, "{name} cannot be read");
            match self.ask("get", self.api.get(name)).await? {
                Answer::Done(found) => return Ok(Some(found)),
                Answer::Missing => return Ok(None),
                Answer::Unknown => {}
                Answer::Conflict => bail!("{name} is read: a conflict"),
            }
        }
    }

    async fn get(&self, name: &str) -> Result<()> {
        let found = self.read(name).await?;
        let present = found
            .iter()
            .map(|found| Ok((name.to_owned(), (uid(found), revision(found)?))));
        let present = present.collect::<Result<_>>()?;
        let own = self.book.get_key_value(name).into_iter();
        let book = own.map(|(name, life)| (name.clone(), life.clone())).collect();
        let faults = state_faults(&book, &present).lines();
        ensure!(faults.is_empty(), "a read: {faults:?}");
        Ok(())
    }

    /// Lists what it wrote, whole or by pages: a list without a revision is linearizable.
    async fn list(&self) -> Result<()> {
        let limit = (self.rng.unit() < 0.5).then_some(PAGE);
        let begun = Instant::now();
        let present = loop {
            ensure!(
                begun.elapsed() < SETTLE_LIMIT,
                "{}'s objects cannot be listed",
                self.name
            );
            match self.ask("list", self.pages(limit)).await? {
                Answer::Done(present) => break present,
                Answer::Unknown => {}
                answer => bail!("{}'s objects are listed: {answer:?}", self.name),
            }
        };
        let present = present.iter().map(|one| {
            let name = one.metadata.name.clone().unwrap_or_default();
            Ok((name, (uid(one), revision(one)?)))
        });
        let present: BTreeMap<_, _> = present.collect::<Result<_>>()?;
        let faults = state_faults(&self.book, &present).lines();
        ensure!(faults.is_empty(), "a list (pages: {limit:?}): {faults:?}");
        Ok(())
    }

    async fn pages(&self, limit: Option<u32>) -> kube::Result<Vec<DynamicObject>> {
        let mut params = ListParams::default().labels(&format!("writer={}", self.name));
        params.limit = limit;
        let mut all = Vec::new();
        // A writer has few objects.
        for _ in 0..=LIVE {
            let page = self.api.list(&params).await?;
            all.extend(page.items);
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params.continue_token = Some(token),
                None => break,
            }
        }
        Ok(all)
    }
}
