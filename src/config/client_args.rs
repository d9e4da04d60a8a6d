//! Flags of the commands that call a server, as clap reads them.

use clap::{Args, Subcommand};

/// Where the server is, and how to know it.
#[derive(Debug, Args)]
pub struct ServerArgs {
    /// The server: https://host:port, or http://host:port for dev
    #[arg(long, default_value = "https://127.0.0.1:8443", value_name = "URL")]
    pub address: String,

    /// PEM file: the CAs of the server's certificate
    #[arg(long, value_name = "FILE")]
    pub ca: Option<String>,

    /// Name in the server's certificate, if other than the address's host
    #[arg(long, value_name = "NAME")]
    pub server_name: Option<String>,
}

/// The same, and who calls it.
#[derive(Debug, Args)]
pub struct CallerArgs {
    /// The server.
    #[command(flatten)]
    pub server: ServerArgs,

    /// PEM file: the caller's certificate chain
    #[arg(long, value_name = "FILE")]
    pub cert: Option<String>,

    /// PEM file: its private key, closed to others
    #[arg(long, value_name = "FILE")]
    pub key: Option<String>,

    /// The person behind the call, for the record
    #[arg(long, value_name = "NAME")]
    pub actor: Option<String>,
}

/// Flags of `probe`.
#[derive(Debug, Args)]
pub struct ProbeArgs {
    /// The server.
    #[command(flatten)]
    pub server: ServerArgs,

    /// Service to ask for: empty for liveness,
    /// workflowsecrets.v1.SecretsService for readiness
    #[arg(long, default_value = "", value_name = "NAME")]
    pub service: String,

    /// Longest wait
    #[arg(long, default_value = "2s", value_name = "DURATION")]
    pub timeout: String,
}

/// Flags of `import`.
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// The file: .env, or JSON of names and values; - for standard input
    #[arg(value_name = "FILE")]
    pub file: String,

    /// The workspace
    #[arg(long, value_name = "ID")]
    pub workspace: Option<String>,

    /// env or json; without it, what the file's name says
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<String>,

    /// Only check, and show what would be done (as without --yes)
    #[arg(long, conflicts_with = "yes")]
    pub dry_run: bool,

    /// Do it, if nothing is refused
    #[arg(long)]
    pub yes: bool,

    /// Give secrets that exist the file's value
    #[arg(long)]
    pub update_existing: bool,

    /// With --update-existing, goes on with the import of this id, or repeats it:
    /// what that has stored within 24 hours gets no further version. Each import
    /// prints its id
    #[arg(long, value_name = "ID", requires = "update_existing")]
    pub import_id: Option<String>,

    /// The server and the caller.
    #[command(flatten)]
    pub caller: CallerArgs,
}

/// `keys` and its commands.
#[derive(Debug, Args)]
pub struct KeysArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: KeysCommand,
}

/// What to do with data keys.
#[derive(Debug, Subcommand)]
pub enum KeysCommand {
    /// Show the data keys of a workspace
    Describe(DescribeArgs),
    /// Make a new data key, which seals all values from then on
    Rotate(RotateArgs),
    /// Seal all values of a workspace with its active data key, open each of
    /// them, then destroy the retired data keys
    Reencrypt(ReencryptArgs),
    /// Wrap data keys with the KMS key that the server has as --kms-key
    Rewrap(RewrapArgs),
    /// Destroy a workspace for good: secrets, data keys, all else
    Shred(ShredArgs),
}

/// Flags of `keys describe`.
#[derive(Debug, Args)]
pub struct DescribeArgs {
    /// The workspace
    #[arg(long, value_name = "ID")]
    pub workspace: Option<String>,

    /// The server and the caller.
    #[command(flatten)]
    pub caller: CallerArgs,
}

/// Flags of `keys rotate`.
#[derive(Debug, Args)]
pub struct RotateArgs {
    /// The workspace
    #[arg(long, value_name = "ID")]
    pub workspace: Option<String>,

    /// The data key to replace: if another is active by now, nothing is done;
    /// without it, whichever is active
    #[arg(long, value_name = "ID")]
    pub data_key: Option<String>,

    /// The server and the caller.
    #[command(flatten)]
    pub caller: CallerArgs,
}

/// Flags of `keys reencrypt`.
#[derive(Debug, Args)]
pub struct ReencryptArgs {
    /// The workspace
    #[arg(long, value_name = "ID")]
    pub workspace: Option<String>,

    /// Destroy retired data keys at once, as after a leak, instead of 25 hours
    /// after they were retired: some repeated requests are then refused
    #[arg(long)]
    pub forget_requests: bool,

    /// The server and the caller.
    #[command(flatten)]
    pub caller: CallerArgs,
}

/// Flags of `keys rewrap`.
#[derive(Debug, Args)]
pub struct RewrapArgs {
    /// The workspace
    #[arg(long, value_name = "ID", conflicts_with = "all")]
    pub workspace: Option<String>,

    /// All workspaces; needs the role in every one of them
    #[arg(long)]
    pub all: bool,

    /// The server's --kms-key, exactly: refused if it has another
    #[arg(long, value_name = "KEY")]
    pub kms_key: Option<String>,

    /// The server and the caller.
    #[command(flatten)]
    pub caller: CallerArgs,
}

/// Flags of `keys shred`.
#[derive(Debug, Args)]
pub struct ShredArgs {
    /// The workspace
    #[arg(long, value_name = "ID")]
    pub workspace: Option<String>,

    /// The workspace once more: nothing brings it back
    #[arg(long, value_name = "ID")]
    pub confirm: Option<String>,

    /// The server and the caller.
    #[command(flatten)]
    pub caller: CallerArgs,
}
