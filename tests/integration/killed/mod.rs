//! The program is killed at each step of a change, and its successor finds the
//! state before it or the state after it, whole.
//!
//! A step is an interaction: what a process did besides is gone with it. So the
//! places to cut are the commands to Redis, each before it is delivered and, if it
//! can write, once it is carried out but not answered. Between two of them nothing
//! is left behind that a kill elsewhere in the code could change: calls to the KMS
//! change nothing in it.

mod embedded;

use std::time::Duration;

use tonic::Status;
use workflow_secrets::{
    domain::WorkspaceId,
    grpc::proto::{self, ResolveSecretsResponse},
    store::Store,
};

use crate::{
    store_redis::connect,
    support::{
        cut_proxy::{Cut, CutProxy},
        kms_endpoint::Fault,
        platform::{
            Client, KMS_ALIAS, KeyClient, Platform, Replica, create, delete, resolve, update, with,
        },
        redis_server::{Options, until},
        told::{Told, told},
    },
};

/// Far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// The id of each change that takes one.
const REQUEST: &str = "the-change";

#[derive(Debug, Clone, Copy, PartialEq)]
enum Change {
    FirstCreate,
    Create,
    Update,
    Describe,
    UpdateMissing,
    Rollback,
    Delete,
    DeleteForGood,
    Undelete,
    Purge,
    Acquire,
    Release,
    Rotate,
    Reencrypt,
    Rewrap,
    Shred,
}

use Change::{
    Acquire, Create, Delete, DeleteForGood, Describe, FirstCreate, Purge, Reencrypt, Release,
    Rewrap, Rollback, Rotate, Shred, Undelete, Update, UpdateMissing,
};

impl Change {
    /// Those of several commits: each leaves every value readable, and a second
    /// run finishes.
    fn in_steps(self) -> bool {
        matches!(self, Reencrypt | Rewrap)
    }

    /// What is in its commands besides the workspace.
    fn holding(self) -> &'static [&'static str] {
        match self {
            // Those of the sweeps that find nothing do not count.
            Purge => &["\r\ndelete\r\n"],
            _ => &[],
        }
    }
}

struct Rig {
    platform: Platform,
    proxy: CutProxy,
    /// Past the proxy.
    store: std::sync::Arc<dyn Store>,
    flags: Vec<String>,
    /// KMS keys that the alias points to in turn.
    kms_keys: [String; 2],
    replica: Replica,
    people: Client,
    reader: Client,
    sheets: Client,
    operator: KeyClient,
}

/// What a call needs besides the workspace.
#[derive(Clone, Default)]
struct Needs {
    token: u64,
    data_key: String,
}

impl Rig {
    async fn start() -> Self {
        let platform = Platform::start_with(Options::default()).await;
        let proxy = CutProxy::start(platform.redis.port()).await;
        let store = connect(&platform.redis).await;
        let kms_keys = [platform.kms_key.clone(), platform.kms.create_key()];
        let url = proxy.url();
        let flags: Vec<_> = [
            ["--store", &url],
            ["--kms-previous-key", &kms_keys[0]],
            ["--kms-previous-key", &kms_keys[1]],
            // Deleted secrets are purged within seconds.
            ["--deleted-retention", "2s"],
        ]
        .concat()
        .into_iter()
        .map(str::to_owned)
        .collect();
        let (replica, [people, reader, sheets], operator) = launch(&platform, &flags).await;
        Self { platform, proxy, store, flags, kms_keys, replica, people, reader, sheets, operator }
    }

    /// Kills the replica and puts another in its place.
    async fn kill(&mut self) {
        self.replica.kill9();
        self.proxy.arm(None);
        let (replica, [people, reader, sheets], operator) =
            launch(&self.platform, &self.flags).await;
        (self.replica, self.people, self.reader, self.sheets, self.operator) =
            (replica, people, reader, sheets, operator);
    }

