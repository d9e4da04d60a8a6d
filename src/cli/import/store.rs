//! Stores what was checked.

use std::{
    cell::Cell,
    io::{self, Write as _},
};

use aws_lc_rs::digest::{SHA256, digest};
use futures_util::{StreamExt as _, stream};
use tonic::Status;

use super::{
    AT_ONCE, Entry, Target,
    plan::{Step, told_counts},
};
use crate::{
    cli::{
        CliError,
        patience::{passes, patiently, reason, told},
        progress::Progress,
    },
    domain::Timestamp,
    grpc::proto::{CreateSecretRequest, Secret, UpdateSecretRequest},
};

/// What became of a secret of the file.
enum Outcome {
    Created,
    Updated,
    /// This import had stored it before.
    Unchanged,
    /// It existed, and is as it was.
    Kept,
    /// The server refused it.
    Refused(String),
    /// The server was lost before it was answered for.
    Open,
}

impl Target {
    /// Carries the steps out. The loss of the server ends it; what is under way
    /// then is waited for.
    pub(super) async fn store(&self, entries: &[Entry], steps: &[Step]) -> Result<(), CliError> {
        let total = entries.len() as u64;
        let lost = Cell::new(None);
        let mut outcomes = Vec::with_capacity(entries.len());
        let mut progress = Progress::new();
        progress.at("storing", 0, Some(total), "");
        let work = stream::iter(entries.iter().zip(steps));
        let mut work = work
            .map(|(entry, step)| {
                let lost = &lost;
                async move {
                    let before = lost.take();
                    if before.is_some() {
                        lost.set(before);
                        return Outcome::Open;
                    }
                    self.store_one(entry, step).await.unwrap_or_else(|status| {
                        lost.set(Some(told(&status)));
                        Outcome::Open
                    })
                }
            })
            .buffered(AT_ONCE);
        while let Some(outcome) = work.next().await {
            outcomes.push(outcome);
            progress.at("storing", outcomes.len() as u64, Some(total), "");
        }
        drop(work);
        drop(progress);
        let (refused, open) = show(entries, &outcomes)?;
        if let Some(why) = lost.take() {
            let again = self.update.as_ref().map(|id| format!(" with --import-id {id}"));
            let again = again.unwrap_or_default();
            let told = format!("{why}: {open} not stored; run it again{again} to go on");
            return Err(CliError::Unavailable(told));
        }
        match refused {
            0 => Ok(()),
            refused => Err(CliError::Refused(format!("{refused} refused"))),
        }
    }

    /// The error is one that may pass.
    async fn store_one(&self, entry: &Entry, step: &Step) -> Result<Outcome, Status> {
        let stored = match (step, &self.update) {
            (Step::Keep | Step::Refuse(_), _) => return Ok(Outcome::Kept),
            (_, Some(id)) => self.send_update(entry, Some(self.request_id(id, entry))).await,
            (_, None) => self.send_create(entry, Some(uuid::Uuid::new_v4().to_string())).await,
        };
        let stored = match stored {
            Ok(stored) => stored,
            Err(status) if passes(&status) => return Err(status),
            Err(status)
                if self.update.is_none() && reason(&status).as_deref() == Some("SECRET_EXISTS") =>
            {
                return Ok(Outcome::Kept);
            }
            Err(status) => return Ok(Outcome::Refused(told(&status))),
        };
        match step {
            Step::Update(found) if found.etag == stored.etag => Ok(Outcome::Unchanged),
            // The answer of the earlier call, and others have been there since.
            Step::Update(found) if found.uid != stored.uid || found.version >= stored.version => {
                Ok(Outcome::Refused(CHANGED.into()))
            }
            Step::Update(_) => Ok(Outcome::Updated),
            _ if self.resumed => self.still(entry, &stored).await,
            _ => Ok(Outcome::Created),
        }
    }

