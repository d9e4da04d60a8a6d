//! The `keys` command. The server's jobs keep no state but what they have done,
//! so one that is cut off is started again, and goes on.

use std::{
    collections::BTreeMap,
    io::{self, Write as _},
};

use tonic::{Response, Status, Streaming};

use super::{
    CliError,
    connect::{NamedChannel, connect},
    patience::{Patience, patiently},
    printable,
    progress::Progress,
};
use crate::{
    config::{KeysConfig, KeysTask},
    grpc::proto::{
        DataKeyFate, DataKeyState, DescribeWorkspaceKeysRequest, ReencryptWorkspaceRequest,
        ReencryptWorkspaceResponse, RewrapDataKeysRequest, RewrapDataKeysResponse,
        RotateDataKeyRequest, ShredWorkspaceRequest, ShredWorkspaceResponse, WorkspaceKeys,
        key_service_client::KeyServiceClient,
    },
};

type Client = KeyServiceClient<NamedChannel>;

/// Administers data keys.
///
/// # Errors
/// [`CliError`], also if a job ends with failures; they are named before.
pub async fn keys(config: KeysConfig) -> Result<(), CliError> {
    let client = KeyServiceClient::new(connect(config.connection).await?);
    match config.task {
        KeysTask::Describe(workspace) => show(&describe(&client, workspace.as_str()).await?),
        KeysTask::Rotate(workspace, data_key) => {
            rotate(&client, workspace.as_str(), data_key).await
        }
        KeysTask::Reencrypt(workspace, forget_requests) => {
            let workspace = workspace.as_str().to_owned();
            let request = ReencryptWorkspaceRequest { workspace, forget_requests };
            let call = |mut client: Client, request| async move {
                client.reencrypt_workspace(request).await
            };
            reencrypted(&job(&client, request, call).await?)
        }
        KeysTask::Rewrap(workspace, kms_key) => {
            let workspace = workspace.map_or_else(String::new, |w| w.as_str().to_owned());
            let request = RewrapDataKeysRequest { workspace, kms_key: kms_key.unwrap_or_default() };
            let call =
                |mut client: Client, request| async move { client.rewrap_data_keys(request).await };
            rewrapped(&job(&client, request, call).await?)
        }
        KeysTask::Shred(workspace) => shred(&client, workspace.as_str()).await,
    }
}

async fn describe(client: &Client, workspace: &str) -> Result<WorkspaceKeys, CliError> {
    let keys = patiently(|| {
        let request = DescribeWorkspaceKeysRequest { workspace: workspace.to_owned() };
        let mut client = client.clone();
        async move { client.describe_workspace_keys(request).await }
    });
    Ok(keys.await?)
}

fn show(keys: &WorkspaceKeys) -> Result<(), CliError> {
    let mut out = io::stdout();
    writeln!(out, "workspace {}: data keys: {}", printable(&keys.workspace), keys.keys.len())?;
    for key in &keys.keys {
        let state = match key.state() {
            DataKeyState::Active => "active",
            DataKeyState::Retired => "retired",
            DataKeyState::Unspecified => "unknown",
        };
        let time = |time: Option<prost_types::Timestamp>| {
            time.map_or_else(|| "-".to_owned(), |time| time.to_string())
        };
        writeln!(
            out,
            "{state:8} {}  made {}  retired {}  KMS key {}",
            printable(&key.data_key_id),
            time(key.create_time),
            time(key.retire_time),
            printable(&key.kms_key),
        )?;
    }
    Ok(())
}

/// Names the key to replace, so that a repeated call makes no second one.
async fn rotate(
    client: &Client,
    workspace: &str,
    data_key: Option<String>,
) -> Result<(), CliError> {
    let data_key = match data_key {
        Some(id) => id,
        None => {
            let active = describe(client, workspace).await?.keys.into_iter().next();
            active.map_or_else(String::new, |key| key.data_key_id)
        }
    };
    let keys = patiently(|| {
        let workspace = workspace.to_owned();
        let request = RotateDataKeyRequest { workspace, data_key_id: data_key.clone() };
        let mut client = client.clone();
        async move { client.rotate_data_key(request).await }
    });
    show(&keys.await?)
}

async fn shred(client: &Client, workspace: &str) -> Result<(), CliError> {
    let shredded = patiently(|| {
        let (workspace, confirm) = (workspace.to_owned(), workspace.to_owned());
        let request = ShredWorkspaceRequest { workspace, confirm };
        let mut client = client.clone();
        async move { client.shred_workspace(request).await }
    });
    let ShredWorkspaceResponse { workspace, shred_time, shredded_by, destroyed_records } =
        shredded.await?;
    let time = shred_time.map_or_else(|| "-".to_owned(), |time| time.to_string());
    writeln!(
        io::stdout(),
        "workspace {}: destroyed {time} by {}; records destroyed now: {destroyed_records}",
        printable(&workspace),
        printable(&shredded_by),
    )?;
    Ok(())
}