    /// The state before a change.
    async fn prepare(&mut self, change: Change, ws: &str) -> Needs {
        let mut needs = Needs::default();
        if change == FirstCreate {
            return needs;
        }
        self.people.create_secret(create(ws, "KEY", "first")).await.unwrap();
        let second = with(update(ws, "KEY"), |r| r.value = Some("second".into()));
        self.people.update_secret(second).await.unwrap();
        let owner = proto::Owner { integration: "google_sheets".into(), connection_id: "c".into() };
        let oauth = with(create(ws, "OAUTH", "token"), |r| r.owner = Some(owner));
        self.sheets.create_secret(oauth).await.unwrap();
        match change {
            Undelete | Purge => drop(self.people.delete_secret(delete(ws, "KEY")).await.unwrap()),
            Release => {
                let lease = self.sheets.acquire_refresh_lease(acquire(ws)).await.unwrap();
                needs.token = lease.into_inner().fencing_token;
            }
            Rotate => needs.data_key = self.active(ws).await,
            Reencrypt => drop(self.operator.rotate_data_key(rotate(ws, "")).await.unwrap()),
            Rewrap => {
                let made = self.wrapped_by(ws).await;
                let other = self.kms_keys.iter().find(|key| **key != made[0]).unwrap();
                self.platform.kms.set_alias(KMS_ALIAS, other);
            }
            _ => {}
        }
        needs
    }

    async fn keys(&mut self, ws: &str) -> Vec<proto::WorkspaceKey> {
        let request = proto::DescribeWorkspaceKeysRequest { workspace: ws.to_owned() };
        self.operator.describe_workspace_keys(request).await.unwrap().into_inner().keys
    }

    async fn active(&mut self, ws: &str) -> String {
        self.keys(ws).await.remove(0).data_key_id
    }

    async fn wrapped_by(&mut self, ws: &str) -> Vec<String> {
        self.keys(ws).await.into_iter().map(|key| key.kms_key).collect()
    }

    /// Makes the change.
    fn call(
        &self,
        change: Change,
        ws: &str,
        needs: &Needs,
    ) -> impl Future<Output = Result<(), Status>> + Send + 'static + use<> {
        let (mut people, mut sheets) = (self.people.clone(), self.sheets.clone());
        let (mut operator, store) = (self.operator.clone(), self.store.clone());
        let (ws, needs) = (ws.to_owned(), needs.clone());
        let id = || REQUEST.to_owned();
        async move {
            let ws = ws.as_str();
            match change {
                FirstCreate | Create => {
                    let request = with(create(ws, "NEW", "new"), |r| r.request_id = id());
                    people.create_secret(request).await.map(drop)
                }
                Update | Describe | UpdateMissing => {
                    let name = if change == UpdateMissing { "NEW" } else { "KEY" };
                    let request = with(update(ws, name), |r| {
                        r.value = (change != Describe).then(|| "third".into());
                        r.description = Some("described".into());
                        r.allow_missing = change == UpdateMissing;
                        r.request_id = id();
                    });
                    people.update_secret(request).await.map(drop)
                }
                Rollback => {
                    let request = proto::RollbackSecretRequest {
                        workspace: ws.to_owned(),
                        name: "KEY".to_owned(),
                        version: 1,
                        request_id: id(),
                        ..Default::default()
                    };
                    people.rollback_secret(request).await.map(drop)
                }
                Delete | DeleteForGood => {
                    let request = with(delete(ws, "KEY"), |r| {
                        r.permanent = change == DeleteForGood;
                        r.request_id = id();
                    });
                    people.delete_secret(request).await.map(drop)
                }
                Undelete => {
                    let request = proto::UndeleteSecretRequest {
                        workspace: ws.to_owned(),
                        name: "KEY".to_owned(),
                        request_id: id(),
                        ..Default::default()
                    };
                    people.undelete_secret(request).await.map(drop)
                }
                // By itself, when it is due.
                Purge => {
                    let ws = WorkspaceId::parse(ws).unwrap();
                    while !store.keys(&ws, "d/", 1).await.unwrap().is_empty() {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                    Ok(())
                }
                Acquire => sheets.acquire_refresh_lease(acquire(ws)).await.map(drop),
                Release => {
                    let request = proto::ReleaseRefreshLeaseRequest {
                        workspace: ws.to_owned(),
                        name: "OAUTH".to_owned(),
                        fencing_token: needs.token,
                    };
                    sheets.release_refresh_lease(request).await.map(drop)
                }
                Rotate => operator.rotate_data_key(rotate(ws, &needs.data_key)).await.map(drop),
                Reencrypt => {
                    let request = proto::ReencryptWorkspaceRequest {
                        workspace: ws.to_owned(),
                        forget_requests: true,
                    };
                    let mut steps = operator.reencrypt_workspace(request).await?.into_inner();
                    while steps.message().await?.is_some() {}
                    Ok(())
                }
                Rewrap => {
                    let request = proto::RewrapDataKeysRequest {
                        workspace: ws.to_owned(),
                        ..Default::default()
                    };
                    let mut steps = operator.rewrap_data_keys(request).await?.into_inner();
                    while steps.message().await?.is_some() {}
                    Ok(())
                }
                Shred => {
                    let (workspace, confirm) = (ws.to_owned(), ws.to_owned());
                    let request = proto::ShredWorkspaceRequest { workspace, confirm };
                    operator.shred_workspace(request).await.map(drop)
                }
            }
        }
    }

