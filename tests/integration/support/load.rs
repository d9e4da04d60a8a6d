//! Writers that record what was acknowledged, and readers who check that no
//! value is wrong.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use tokio::task::JoinHandle;
use workflow_secrets::store::{Commit, Expect, StoreError};

use super::store::{S, at, batch, meta, put, rec, ws};

/// No call of the store may take longer: its deadline of 1 s, and again some
/// for a busy machine.
const BOUND: Duration = Duration::from_secs(6);

/// What one writer, and one reader per store, see of one workspace: a record
/// whose revision the writer counts up.
#[derive(Default)]
struct Register {
    workspace: String,
    /// What was acknowledged must not be lost, not even for a moment.
    strict: bool,
    /// Greatest revision acknowledged.
    acked: AtomicU64,
    /// Greatest revision written, acknowledged or not.
    tried: AtomicU64,
    writes: AtomicU64,
    reads: AtomicU64,
    failures: AtomicU64,
    /// Acknowledged revisions that were gone again.
    lost: AtomicU64,
    /// Each of these is a fault of the store.
    wrong: Mutex<Vec<String>>,
}

pub(crate) struct Load {
    registers: Vec<Arc<Register>>,
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Load {
    /// The first store writes, all read. If it is strict, nothing acknowledged
    /// may be lost.
    pub(crate) async fn start(stores: &[S], workspaces: &[String], strict: bool) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (mut registers, mut tasks) = (vec![], vec![]);
        for workspace in workspaces {
            let register = Register { workspace: workspace.clone(), strict, ..Register::default() };
            let register = Arc::new(register);
            let first = put(meta("R"), Some(Expect::Absent), rec(1, b"1"));
            assert!(
                stores[0].commit(&ws(workspace), batch([first])).await.unwrap() == Commit::Done
            );
            register.acked.store(1, SeqCst);
            register.tried.store(1, SeqCst);
            let (store, state) = (Arc::clone(&stores[0]), Arc::clone(&register));
            let stopped = Arc::clone(&stop);
            tasks.push(tokio::spawn(async move {
                while !stopped.load(SeqCst) {
                    state.write(&store).await;
                    tokio::time::sleep(Duration::from_millis(15)).await;
                }
            }));
            for store in stores {
                let (store, state) = (Arc::clone(store), Arc::clone(&register));
                let stopped = Arc::clone(&stop);
                tasks.push(tokio::spawn(async move {
                    while !stopped.load(SeqCst) {
                        state.read(&store).await;
                        tokio::time::sleep(Duration::from_millis(15)).await;
                    }
                }));
            }
            registers.push(register);
        }
        let load = Self { registers, stop, tasks };
        load.served(&|_| true, Duration::from_secs(60)).await;
        load
    }

    /// Waits until each workspace of choice was written and read again.
    pub(crate) async fn served(&self, of: &dyn Fn(&str) -> bool, within: Duration) {
        self.progress(of, within, &|register| &register.writes).await;
        self.progress(of, within, &|register| &register.reads).await;
    }

    /// Waits until each workspace of choice was read again.
    pub(crate) async fn read(&self, of: &dyn Fn(&str) -> bool, within: Duration) {
        self.progress(of, within, &|register| &register.reads).await;
    }

    async fn progress(
        &self,
        of: &dyn Fn(&str) -> bool,
        within: Duration,
        count: &dyn Fn(&Register) -> &AtomicU64,
    ) {
        let start = Instant::now();
        let chosen: Vec<_> = self.registers.iter().filter(|r| of(&r.workspace)).collect();
        let before: Vec<_> = chosen.iter().map(|r| count(r).load(SeqCst)).collect();
        for (register, before) in chosen.iter().zip(before) {
            // Two, since the first may have been under way.
            while count(register).load(SeqCst) < before + 2 {
                let workspace = &register.workspace;
                assert!(start.elapsed() < within, "{workspace} is not served after {within:?}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }

    /// Calls that failed so far in the workspaces of choice.
    pub(crate) fn failures(&self, of: &dyn Fn(&str) -> bool) -> u64 {
        let chosen = self.registers.iter().filter(|register| of(&register.workspace));
        chosen.map(|register| register.failures.load(SeqCst)).sum()
    }

    /// Ends it. Returns how many acknowledged writes there were and how many of
    /// them were lost.
    pub(crate) async fn end(self) -> (u64, u64) {
        self.stop.store(true, SeqCst);
        for task in self.tasks {
            task.await.unwrap();
        }
        let wrong: Vec<_> =
            self.registers.iter().flat_map(|r| r.wrong.lock().unwrap().clone()).collect();
        assert!(wrong.is_empty(), "{wrong:#?}");
        let sum = |count: fn(&Register) -> &AtomicU64| {
            self.registers.iter().map(|register| count(register).load(SeqCst)).sum()
        };
        (sum(|register| &register.writes), sum(|register| &register.lost))
    }
}

impl Register {
    fn fault(&self, what: String) {
        self.wrong.lock().unwrap().push(format!("{}: {what}", self.workspace));
    }

    fn failed(&self, error: &StoreError) {
        self.failures.fetch_add(1, SeqCst);
        if !matches!(error, StoreError::Unavailable(_) | StoreError::NotReplicated { .. }) {
            self.fault(error.to_string());
        }
    }

    async fn write(&self, store: &S) {
        // After a failure the current revision may be this one or the next.
        let Some(current) = self.read(store).await else { return };
        let acked = self.acked.load(SeqCst);
        if current < acked {
            self.lost.fetch_add(acked - current, SeqCst);
            self.acked.store(current, SeqCst);
        }
        let next = self.tried.load(SeqCst) + 1;
        self.tried.store(next, SeqCst);
        let expect = if current == 0 { Some(Expect::Absent) } else { at(current) };
        let change = batch([put(meta("R"), expect, rec(next, next.to_string().as_bytes()))]);
        let start = Instant::now();
        match store.commit(&ws(&self.workspace), change).await {
            Ok(Commit::Done) => {
                self.acked.store(next, SeqCst);
                self.writes.fetch_add(1, SeqCst);
            }
            // An earlier attempt was carried out late.
            Ok(Commit::Conflict(_)) => {}
            Ok(_) => self.fault("another outcome than was asked for".into()),
            Err(error) => self.failed(&error),
        }
        self.bounded(start);
    }

    async fn read(&self, store: &S) -> Option<u64> {
        let (acked, start) = (self.acked.load(SeqCst), Instant::now());
        let found = store.read(&ws(&self.workspace), &[meta("R")]).await;
        self.bounded(start);
        let record = match found {
            Ok(mut records) => records.pop().unwrap(),
            Err(error) => {
                self.failed(&error);
                return None;
            }
        };
        self.reads.fetch_add(1, SeqCst);
        let (revision, bytes) =
            record.map_or((0, b"0".to_vec()), |record| (record.revision.as_u64(), record.bytes));
        let tried = self.tried.load(SeqCst);
        if bytes != revision.to_string().as_bytes() || revision > tried {
            self.fault(format!("{revision} was never written"));
        }
        if self.strict && revision < acked {
            self.fault(format!("read {revision} after {acked} was acknowledged"));
        }
        Some(revision)
    }

    fn bounded(&self, start: Instant) {
        if start.elapsed() > BOUND {
            self.fault(format!("a call took {:?}", start.elapsed()));
        }
    }
}
