//! The `import` command: reads a file, has the server check each secret, shows
//! what would be done, and does it.
//!
//! Values cannot be read back, so whether a secret that exists has the file's
//! value cannot be known. By default it stays as it is, which makes an import
//! repeatable. To give existing ones the file's values, and still be repeatable
//! for a day, each of its calls bears a request_id made from a random id of the
//! import and the secret's name. Nothing of a value goes into it: request ids lie
//! in the store, where guesses could be tried on them. That the value is the same
//! is told by the server, which remembers a fingerprint under a key of its own.

mod document;
mod dotenv;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod json;
mod plan;
mod store;
#[cfg(test)]
mod tests;

use std::{
    fs::File,
    io::{self, Read, Write as _},
};

use zeroize::Zeroizing;

pub use self::document::{Entry, Fault, parse};
use self::plan::Step;
use super::{
    CliError,
    connect::{NamedChannel, connect},
};
use crate::{
    config::{Existing, ImportConfig, Source},
    domain::WorkspaceId,
    grpc::proto::secrets_service_client::SecretsServiceClient,
};

/// Longest file.
const MAX_BYTES: u64 = 64 * 1024 * 1024;

/// Calls at once.
const AT_ONCE: usize = 8;

/// Stores the secrets of a file, or tells what storing them would do.
///
/// # Errors
/// [`CliError`]; what the server refuses is named before.
pub async fn import(config: ImportConfig) -> Result<(), CliError> {
    let bytes = read(&config.source)?;
    let faults = |faults: Vec<Fault>| faults.iter().map(Fault::to_string).collect();
    let entries = parse(config.format, &bytes).map_err(|found| CliError::Input(faults(found)))?;
    drop(bytes);
    if entries.is_empty() {
        return Err(CliError::Input(vec!["the file holds no secret".into()]));
    }
    let mut out = io::stdout();
    writeln!(out, "workspace {}, secrets in the file: {}", config.workspace, entries.len())?;
    let resumed = matches!(config.existing, Existing::Update(Some(_)));
    let update = match config.existing {
        Existing::Keep => None,
        Existing::Update(Some(id)) => Some(id.to_string()),
        Existing::Update(None) => Some(uuid::Uuid::new_v4().to_string()),
    };
    let target = Target {
        client: SecretsServiceClient::new(connect(config.connection).await?),
        workspace: config.workspace,
        update,
        resumed,
    };
    let steps = target.check(&entries).await?;
    plan::show(&entries, &steps)?;
    let refused = steps.iter().filter(|step| matches!(step, Step::Refuse(_))).count();
    if refused > 0 {
        return Err(CliError::Refused(format!("{refused} refused; nothing was stored")));
    }
    if !config.carry_out {
        writeln!(out, "nothing was stored; to do it, add --yes")?;
        return Ok(());
    }
    if let Some(id) = &target.update {
        writeln!(out, "if it is cut off, go on with --import-id {id}")?;
    }
    target.store(&entries, &steps).await
}

/// The file, whole.
fn read(source: &Source) -> Result<Zeroizing<Vec<u8>>, CliError> {
    let (name, read) = match source {
        Source::Stdin => ("standard input".to_owned(), read_all(io::stdin().lock())),
        Source::File(path) => (path.display().to_string(), File::open(path).and_then(read_all)),
    };
    let bytes = read.map_err(|error| CliError::Input(vec![format!("{name}: {error}")]))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(CliError::Input(vec![format!("{name}: has more than 64 MiB")]));
    }
    Ok(bytes)
}

fn read_all(source: impl Read) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(Vec::new());
    source.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Where the secrets go, and how.
struct Target {
    client: SecretsServiceClient<NamedChannel>,
    workspace: WorkspaceId,
    /// The import's id, if secrets that exist get new values.
    update: Option<String>,
    /// It goes on with an earlier one.
    resumed: bool,
}