    /// All that the workspace holds, values read by the replica.
    async fn state(&mut self, change: Change, ws: &str) -> Vec<String> {
        let workspace = WorkspaceId::parse(ws).unwrap();
        let Told { mut lines, secrets } = told(&*self.store, &workspace, &[REQUEST]).await;
        for (name, versions) in secrets {
            let pins: Vec<_> = versions.iter().map(|v| format!("{name}@{v}=v{v}")).collect();
            let pins: Vec<_> = pins.iter().map(String::as_str).collect();
            let answer = self.reader.resolve_secrets(resolve(ws, &pins)).await;
            let ResolveSecretsResponse { secrets } = answer.unwrap().into_inner();
            lines.extend(secrets.iter().map(|(v, secret)| format!("{name} {v} {}", secret.value)));
        }
        if change == Rewrap {
            // One KMS key, and which of the two does not matter.
            let made = self.wrapped_by(ws).await;
            assert_eq!(made.len(), 1);
        }
        lines.sort();
        lines
    }

    /// Kills the program at each step of the change.
    async fn killed_at_each_step(&mut self, change: Change) {
        let (mut old, mut cuts, mut kills) = (None, Vec::new(), 0);
        let (mut at, mut carried_out) = (0, false);
        let new = loop {
            let ws = format!("{change:?}-{at}-{carried_out}").to_lowercase();
            let needs = self.prepare(change, &ws).await;
            if old.is_none() {
                old = Some(self.state(change, &ws).await);
            }
            let mut holding = vec![format!("{{{ws}}}").into_bytes()];
            holding.extend(change.holding().iter().map(|part| part.as_bytes().to_vec()));
            self.proxy.arm(Some(Cut { holding, at, carried_out }));
            let call = tokio::spawn(self.call(change, &ws, &needs));
            let command = tokio::select! {
                command = self.proxy.reached() => Some(command),
                done = call => {
                    done.unwrap().unwrap();
                    None
                }
                () = tokio::time::sleep(PATIENCE) => panic!("{ws}: neither cut nor done"),
            };
            let Some(command) = command else {
                self.proxy.arm(None);
                break self.state(change, &ws).await;
            };
            self.kill().await;
            kills += 1;
            let found = self.state(change, &ws).await;
            // Once more, at the successor: it happens once, whatever was before.
            let again = tokio::time::timeout(PATIENCE, self.call(change, &ws, &needs)).await;
            again.unwrap_or_else(|_| panic!("{ws}: hangs")).unwrap();
            cuts.push((ws.clone(), found, self.state(change, &ws).await));
            // Only scripts write.
            let writes = command.windows(4).any(|part| part == b"EVAL");
            (at, carried_out) = if writes && !carried_out { (at, true) } else { (at + 1, false) };
            assert!(at < 60, "{change:?} has no end");
        };
        let old = old.unwrap();
        assert_ne!(old, new, "{change:?}");
        let (mut before, mut after) = (0, 0);
        for (ws, found, again) in cuts {
            assert_eq!(again, new, "{ws}");
            // The first data key may be there alone: the first value makes use of it.
            let alone = change == FirstCreate && found.iter().all(|line| !line.contains("NEW"));
            let found: Vec<_> = found.into_iter().filter(|l| !alone || l.contains("req")).collect();
            if found == old {
                before += 1;
            } else if found == new {
                after += 1;
            } else {
                let values = |lines: &[String]| -> Vec<_> {
                    let value =
                        |line: &&String| line.starts_with("KEY ") || line.starts_with("OAUTH ");
                    lines.iter().filter(value).cloned().collect()
                };
                assert!(change.in_steps(), "{ws}: neither\n{old:#?}\nnor\n{new:#?}\n{found:#?}");
                assert_eq!(values(&found), values(&old), "{ws}");
            }
        }
        assert!(kills >= 2 && before > 0 && after > 0, "{change:?} {kills} {before} {after}");
    }
}