/// A step of a job.
trait Step {
    /// Whether it is the report.
    fn is_report(&self) -> bool;
    /// How often all was gone through.
    fn pass(&self) -> u64;
    /// What was looked at in this pass.
    fn looked_at(&self) -> u64;
    /// What was changed.
    fn changed(&self) -> u64;
    /// What failed.
    fn failed(&self) -> u64;
}

impl Step for ReencryptWorkspaceResponse {
    fn is_report(&self) -> bool {
        self.done
    }

    fn pass(&self) -> u64 {
        self.pass
    }

    fn looked_at(&self) -> u64 {
        self.values
    }

    fn changed(&self) -> u64 {
        self.moved
    }

    fn failed(&self) -> u64 {
        self.failed
    }
}

impl Step for RewrapDataKeysResponse {
    fn is_report(&self) -> bool {
        self.done
    }

    fn pass(&self) -> u64 {
        self.pass
    }

    fn looked_at(&self) -> u64 {
        self.workspaces
    }

    fn changed(&self) -> u64 {
        self.rewrapped
    }

    fn failed(&self) -> u64 {
        self.failed
    }
}

/// Runs a job to its report.
async fn job<Q, T, F>(
    client: &Client,
    request: Q,
    call: impl Fn(Client, Q) -> F,
) -> Result<T, CliError>
where
    Q: Clone,
    T: Step,
    F: Future<Output = Result<Response<Streaming<T>>, Status>>,
{
    let mut patience = Patience::default();
    let mut progress = Progress::new();
    loop {
        let mut changed = 0;
        let status = match follow(
            call(client.clone(), request.clone()),
            &mut progress,
            &mut changed,
        )
        .await
        {
            Ok(report) => return Ok(report),
            Err(status) => status,
        };
        if changed > 0 {
            // It does get on, between the interruptions.
            patience = Patience::default();
        }
        patience.wait(status).await?;
    }
}

async fn follow<T: Step>(
    answer: impl Future<Output = Result<Response<Streaming<T>>, Status>>,
    progress: &mut Progress,
    changed: &mut u64,
) -> Result<T, Status> {
    let mut steps = answer.await?.into_inner();
    // What a pass has found is what the next one will.
    let mut found = BTreeMap::new();
    while let Some(step) = steps.message().await? {
        *changed = step.changed();
        if step.is_report() {
            return Ok(step);
        }
        found.insert(step.pass(), step.looked_at());
        let total = step.pass().checked_sub(1).and_then(|before| found.get(&before)).copied();
        let more = format!("changed {}, failed {}", step.changed(), step.failed());
        progress.at(&format!("pass {}", step.pass()), step.looked_at(), total, &more);
    }
    Err(Status::unavailable("the answer ended before the report"))
}

fn reencrypted(report: &ReencryptWorkspaceResponse) -> Result<(), CliError> {
    let mut out = io::stdout();
    for failure in &report.failures {
        let (name, reason) = (printable(&failure.name), printable(&failure.reason));
        writeln!(out, "failed: secret {name} version {}: {reason}", failure.version)?;
    }
    for key in &report.retired_keys {
        let fate = match key.fate() {
            DataKeyFate::Destroyed => "destroyed".to_owned(),
            DataKeyFate::Needed => "kept: what cannot be opened may need it".to_owned(),
            DataKeyFate::Remembered => {
                let until = key.until.map_or_else(String::new, |time| time.to_string());
                format!("kept for repeated requests: a run after {until} destroys it")
            }
            DataKeyFate::Unspecified => "unknown".to_owned(),
        };
        writeln!(out, "retired data key {}: {fate}", printable(&key.data_key_id))?;
    }
    writeln!(
        out,
        "values: {} moved, {} opened, {} failed",
        report.moved, report.verified, report.failed
    )?;
    ended(report, "values do not open")
}

fn rewrapped(report: &RewrapDataKeysResponse) -> Result<(), CliError> {
    let mut out = io::stdout();
    for failure in &report.failures {
        let (workspace, reason) = (printable(&failure.workspace), printable(&failure.reason));
        let key = match failure.data_key_id.as_str() {
            "" => "active data key".to_owned(),
            id => format!("data key {}", printable(id)),
        };
        writeln!(out, "failed: workspace {workspace}, {key}: {reason}")?;
    }
    writeln!(
        out,
        "data keys: {} wrapped anew, {} unchanged, {} failed; workspaces: {}; KMS key: {}",
        report.rewrapped,
        report.unchanged,
        report.failed,
        report.workspaces,
        printable(&report.kms_key)
    )?;
    ended(report, "data keys are not wrapped by it")
}

fn ended(report: &impl Step, what: &str) -> Result<(), CliError> {
    match report.failed() {
        0 => Ok(()),
        failed => Err(CliError::Refused(format!("{failed} {what}"))),
    }
}
