//! Many short sequences, each on a store that looks empty to it: one that fails is made as short as it can be, and kept.
//!
//! Both stores go on from wherever the last sequence left them: everything is deleted and compacted, and revisions are counted
//! from there on. `HANSE_DIFF_CASES` says how many sequences; the default suits a test run.

use super::*;
use proptest::strategy::Strategy;
use proptest::test_runner::{Config, FileFailurePersistence, TestCaseError, TestRunner};

/// Sequences in a usual run.
const CASES: u32 = 60;
/// Calls in one sequence.
const CALLS: usize = 40;

/// A side, and the revision on it that a sequence calls 1.
struct Started<'a> {
    side: &'a Side,
    first: i64,
    live: Stream,
}

/// Revisions of a sequence to those of a side. What is not a revision (0, less, or a far future) stays.
struct Shift(i64);

impl Shift {
    fn one(&self, revision: &mut i64) {
        if *revision > 0 {
            *revision += self.0;
        }
    }

    fn range(&self, req: &mut pb::RangeRequest) {
        let bounds = [&mut req.min_mod_revision, &mut req.max_mod_revision];
        let more = [
            &mut req.min_create_revision,
            &mut req.max_create_revision,
            &mut req.revision,
        ];
        bounds.into_iter().chain(more).for_each(|revision| self.one(revision));
    }

    fn txn(&self, req: &mut pb::TxnRequest) {
        use compare::TargetUnion as U;
        for compare in &mut req.compare {
            if let Some(U::CreateRevision(revision) | U::ModRevision(revision)) = &mut compare.target_union {
                self.one(revision);
            }
        }
        for op in req.success.iter_mut().chain(&mut req.failure) {
            match &mut op.request {
                Some(Request::RequestRange(range)) => self.range(range),
                Some(Request::RequestTxn(txn)) => self.txn(txn),
                Some(Request::RequestPut(_) | Request::RequestDeleteRange(_)) | None => {}
            }
        }
    }

    fn call(&self, mut call: Call) -> Call {
        match &mut call {
            Call::Range(req) | Call::Parts(req) => self.range(req),
            Call::Txn(req) => self.txn(req),
            Call::Compact(revision) => self.one(revision),
            Call::Put(_) | Call::Delete(_) | Call::Grant(..) | Call::Revoke(_) | Call::TimeToLive(_) | Call::Leases => {
            }
        }
        call
    }

    fn header(&self, header: &mut Option<pb::ResponseHeader>) {
        if let Some(header) = header {
            self.one(&mut header.revision);
        }
    }

    fn kvs<'a>(&self, kvs: impl IntoIterator<Item = &'a mut pb::KeyValue>) {
        for kv in kvs {
            self.one(&mut kv.create_revision);
            self.one(&mut kv.mod_revision);
        }
    }

    fn txn_answer(&self, answer: &mut pb::TxnResponse) {
        self.header(&mut answer.header);
        for response in &mut answer.responses {
            match &mut response.response {
                Some(Response::ResponseRange(range)) => {
                    self.header(&mut range.header);
                    self.kvs(&mut range.kvs);
                }
                Some(Response::ResponsePut(put)) => {
                    self.header(&mut put.header);
                    self.kvs(&mut put.prev_kv);
                }
                Some(Response::ResponseDeleteRange(delete)) => {
                    self.header(&mut delete.header);
                    self.kvs(&mut delete.prev_kvs);
                }
                Some(Response::ResponseTxn(txn)) => self.txn_answer(txn),
                None => {}
            }
        }
    }

    fn answer(&self, mut answer: Answer) -> Answer {
        match &mut answer {
            Answer::Range(range) => {
                self.header(&mut range.header);
                self.kvs(&mut range.kvs);
            }
            Answer::Put(put) => {
                self.header(&mut put.header);
                self.kvs(&mut put.prev_kv);
            }
            Answer::Delete(delete) => {
                self.header(&mut delete.header);
                self.kvs(&mut delete.prev_kvs);
            }
            Answer::Txn(txn) => self.txn_answer(txn),
            Answer::Revision(revision) => self.one(revision),
            Answer::Lease(..) | Answer::Leases(_) | Answer::Refused(..) => {}
        }
        answer
    }

    fn events(&self, mut answer: pb::WatchResponse) -> pb::WatchResponse {
        for event in &mut answer.events {
            self.kvs(event.kv.iter_mut().chain(&mut event.prev_kv));
        }
        self.one(&mut answer.compact_revision);
        answer
    }
}

fn everything(start_revision: i64) -> pb::WatchCreateRequest {
    pb::WatchCreateRequest {
        key: "\0".into(),
        range_end: "\0".into(),
        prev_kv: true,
        start_revision,
        ..Default::default()
    }
}