async fn launch(platform: &Platform, flags: &[String]) -> (Replica, [Client; 3], KeyClient) {
    let flags: Vec<_> = flags.iter().map(String::as_str).collect();
    let replica = platform.replica_with(&flags).await;
    let clients = [
        platform.client(&replica, "platform").await,
        platform.client(&replica, "executor").await,
        platform.client(&replica, "sheets").await,
    ];
    let operator = platform.key_client(&replica, "operator").await;
    (replica, clients, operator)
}

fn acquire(ws: &str) -> proto::AcquireRefreshLeaseRequest {
    proto::AcquireRefreshLeaseRequest {
        workspace: ws.to_owned(),
        name: "OAUTH".to_owned(),
        holder: "worker".to_owned(),
        ..Default::default()
    }
}

fn rotate(ws: &str, data_key: &str) -> proto::RotateDataKeyRequest {
    proto::RotateDataKeyRequest { workspace: ws.to_owned(), data_key_id: data_key.to_owned() }
}

async fn all_of(changes: &[Change]) {
    let mut rig = Rig::start().await;
    for change in changes {
        rig.killed_at_each_step(*change).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_each_step_of_a_first_value() {
    all_of(&[FirstCreate]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_each_step_of_a_value() {
    all_of(&[Create, Update, Describe, UpdateMissing, Rollback]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_each_step_of_a_deletion() {
    all_of(&[Delete, DeleteForGood, Undelete, Purge]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_each_step_of_a_lease_or_an_end() {
    all_of(&[Acquire, Release, Shred]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_each_step_of_work_on_data_keys() {
    all_of(&[Rotate, Reencrypt, Rewrap]).await;
}

/// Calls of the KMS leave nothing behind, whichever is cut off.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_kms_is_asked() {
    let mut rig = Rig::start().await;
    // To make the first data key, and to unwrap it before its first use.
    for (nth, ws) in [(0, "generate"), (1, "decrypt")] {
        let calls = rig.platform.kms.calls().len();
        rig.platform.kms.fault_times(nth, Fault::Delay(Duration::ZERO));
        rig.platform.kms.fault_times(1, Fault::Hang);
        let call = tokio::spawn(rig.call(FirstCreate, ws, &Needs::default()));
        until(|| rig.platform.kms.calls().len() > calls + nth).await;
        rig.kill().await;
        rig.platform.kms.heal();
        assert!(call.await.unwrap().is_err());
        let lines = rig.state(FirstCreate, ws).await;
        assert!(lines.iter().all(|line| !line.contains("NEW")), "{lines:?}");
        rig.call(FirstCreate, ws, &Needs::default()).await.unwrap();
        let answer = rig.reader.resolve_secrets(resolve(ws, &["NEW"])).await.unwrap();
        assert_eq!(answer.into_inner().secrets["NEW"].value, "new");
    }
}
