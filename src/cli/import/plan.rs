//! What an import would do, as the server sees it.

use std::io::{self, Write as _};

use futures_util::{StreamExt as _, stream};
use tonic::Status;

use super::{AT_ONCE, Entry, Target};
use crate::{
    cli::{
        CliError,
        patience::{passes, patiently, reason, told},
        progress::Progress,
    },
    grpc::proto::{GetSecretRequest, Secret},
};

/// What becomes of a secret of the file.
pub(super) enum Step {
    /// It is new.
    Create,
    /// It exists like this, and gets a new value.
    Update(Box<Secret>),
    /// It exists, and stays as it is.
    Keep,
    /// The server refuses it, for this reason.
    Refuse(String),
}

impl Target {
    /// Has the server check each secret. Nothing is stored.
    pub(super) async fn check(&self, entries: &[Entry]) -> Result<Vec<Step>, CliError> {
        let total = entries.len() as u64;
        let mut progress = Progress::new();
        let mut steps = Vec::with_capacity(entries.len());
        let mut checks = stream::iter(entries).map(|entry| self.check_one(entry)).buffered(AT_ONCE);
        progress.at("checking", 0, Some(total), "");
        while let Some(step) = checks.next().await {
            steps.push(step?);
            progress.at("checking", steps.len() as u64, Some(total), "");
        }
        Ok(steps)
    }

    async fn check_one(&self, entry: &Entry) -> Result<Step, Status> {
        let found = match self.get(entry).await {
            Ok(found) => found,
            Err(status) => return refused(status),
        };
        let exists = found.is_some();
        let step = match found {
            Some(_) if self.update.is_none() => return Ok(Step::Keep),
            Some(found) => Step::Update(Box::new(found)),
            None => Step::Create,
        };
        let checked = match exists {
            true => self.send_update(entry, None).await,
            false => self.send_create(entry, None).await,
        };
        match checked {
            Ok(_) => Ok(step),
            Err(status) => refused(status),
        }
    }

    /// What is known of a secret; `None`: there is none.
    pub(super) async fn get(&self, entry: &Entry) -> Result<Option<Secret>, Status> {
        let answer = patiently(|| {
            let workspace = self.workspace.to_string();
            let request = GetSecretRequest { workspace, name: entry.name.to_string() };
            let mut client = self.client.clone();
            async move { client.get_secret(request).await }
        });
        match answer.await {
            Ok(secret) => Ok(Some(secret)),
            Err(status) if reason(&status).as_deref() == Some("SECRET_NOT_FOUND") => Ok(None),
            Err(status) => Err(status),
        }
    }
}

/// An error that may pass ends the import; another is told of the secret.
fn refused(status: Status) -> Result<Step, Status> {
    if passes(&status) { Err(status) } else { Ok(Step::Refuse(told(&status))) }
}

/// Prints a line for each secret, and the number of each kind.
pub(super) fn show(entries: &[Entry], steps: &[Step]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let mut counts = [("create", 0), ("update", 0), ("keep", 0), ("refuse", 0)];
    for (entry, step) in entries.iter().zip(steps) {
        let (kind, why) = match step {
            Step::Create => (0, String::new()),
            Step::Update(found) => (1, format!("  has version {}", found.version)),
            Step::Keep => (2, "  exists; whether with this value, nobody can tell".to_owned()),
            Step::Refuse(why) => (3, format!("  {why}")),
        };
        if let Some((word, count)) = counts.get_mut(kind) {
            *count += 1;
            writeln!(out, "{word:8}{}{why}", entry.name)?;
        }
    }
    writeln!(out, "{}", told_counts(&counts))
}

/// Such as `create 3, keep 1`.
pub(super) fn told_counts(counts: &[(&str, u64)]) -> String {
    let some = counts.iter().filter(|(_, count)| *count > 0);
    let some: Vec<_> = some.map(|(word, count)| format!("{word} {count}")).collect();
    some.join(", ")
}
