//! Flags and environment variables, as clap reads them. Texts only: what they
//! mean is parsed next door, so that all faults can be told at once.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;

use super::{
    client_args::{ImportArgs, KeysArgs, ProbeArgs},
    limit_args::LimitArgs,
};

/// Keeps API keys and OAuth tokens of workflows, and hands them to their runs.
///
/// Exit codes: 0 ended as asked; 64 wrong settings, all of them named; 69 the
/// store, KMS client or audit stream refused or cannot be reached at start, or
/// the address is taken; 70 a fault while running. The help of `probe`, `import`
/// and `keys` tells theirs.
#[derive(Debug, Parser)]
#[command(name = "workflow-secrets", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve in production: mutual TLS, AWS KMS, Redis
    Serve(Box<ServeArgs>),
    /// Serve on this machine for trying out: plaintext on loopback, a local
    /// key and store in one directory, one caller with all roles
    Dev(DevArgs),
    /// Ask a server for its health; exit 0 if SERVING, else 1. For exec probes
    Probe(ProbeArgs),
    /// Store the secrets of a .env or JSON file in a workspace
    ///
    /// Without --yes it only has the server check them, and shows what it would do.
    ///
    /// A secret that exists stays as it is, unless --update-existing is set. So an
    /// import can be run again: after it was cut off, it goes on; after it was
    /// carried out, it changes nothing.
    ///
    /// No value is ever printed.
    ///
    /// Exit codes: 0 all of it is fine, or done; 1 the server refuses something: a
    /// check that finds this stores nothing; 64 wrong arguments; 65 wrong lines in
    /// the file, all of them named: nothing is sent; 69 the server cannot be reached,
    /// or was lost for half a minute: run it again; 70 a fault here, such as output
    /// that cannot be written.
    Import(Box<ImportArgs>),
    /// Administer data keys; needs the role operator
    ///
    /// Exit codes: 0 done; 1 the server refuses, or something failed and is named;
    /// 64 wrong arguments; 69 the server cannot be reached, or was lost for half a
    /// minute; 70 a fault here, such as output that cannot be written. Whatever was
    /// cut off is run again: it goes on where it was.
    Keys(KeysArgs),
    /// Print a completion script for a shell
    ///
    /// For bash: source <(workflow-secrets completions bash)
    Completions(CompletionsArgs),
    /// Write man pages, one for each command, into a directory that is there
    Man(ManArgs),
}

/// Flags of `completions`.
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell
    pub shell: Shell,
}

/// Flags of `man`.
#[derive(Debug, Args)]
pub struct ManArgs {
    /// The directory
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
}

