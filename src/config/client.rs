//! Settings of the commands that call a server, parsed once.

use std::{path::PathBuf, sync::Arc, time::Duration};

use http::Uri;
use rustls::{ClientConfig, pki_types::ServerName};

use super::{
    client_args::{
        CallerArgs, ImportArgs, KeysArgs, KeysCommand, ProbeArgs, RewrapArgs, ServerArgs,
    },
    crosses_in_clear,
    faults::{Faults, is_url},
};
use crate::{
    domain::{Actor, RequestId, WorkspaceId},
    grpc::tls::{self, ClientTlsFiles},
};

/// Where a server is, and how to know it.
pub struct Server {
    /// Its address.
    pub uri: Uri,
    /// The same as host and port.
    pub authority: String,
    /// How to trust it, and the name in its certificate; `None`: plaintext.
    pub tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
}

/// A server, and who calls it.
pub struct Connection {
    /// The server.
    pub server: Server,
    /// The person behind the call.
    pub actor: Option<Actor>,
}

/// Settings of `probe`, all valid.
pub struct ProbeConfig {
    /// The server.
    pub server: Server,
    /// Service to ask for.
    pub service: String,
    /// Longest wait.
    pub timeout: Duration,
}

/// Where the secrets to import come from.
pub enum Source {
    /// Standard input.
    Stdin,
    /// A file.
    File(PathBuf),
}

/// How they are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Lines of `NAME=value`.
    Env,
    /// An object of names and secrets.
    Json,
}

/// What becomes of a secret that exists.
pub enum Existing {
    /// It stays as it is.
    Keep,
    /// It gets the value of the file; under this id, if this goes on with an
    /// import.
    Update(Option<RequestId>),
}

/// Settings of `import`, all valid.
pub struct ImportConfig {
    /// Whom to call.
    pub connection: Connection,
    /// The workspace.
    pub workspace: WorkspaceId,
    /// Where the secrets come from.
    pub source: Source,
    /// How they are written.
    pub format: Format,
    /// What becomes of those that exist.
    pub existing: Existing,
    /// Whether to store them, or only to check.
    pub carry_out: bool,
}

/// Settings of `keys`, all valid.
pub struct KeysConfig {
    /// Whom to call.
    pub connection: Connection,
    /// What to do.
    pub task: KeysTask,
}

/// What to do with data keys.
pub enum KeysTask {
    /// Show them.
    Describe(WorkspaceId),
    /// Make a new one, in place of the one named, if any.
    Rotate(WorkspaceId, Option<String>),
    /// Seal all values with the active one; whether to forget requests.
    Reencrypt(WorkspaceId, bool),
    /// Wrap those of one or all workspaces; the KMS key that the server must
    /// have.
    Rewrap(Option<WorkspaceId>, Option<String>),
    /// Destroy the workspace, which was named twice.
    Shred(WorkspaceId),
}

impl ProbeConfig {
    /// Parses the arguments and reads the files they name.
    ///
    /// # Errors
    /// All faults.
    pub fn parse(args: ProbeArgs) -> Result<Self, Faults> {
        let mut faults = Faults::default();
        let server = server(&mut faults, &args.server, None);
        let timeout = faults.duration("--timeout", &args.timeout);
        let config = server.zip(timeout).map(|(server, timeout)| Self {
            server,
            service: args.service,
            timeout,
        });
        faults.finish(config)
    }
}

impl ImportConfig {
    /// Parses the arguments and reads the files they name, but not the one to
    /// import.
    ///
    /// # Errors
    /// All faults.
    pub fn parse(args: ImportArgs) -> Result<Self, Faults> {
        let mut faults = Faults::default();
        let f = &mut faults;
        let workspace = workspace(f, args.workspace.as_ref());
        let source = match args.file.as_str() {
            "-" => Source::Stdin,
            path => Source::File(path.into()),
        };
        let format = format(f, args.format.as_deref(), &source);
        let import_id =
            args.import_id.as_ref().and_then(|text| f.rule("--import-id", RequestId::parse(text)));
        let existing = match args.update_existing {
            true => Existing::Update(import_id),
            false => Existing::Keep,
        };
        let connection = connection(f, args.caller);
        let config = || {
            Some(Self {
                connection: connection?,
                workspace: workspace?,
                source,
                format: format?,
                existing,
                carry_out: args.yes,
            })
        };
        let config = config();
        faults.finish(config)
    }
}