    /// An import that goes on may be told of a secret that it stored before and
    /// that somebody has deleted since.
    async fn still(&self, entry: &Entry, stored: &Secret) -> Result<Outcome, Status> {
        match self.get(entry).await {
            Ok(Some(found)) if found.uid == stored.uid => Ok(Outcome::Created),
            Ok(_) => Ok(Outcome::Refused(CHANGED.into())),
            Err(status) if passes(&status) => Err(status),
            Err(status) => Ok(Outcome::Refused(told(&status))),
        }
    }

    /// Nothing of the value is in it, see [`super`].
    fn request_id(&self, import: &str, entry: &Entry) -> String {
        let workspace = self.workspace.as_str();
        // None of the three has a blank.
        let digest = digest(&SHA256, format!("{import} {workspace} {}", entry.name).as_bytes());
        let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        format!("import-{hex}")
    }

    /// Without an id, it is only checked.
    pub(super) async fn send_create(
        &self,
        entry: &Entry,
        request_id: Option<String>,
    ) -> Result<Secret, Status> {
        patiently(|| {
            let request = CreateSecretRequest {
                workspace: self.workspace.to_string(),
                name: entry.name.to_string(),
                value: entry.value.expose().to_owned(),
                description: entry.description.as_ref().map_or_else(String::new, |d| d.to_string()),
                owner: None,
                expire_time: entry.expire_time.map(time),
                validate_only: request_id.is_none(),
                request_id: request_id.clone().unwrap_or_default(),
                ttl: None,
            };
            let mut client = self.client.clone();
            async move { client.create_secret(request).await }
        })
        .await
    }

    /// The same. Creates it if it is missing: the call must be the same when an
    /// import goes on that has created it before.
    pub(super) async fn send_update(
        &self,
        entry: &Entry,
        request_id: Option<String>,
    ) -> Result<Secret, Status> {
        patiently(|| {
            let request = UpdateSecretRequest {
                workspace: self.workspace.to_string(),
                name: entry.name.to_string(),
                value: Some(entry.value.expose().to_owned()),
                description: entry.description.as_ref().map(ToString::to_string),
                expire_time: entry.expire_time.map(time),
                etag: String::new(),
                allow_missing: true,
                validate_only: request_id.is_none(),
                request_id: request_id.clone().unwrap_or_default(),
                owner: None,
                ttl: None,
                fencing_token: None,
            };
            let mut client = self.client.clone();
            async move { client.update_secret(request).await }
        })
        .await
    }
}

const CHANGED: &str = "was stored by this import, and changed or deleted since: left as it is";

fn time(time: Timestamp) -> prost_types::Timestamp {
    // Fewer than 2^31.
    let nanos = i32::try_from(time.nanos()).unwrap_or_default();
    prost_types::Timestamp { seconds: time.seconds(), nanos }
}

/// Prints what was refused, and the number of each kind; returns those of the
/// refused and of the open ones.
fn show(entries: &[Entry], outcomes: &[Outcome]) -> io::Result<(u64, u64)> {
    let mut out = io::stdout().lock();
    let [mut created, mut updated, mut unchanged, mut kept, mut refused, mut open] = [0; 6];
    for (entry, outcome) in entries.iter().zip(outcomes) {
        let count = match outcome {
            Outcome::Created => &mut created,
            Outcome::Updated => &mut updated,
            Outcome::Unchanged => &mut unchanged,
            Outcome::Kept => &mut kept,
            Outcome::Refused(why) => {
                writeln!(out, "refused {}  {why}", entry.name)?;
                &mut refused
            }
            Outcome::Open => &mut open,
        };
        *count += 1;
    }
    let counts = [
        ("created", created),
        ("updated", updated),
        ("unchanged", unchanged),
        ("kept", kept),
        ("refused", refused),
        ("not stored", open),
    ];
    writeln!(out, "{}", told_counts(&counts))?;
    Ok((refused, open))
}