/// Flags of `serve`. Each can be set by the environment variable named with it.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Address to listen on
    #[arg(long, env = "WORKFLOW_SECRETS_LISTEN", default_value = "0.0.0.0:8443")]
    pub listen: String,

    /// Address for /healthz, /readyz and /metrics over plain HTTP; without it,
    /// none
    #[arg(long, env = "WORKFLOW_SECRETS_ADMIN_LISTEN", value_name = "ADDRESS")]
    pub admin_listen: Option<String>,

    /// Name of the deployment, bound into everything encrypted; never change
    /// it for a store that holds secrets
    #[arg(long, env = "WORKFLOW_SECRETS_ENVIRONMENT")]
    pub environment: Option<String>,

    /// PEM file: the server's certificate chain (reloaded on change)
    #[arg(long, env = "WORKFLOW_SECRETS_TLS_CERT", value_name = "FILE")]
    pub tls_cert: Option<String>,

    /// PEM file: its private key, closed to others (reloaded on change)
    #[arg(long, env = "WORKFLOW_SECRETS_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<String>,

    /// PEM file: the CAs of client certificates (reloaded on change)
    #[arg(long, env = "WORKFLOW_SECRETS_TLS_CLIENT_CA", value_name = "FILE")]
    pub tls_client_ca: Option<String>,

    /// PEM file: revocation lists of these CAs, one of each (reloaded on
    /// change); without it, revocation is not looked at
    #[arg(long, env = "WORKFLOW_SECRETS_TLS_CLIENT_CRL", value_name = "FILE")]
    pub tls_client_crl: Option<String>,

    /// TOML file: who may do what (reloaded on change)
    #[arg(long, env = "WORKFLOW_SECRETS_POLICY", value_name = "FILE")]
    pub policy: Option<String>,

    /// File: workspaces that are destroyed whatever the store has of them, one a
    /// line (reloaded on change)
    #[arg(long, env = "WORKFLOW_SECRETS_SHREDDED_WORKSPACES", value_name = "FILE")]
    pub shredded_workspaces: Option<String>,

    /// Where audit lines go: a file, or - for stdout
    #[arg(long, env = "WORKFLOW_SECRETS_AUDIT", value_name = "FILE", default_value = "-")]
    pub audit: String,

    /// redis://host:port/db, redis-sentinel://host:port,.../master-name/db,
    /// redis-cluster://host:port,..., each also with rediss for TLS, or
    /// embedded:/path/to/file
    #[arg(long, env = "WORKFLOW_SECRETS_STORE", value_name = "URL")]
    pub store: Option<String>,

    /// Redis ACL user
    #[arg(long, env = "WORKFLOW_SECRETS_REDIS_USERNAME", value_name = "NAME")]
    pub redis_username: Option<String>,

    /// File with the Redis password, closed to others; read for each connection
    #[arg(long, env = "WORKFLOW_SECRETS_REDIS_PASSWORD_FILE", value_name = "FILE")]
    pub redis_password_file: Option<String>,

    /// PEM file: the CAs of Redis and its sentinels; without it, the system's
    #[arg(long, env = "WORKFLOW_SECRETS_REDIS_CA", value_name = "FILE")]
    pub redis_ca: Option<String>,

    /// PEM file: certificate chain to show to Redis and its sentinels (read for
    /// each connection)
    #[arg(long, env = "WORKFLOW_SECRETS_REDIS_CERT", value_name = "FILE")]
    pub redis_cert: Option<String>,

    /// PEM file: its private key, closed to others (read for each connection)
    #[arg(long, env = "WORKFLOW_SECRETS_REDIS_KEY", value_name = "FILE")]
    pub redis_key: Option<String>,

    /// ACL user of the sentinels; that of Redis is another
    #[arg(long, env = "WORKFLOW_SECRETS_REDIS_SENTINEL_USERNAME", value_name = "NAME")]
    pub redis_sentinel_username: Option<String>,

    /// File with the password of the sentinels, closed to others
    #[arg(long, env = "WORKFLOW_SECRETS_REDIS_SENTINEL_PASSWORD_FILE", value_name = "FILE")]
    pub redis_sentinel_password_file: Option<String>,

    /// First part of every Redis key
    #[arg(
        long,
        env = "WORKFLOW_SECRETS_REDIS_KEY_PREFIX",
        value_name = "TEXT",
        default_value = "workflow-secrets"
    )]
    pub redis_key_prefix: String,

    /// Replicas that must confirm a write before it is acknowledged
    #[arg(
        long,
        env = "WORKFLOW_SECRETS_REDIS_MIN_REPLICAS",
        value_name = "N",
        allow_negative_numbers = true,
        default_value = "0"
    )]
    pub redis_min_replicas: String,

    /// Longest wait for one answer of Redis, at most 5s
    #[arg(
        long,
        env = "WORKFLOW_SECRETS_REDIS_TIMEOUT",
        value_name = "DURATION",
        default_value = "1s"
    )]
    pub redis_timeout: String,

    /// Refuse a Redis without an append-only file instead of warning
    #[arg(
        long,
        env = "WORKFLOW_SECRETS_REQUIRE_DURABLE",
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        default_value = "false"
    )]
    pub require_durable: String,

    /// The KMS key that wraps data keys: alias/name, alias or key ARN, key id,
    /// or multi-region key id
    #[arg(long, env = "WORKFLOW_SECRETS_KMS_KEY", value_name = "KEY")]
    pub kms_key: Option<String>,

    /// A key that wrapped data keys before and still unwraps them: key ARN or
    /// key id; may be given several times, in the environment with commas
    #[arg(
        long,
        env = "WORKFLOW_SECRETS_KMS_PREVIOUS_KEY",
        value_name = "KEY",
        value_delimiter = ','
    )]
    pub kms_previous_key: Vec<String>,

    /// URL of the KMS, for emulators and private endpoints
    #[arg(long, env = "WORKFLOW_SECRETS_KMS_ENDPOINT", value_name = "URL")]
    pub kms_endpoint: Option<String>,

    /// AWS region; without it, that of the key's ARN, AWS_REGION,
    /// AWS_DEFAULT_REGION or the AWS profile
    #[arg(long, env = "WORKFLOW_SECRETS_KMS_REGION", value_name = "REGION")]
    pub kms_region: Option<String>,

    /// Longest time that an unwrapped data key stays in memory, from 4s to 1h;
    /// values can be read for so long while the KMS is unavailable, and written for
    /// a quarter of it
    #[arg(
        long,
        env = "WORKFLOW_SECRETS_FORGET_DATA_KEYS_AFTER",
        value_name = "DURATION",
        default_value = "1h"
    )]
    pub forget_data_keys_after: String,

    /// Most unwrapped data keys in memory, one or two for each workspace in use, of
    /// up to 3 KiB each; of more, those used longest ago are asked for again
    #[arg(
        long,
        env = "WORKFLOW_SECRETS_MAX_DATA_KEYS",
        value_name = "COUNT",
        default_value = "10000"
    )]
    pub max_data_keys: String,

    /// Refuse to start if memory cannot be locked, instead of warning
    #[arg(
        long,
        env = "WORKFLOW_SECRETS_REQUIRE_LOCKED_MEMORY",
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        default_value = "false"
    )]
    pub require_locked_memory: String,

    /// Limits.
    #[command(flatten)]
    pub limits: LimitArgs,

    /// Longest time from SIGTERM to the end of the process
    #[arg(
        long,
        env = "WORKFLOW_SECRETS_SHUTDOWN_GRACE",
        value_name = "DURATION",
        default_value = "20s"
    )]
    pub shutdown_grace: String,

    /// Part of the grace period during which calls are still taken while
    /// health says NOT_SERVING, for load balancers to notice
    #[arg(
        long,
        env = "WORKFLOW_SECRETS_DRAIN_DELAY",
        value_name = "DURATION",
        default_value = "0s"
    )]
    pub drain_delay: String,

    /// Log directives; foreign libraries never log below info
    #[arg(long, env = "WORKFLOW_SECRETS_LOG", value_name = "DIRECTIVES", default_value = "info")]
    pub log: String,

    /// json or text; logs go to stderr
    #[arg(
        long,
        env = "WORKFLOW_SECRETS_LOG_FORMAT",
        value_name = "FORMAT",
        default_value = "json"
    )]
    pub log_format: String,
}

/// Flags of `dev`. Each can be set by the environment variable named with it.
#[derive(Debug, Args)]
pub struct DevArgs {
    /// Loopback address to listen on
    #[arg(long, env = "WORKFLOW_SECRETS_DEV_LISTEN", default_value = "127.0.0.1:7443")]
    pub listen: String,

    /// Directory for store, key and audit file; survives restarts
    #[arg(
        long,
        env = "WORKFLOW_SECRETS_DEV_DATA_DIR",
        value_name = "DIR",
        default_value = ".workflow-secrets"
    )]
    pub data_dir: String,

    /// Log directives; foreign libraries never log below info
    #[arg(long, env = "WORKFLOW_SECRETS_LOG", value_name = "DIRECTIVES", default_value = "warn")]
    pub log: String,
}