impl KeysConfig {
    /// Parses the arguments and reads the files they name.
    ///
    /// # Errors
    /// All faults.
    pub fn parse(args: KeysArgs) -> Result<Self, Faults> {
        let mut faults = Faults::default();
        let f = &mut faults;
        let (task, caller) = match args.command {
            KeysCommand::Describe(args) => {
                (workspace(f, args.workspace.as_ref()).map(KeysTask::Describe), args.caller)
            }
            KeysCommand::Rotate(args) => {
                f.not_empty("--data-key", args.data_key.as_ref());
                let workspace = workspace(f, args.workspace.as_ref());
                (workspace.map(|workspace| KeysTask::Rotate(workspace, args.data_key)), args.caller)
            }
            KeysCommand::Reencrypt(args) => {
                let workspace = workspace(f, args.workspace.as_ref());
                let task = |workspace| KeysTask::Reencrypt(workspace, args.forget_requests);
                (workspace.map(task), args.caller)
            }
            KeysCommand::Rewrap(args) => rewrap(f, args),
            KeysCommand::Shred(args) => {
                let workspace = workspace(f, args.workspace.as_ref());
                let confirm = f.required("--confirm", args.confirm.as_ref());
                let (named, again) = (args.workspace.as_deref(), confirm);
                if named.zip(again).is_some_and(|(named, again)| named != again) {
                    f.0.push("--confirm: must be the workspace once more".into());
                }
                (workspace.map(KeysTask::Shred), args.caller)
            }
        };
        let connection = connection(f, caller);
        let config = connection.zip(task).map(|(connection, task)| Self { connection, task });
        faults.finish(config)
    }
}

/// All workspaces are asked for by name, not by leaving something out.
fn rewrap(f: &mut Faults, args: RewrapArgs) -> (Option<KeysTask>, CallerArgs) {
    f.not_empty("--kms-key", args.kms_key.as_ref());
    let workspace = match (args.all, &args.workspace) {
        (true, _) => Some(None),
        (false, Some(_)) => workspace(f, args.workspace.as_ref()).map(Some),
        (false, None) => {
            f.0.push("--workspace or --all: is required".into());
            None
        }
    };
    (workspace.map(|workspace| KeysTask::Rewrap(workspace, args.kms_key)), args.caller)
}

fn workspace(f: &mut Faults, text: Option<&String>) -> Option<WorkspaceId> {
    let text = f.required("--workspace", text)?;
    f.rule("--workspace", WorkspaceId::parse(text))
}

fn format(f: &mut Faults, told: Option<&str>, source: &Source) -> Option<Format> {
    let name = match source {
        Source::Stdin => None,
        Source::File(path) => path.file_name().and_then(|name| name.to_str()),
    };
    let parsed = match (told, name.unwrap_or_default()) {
        (Some("env"), _) => Ok(Format::Env),
        (Some("json"), _) => Ok(Format::Json),
        (Some(_), _) => Err("must be env or json"),
        (None, name) if name.ends_with(".json") => Ok(Format::Json),
        (None, name) if name.ends_with(".env") || name.starts_with(".env.") => Ok(Format::Env),
        (None, _) => Err("is required where the file's name does not say: env or json"),
    };
    f.note("--format", parsed)
}

fn connection(f: &mut Faults, args: CallerArgs) -> Option<Connection> {
    if crosses_in_clear(&args.server.address, "http") {
        f.0.push("--address: http:// is for this machine only: use https://".into());
    }
    let identity = match (args.cert, args.key) {
        (Some(cert), Some(key)) => Some((cert.into(), key.into())),
        (None, None) => None,
        _ => {
            f.0.push("--cert, --key: belong together".into());
            None
        }
    };
    let actor = args.actor.as_ref().map(|text| f.rule("--actor", Actor::parse(text)));
    let server = server(f, &args.server, identity)?;
    let actor = match actor {
        None => None,
        Some(parsed) => Some(parsed?),
    };
    Some(Connection { server, actor })
}

fn server(
    f: &mut Faults,
    args: &ServerArgs,
    identity: Option<(PathBuf, PathBuf)>,
) -> Option<Server> {
    let url = is_url(&args.address, &["https", "http"]).then(|| args.address.parse::<Uri>());
    let rule = "must be https://host:port, or http://host:port";
    let uri = f.note("--address", url.and_then(Result::ok).ok_or(rule))?;
    let host = uri.host()?.to_owned();
    let authority = format!("{host}:{}", uri.port_u16().unwrap_or(8443));
    if uri.scheme_str() == Some("http") {
        return Some(Server { uri, authority, tls: None });
    }
    let name = args.server_name.as_deref().unwrap_or(&host).trim_matches(['[', ']']);
    let name = ServerName::try_from(name.to_owned());
    let name = f.note("--server-name", name.map_err(|_| "must be a host name or address"));
    let ca = f.required("--ca", args.ca.as_ref())?.into();
    let files = ClientTlsFiles { ca, identity };
    match tls::load_client(&files) {
        Ok(config) => Some(Server { uri, authority, tls: Some((config, name?)) }),
        Err(error) => {
            let flag = |file: &PathBuf| match &files.identity {
                Some((cert, _)) if file == cert => "--cert",
                Some((_, key)) if file == key => "--key",
                _ => "--ca",
            };
            let faults = error.faults().iter();
            let told = |(file, fault): &(PathBuf, _)| {
                format!("{} {}: {fault}", flag(file), file.display())
            };
            f.0.extend(faults.map(told));
            None
        }
    }
}