impl Started<'_> {
    /// Makes a side look empty, but for one key at revision 1.
    async fn new(side: &Side) -> Started<'_> {
        for lease in LEASES {
            // It may not exist.
            side.run(Call::Revoke(lease)).await;
        }
        let put = || {
            Call::Put(pb::PutRequest {
                key: "m".into(),
                value: "v0".into(),
                ..Default::default()
            })
        };
        let all = pb::DeleteRangeRequest {
            key: "\0".into(),
            range_end: "\0".into(),
            ..Default::default()
        };
        for call in [put(), Call::Delete(all)] {
            assert!(!matches!(side.run(call).await, Answer::Refused(..)));
        }
        let compacted = side.run(Call::Compact(side.now().await)).await;
        assert!(matches!(compacted, Answer::Revision(_)), "{compacted:?}");
        // From now on, not from a revision: etcd catches up with a past one in the background, and a compaction may overtake it.
        let mut live = Stream::open(side, everything(0)).await;
        assert!(live.answer().await.created);
        side.run(put()).await;
        let first = side.now().await;
        Started { side, first, live }
    }

    fn there(&self) -> Shift {
        Shift(self.first - 1)
    }

    fn back(&self) -> Shift {
        Shift(1 - self.first)
    }

    async fn run(&self, call: &Call) -> Answer {
        let answer = self.side.run(self.there().call(call.clone())).await;
        self.back().answer(answer)
    }

    async fn now(&self) -> i64 {
        self.side.now().await - self.first + 1
    }

    async fn see(stream: &mut Stream, back: Shift, upto: i64) -> Vec<String> {
        let mut seen = Vec::new();
        for answer in stream.collect(upto).await {
            show(&back.events(answer), &mut seen);
        }
        seen
    }

    /// What a new watch sees up to now.
    async fn watch(&self, create: &pb::WatchCreateRequest, now: i64) -> Vec<String> {
        let mut create = create.clone();
        let start = create.start_revision;
        self.there().one(&mut create.start_revision);
        let mut stream = Stream::open(self.side, create).await;
        let first = stream.answer().await;
        let (mut seen, ended) = (Vec::new(), first.canceled);
        show(&self.back().events(first), &mut seen);
        if !ended && start <= now {
            seen.extend(Self::see(&mut stream, self.back(), now + self.first - 1).await);
        }
        seen
    }

    async fn live(&mut self, now: i64) -> Vec<String> {
        let back = self.back();
        Self::see(&mut self.live, back, now + self.first - 1).await
    }
}

/// A watch that the two must agree on: what lies exactly on the floor keeps its value before only here.
fn watch_of(random: &Random, now: i64, floor: i64) -> pb::WatchCreateRequest {
    let start = if random.chance(30) {
        0
    } else {
        random.number(usize::try_from(now).unwrap() + 3)
    };
    let compacted = start > 0 && start < floor;
    pb::WatchCreateRequest {
        start_revision: if compacted { floor } else { start },
        prev_kv: start > floor && random.chance(70),
        watch_id: 0,
        ..create(random, now)
    }
}

async fn sequence([theirs, ours]: &[Side; 2], seeds: &[u64]) -> Result<(), String> {
    let (mut theirs, mut ours) = (Started::new(theirs).await, Started::new(ours).await);
    let (mut now, mut floor) = (1, 0);
    for (index, seed) in seeds.iter().enumerate() {
        let random = Random(SeededRng::new(*seed));
        if random.chance(8) {
            let create = watch_of(&random, now, floor);
            let (want, have) = (theirs.watch(&create, now).await, ours.watch(&create, now).await);
            if have != want {
                return Err(format!("watch {index}: {create:?}\nours: {have:#?}\netcd's: {want:#?}"));
            }
            continue;
        }
        let call = call(&random, now);
        let (want, have) = (theirs.run(&call).await, ours.run(&call).await);
        if have != want {
            return Err(format!("call {index}: {call:?}\nours: {have:?}\netcd's: {want:?}"));
        }
        if let (Call::Compact(revision), Answer::Revision(_)) = (&call, &have) {
            floor = *revision;
        }
        if let Call::Grant(SHORT_LEASE, _) = call {
            let revoke = Call::Revoke(SHORT_LEASE);
            theirs.run(&revoke).await;
            ours.run(&revoke).await;
        }
        now = theirs.now().await;
        let here = ours.now().await;
        if here != now {
            return Err(format!(
                "revision {here} here and {now} in etcd after call {index}: {call:?}"
            ));
        }
    }
    let (want, have) = (theirs.live(now).await, ours.live(now).await);
    if have == want {
        Ok(())
    } else {
        Err(format!("events of all keys\nours: {have:#?}\netcd's: {want:#?}"))
    }
}

#[test]
fn short_sequences_have_etcds_answers() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let Some((_etcd, _fixture, sides)) = runtime.block_on(both()) else {
        return;
    };
    let cases = std::env::var("HANSE_DIFF_CASES")
        .ok()
        .map(|cases| cases.parse().unwrap());
    let mut runner = TestRunner::new(Config {
        cases: cases.unwrap_or(CASES),
        source_file: Some(file!()),
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..Config::default()
    });
    // A call follows from its seed and the revision at which it is made, so any part of a sequence is one as well.
    let seeds = proptest::collection::vec(proptest::num::u64::ANY.no_shrink(), 1..CALLS);
    let outcome = runner.run(&seeds, |seeds: Vec<u64>| {
        runtime.block_on(sequence(&sides, &seeds)).map_err(TestCaseError::fail)
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
}
