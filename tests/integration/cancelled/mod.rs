//! Each call is given up before and after all that it does: what it changes is
//! changed whole, or not at all if it had not begun, and nothing is left over.

mod calls;
mod gate;

use std::{
    io,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use serde_json::Value;
use workflow_secrets::{
    domain::WorkspaceId,
    service::{Secrets, audit::AuditSink},
    store::{Key, Store, codec},
};

use self::{
    calls::{CALLS, Call, Kind, Needs, prepare, value},
    gate::{Gate, GatedKms, GatedSink, GatedStore},
};
use crate::support::{
    fake_kms::FakeKms, manual_clock::ManualClock, memory_store::MemoryStore, service, told::told,
};

/// Far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(30);

/// The id of each change that takes one.
const REQUEST: &str = "the-change";

struct Rig {
    gate: Arc<Gate>,
    store: Arc<MemoryStore>,
    kms: Arc<FakeKms>,
    clock: Arc<ManualClock>,
    lines: Arc<Mutex<Vec<u8>>>,
    /// What is cut off. One for all calls: what it loses, it lacks at the end.
    secrets: Arc<Secrets>,
}

impl Rig {
    fn new() -> Self {
        let (gate, store) = (Arc::<Gate>::default(), Arc::<MemoryStore>::default());
        let (kms, clock) = (Arc::<FakeKms>::default(), Arc::<ManualClock>::default());
        let lines = Arc::default();
        let sink = GatedSink(Arc::clone(&gate), Arc::clone(&lines));
        let secrets = service::secrets(
            Arc::new(GatedStore(Arc::clone(&gate), store.clone())),
            Arc::new(GatedKms(Arc::clone(&gate), Arc::clone(&kms))),
            clock.clone(),
            AuditSink::Writer(Box::new(sink)),
        );
        Self { gate, store, kms, clock, lines, secrets: Arc::new(secrets) }
    }

    /// One that has just started and is not held up.
    fn fresh(&self) -> Arc<Secrets> {
        let sink = AuditSink::Writer(Box::new(io::sink()));
        let (store, kms) = (self.store.clone(), self.kms.clone());
        Arc::new(service::secrets(store, kms, self.clock.clone(), sink))
    }

    /// Waits until all has ended that calls have begun.
    async fn settle(&self, what: &str) {
        self.gate.open();
        let start = Instant::now();
        while !self.gate.nobody_waits()
            || !self.secrets.changes.is_empty()
            || Arc::strong_count(&self.secrets) > 1
        {
            assert!(start.elapsed() < PATIENCE, "{what}: something goes on");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn state(&self, ws: &WorkspaceId) -> Vec<String> {
        let told = told(&*self.store, ws, &[REQUEST]).await;
        let (mut lines, fresh) = (told.lines, self.fresh());
        for (name, versions) in told.secrets {
            for version in versions {
                let value = value(&fresh, ws, &name, version).await;
                lines.push(format!("{name} v{version} {value}"));
            }
        }
        for (key, record) in self.store.scan(ws, Key::DATA_KEY, None, 10).await.unwrap() {
            let wrapped = codec::decode_data_key(&record.bytes).unwrap().wrapped;
            let anew = wrapped.kms_key_id == ws.to_string();
            lines.push(format!("{}, wrapped anew: {anew}", key == Key::active_data_key()));
        }
        lines.sort();
        lines
    }

    /// Outcomes of the audit lines of an action in a workspace.
    fn audited(&self, ws: &WorkspaceId, action: &str) -> Vec<String> {
        let lines = self.lines.lock().unwrap();
        let lines = std::str::from_utf8(&lines).unwrap().lines();
        let lines = lines.map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines
            .filter(|line| line["workspace"] == ws.as_str() && line["action"] == action)
            .map(|line| line["outcome"].as_str().unwrap().to_owned())
            .collect()
    }

    async fn prepared(&self, call: &Call, ws: &WorkspaceId) -> Needs {
        let needs = prepare(&self.fresh(), call, ws).await;
        if call.name == "rewrap" {
            self.kms.rename(ws.as_str());
        }
        needs
    }

    /// Gives the call up at each step; how many there are.
    async fn cut_at_each_step(&self, call: &Call) -> usize {
        let ws = |step: &str| WorkspaceId::parse(&format!("{}-{step}", call.name)).unwrap();
        // To its end.
        let whole = ws("whole");
        let needs = self.prepared(call, &whole).await;
        let old = self.state(&whole).await;
        self.gate.open();
        (call.run)(self.secrets.clone(), needs).await.unwrap();
        self.settle(call.name).await;
        let new = self.state(&whole).await;
        match call.kind {
            Kind::Read => assert_eq!(old, new, "{}", call.name),
            Kind::Change | Kind::Job => assert_ne!(old, new, "{}", call.name),
        }

        // Not begun.
        let unpolled = ws("unpolled");
        let needs = self.prepared(call, &unpolled).await;
        drop((call.run)(self.secrets.clone(), needs));
        self.settle(call.name).await;
        assert_eq!(self.state(&unpolled).await, old, "{}", call.name);
        assert!(self.audited(&unpolled, call.action).is_empty(), "{}", call.name);

        let mut steps = 0;
        loop {
            let ws = ws(&steps.to_string());
            let what = format!("{ws}");
            let needs = self.prepared(call, &ws).await;
            let run = (call.run)(self.secrets.clone(), needs.clone());
            let cut = tokio::time::timeout(PATIENCE, self.gate.cut(run, steps)).await;
            let answer = cut.unwrap_or_else(|_| panic!("{what}: hangs"));
            self.settle(&what).await;
            if let Some(answer) = answer {
                answer.unwrap();
                return steps;
            }
            let (found, lines) = (self.state(&ws).await, self.audited(&ws, call.action));
            match call.kind {
                Kind::Read => assert_eq!(found, old, "{what}"),
                // It goes on without its caller, and leaves its line.
                Kind::Change => {
                    assert_eq!(found, new, "{what}");
                    assert_eq!(lines, ["ok"], "{what}");
                }
                // It ends between two changes; all stays readable, and whatever
                // happens is told.
                Kind::Job => {
                    let values = |lines: &[String]| -> Vec<_> {
                        let values = lines.iter().filter(|line| line.starts_with("KEY v"));
                        values.cloned().collect()
                    };
                    assert_eq!(values(&found), values(&old), "{what}");
                    let told = match &lines[..] {
                        // The caller left before it was begun.
                        [first] => first == "started" && found == old,
                        [first, last] => {
                            first == "started" && ["ok", "CANCELLED"].contains(&&**last)
                        }
                        _ => false,
                    };
                    assert!(told, "{what}: {lines:?}");
                }
            }
            let again = tokio::time::timeout(PATIENCE, (call.run)(self.secrets.clone(), needs));
            again.await.unwrap_or_else(|_| panic!("{what}: hangs")).unwrap();
            self.settle(&what).await;
            assert_eq!(self.state(&ws).await, new, "{what}");
            steps += 1;
        }
    }
}

#[tokio::test]
async fn each_call_at_each_step() {
    let rig = Rig::new();
    for call in CALLS {
        let steps = rig.cut_at_each_step(call).await;
        // It reads or writes, and is audited.
        assert!(steps >= 4, "{}: {steps}", call.name);
    }
}

/// Every method has its call here.
#[test]
fn there_is_no_other_call() {
    let proto = ["secrets", "keys"].map(|file| {
        std::fs::read_to_string(format!("proto/workflowsecrets/v1/{file}.proto")).unwrap()
    });
    let methods = proto.iter().flat_map(|text| text.lines());
    let methods: Vec<_> = methods
        .filter_map(|line| Some(line.trim().strip_prefix("rpc ")?.split('(').next()?.to_owned()))
        .collect();
    assert!(methods.len() > 20);
    for method in methods {
        assert!(CALLS.iter().any(|call| call.method == method), "{method}");
    }
}
