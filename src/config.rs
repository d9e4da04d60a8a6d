//! Floor 5: settings, from flags and environment variables, parsed once.
//!
//! Every fault is found before any port opens, and all are told at once.

mod args;
mod client;
mod client_args;
mod faults;
mod limit_args;
mod limits;
mod manual;
mod otlp;
mod store;

use std::{
    fs::{self, File},
    io::{ErrorKind, Read as _},
    net::{IpAddr, SocketAddr},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use self::faults::is_url;
pub use self::{
    args::{Cli, Command, CompletionsArgs, DevArgs, ManArgs, ServeArgs},
    client::{
        Connection, Existing, Format, ImportConfig, KeysConfig, KeysTask, ProbeConfig, Server,
        Source,
    },
    client_args::{
        CallerArgs, DescribeArgs, ImportArgs, KeysArgs, KeysCommand, ProbeArgs, ReencryptArgs,
        RewrapArgs, RotateArgs, ServerArgs, ShredArgs,
    },
    faults::Faults,
    limit_args::LimitArgs,
    manual::{completions, man_pages},
    store::StoreConfig,
};
use crate::{
    domain::{Environment, WorkspaceId},
    envelope::KeyringConfig,
    grpc::tls::{self, TlsFiles},
    kms::aws::{AwsKmsConfig, AwsKmsError, KmsKeyId, PreviousKey, body_logging},
    process::Memory,
    service::{
        Limits,
        access::Policy,
        audit::{AuditConfig, AuditSink},
    },
    store::witness::ShreddedList,
    telemetry::{OtlpConfig, TelemetryConfig},
};

/// Settings of `serve`, all valid.
pub struct ServeConfig {
    /// Where to listen.
    pub listen: SocketAddr,
    /// Where to answer probes and Prometheus.
    pub admin_listen: Option<SocketAddr>,
    /// The deployment.
    pub environment: Environment,
    /// Certificate files, watched for changes.
    pub tls_files: TlsFiles,
    /// Policy file, watched for changes.
    pub policy_file: PathBuf,
    /// Workspaces that are destroyed whatever the store has of them.
    pub shredded_file: Option<PathBuf>,
    /// Where audit lines go.
    pub audit: AuditSink,
    /// Bounds of the audit stream.
    pub audit_config: AuditConfig,
    /// Which store.
    pub store: StoreConfig,
    /// Which KMS key, and how to reach it.
    pub kms: AwsKmsConfig,
    /// How long unwrapped data keys serve.
    pub keyring: KeyringConfig,
    /// Operator's limits.
    pub limits: Limits,
    /// Longest time from SIGTERM to the end of the process.
    pub grace: Duration,
    /// Part of it during which calls are still taken although health says
    /// NOT_SERVING, for load balancers to notice.
    pub drain_delay: Duration,
    /// Logs, traces and metrics; taken by who sets them up.
    pub telemetry: Option<TelemetryConfig>,
    /// What is allowed and yet unwise, for the log.
    pub warnings: Vec<&'static str>,
}

/// Settings of `dev`, all valid.
pub struct DevConfig {
    /// Where to listen: loopback.
    pub listen: SocketAddr,
    /// Holds store, key and audit file.
    pub data_dir: PathBuf,
    /// Logs; taken by who sets them up.
    pub telemetry: Option<TelemetryConfig>,
}

impl ServeConfig {
    /// Parses the arguments and reads the files they name. `memory` tells what
    /// became of locking it.
    ///
    /// # Errors
    /// All faults.
    pub fn parse(args: ServeArgs, memory: Memory) -> Result<Self, Faults> {
        let mut faults = Faults::default();
        let f = &mut faults;
        for found in body_logging(|name| std::env::var_os(name).is_some()) {
            f.0.push(format!("environment: {found}"));
        }
        let listen = f.parsed("--listen", &args.listen, "an address such as 0.0.0.0:8443");
        let admin_listen: Option<SocketAddr> = args
            .admin_listen
            .as_ref()
            .and_then(|text| f.parsed("--admin-listen", text, "an address such as 0.0.0.0:9464"));
        let environment = f
            .required("--environment", args.environment.as_ref())
            .and_then(|text| f.rule("--environment", Environment::parse(text)));
        let tls_files = tls_files(f, &args);
        let policy_file = policy_file(f, args.policy.as_ref());
        let shredded_file = args.shredded_workspaces.as_ref().map(PathBuf::from);
        if let Some(path) = &shredded_file {
            f.note(&format!("--shredded-workspaces {}", path.display()), load_shredded(path));
        }
        let audit = match args.audit.as_str() {
            "-" => Some(AuditSink::Stdout),
            path => f.note("--audit", file_at(path)).map(AuditSink::File),
        };
        let store = store::store(f, &args);
        let kms = kms(f, &args);
        let limits = limits::parse(f, &args.limits);
        let keyring = keyring(f, &args.forget_data_keys_after, &args.max_data_keys);
        let must_lock = f.switch("--require-locked-memory", &args.require_locked_memory);
        if let (Some(true), Memory::Unlocked(why)) = (must_lock, memory) {
            f.0.push(format!("--require-locked-memory: memory cannot be locked: {why}"));
        }
        let grace = f.duration("--shutdown-grace", &args.shutdown_grace);
        let drain_delay = f.duration("--drain-delay", &args.drain_delay);
        if let (Some(grace), Some(delay)) = (grace, drain_delay) {
            let fits = (delay < grace).then_some(());
            f.note("--drain-delay", fits.ok_or("must be shorter than --shutdown-grace"));
        }
        let warnings = warnings(&args, store.as_ref());
        let otlp = otlp::parse(f, |name| std::env::var_os(name));
        let telemetry = f.telemetry(&args.log, &args.log_format, otlp, admin_listen.is_some());
        let config = || {
            Some(Self {
                listen: listen?,
                admin_listen,
                environment: environment?,
                tls_files: tls_files?,
                policy_file: policy_file?,
                shredded_file,
                audit: audit?,
                audit_config: AuditConfig::default(),
                store: store?,
                kms: kms?,
                limits: limits?,
                keyring: keyring?,
                grace: grace?,
                drain_delay: drain_delay?,
                telemetry: Some(telemetry?),
                warnings,
            })
        };
        let config = config();
        faults.finish(config)
    }
}

impl DevConfig {
    /// Parses the arguments.
    ///
    /// # Errors
    /// All faults; one is an address that is not loopback.
    pub fn parse(args: DevArgs) -> Result<Self, Faults> {
        let mut faults = Faults::default();
        let listen: Option<SocketAddr> =
            faults.parsed("--listen", &args.listen, "an address such as 127.0.0.1:7443");
        if listen.is_some_and(|address| !address.ip().is_loopback()) {
            faults.0.push("--listen: dev speaks plaintext and listens on loopback only".into());
        }
        faults.not_empty("--data-dir", Some(&args.data_dir));
        let telemetry = faults.telemetry(&args.log, "text", OtlpConfig::default(), false);
        let config = listen.zip(telemetry).map(|(listen, telemetry)| Self {
            listen,
            data_dir: args.data_dir.into(),
            telemetry: Some(telemetry),
        });
        faults.finish(config)
    }
}

/// What crosses the network in the clear.
fn warnings(args: &ServeArgs, store: Option<&StoreConfig>) -> Vec<&'static str> {
    let kms = args.kms_endpoint.as_ref().is_some_and(|url| crosses_in_clear(url, "http"));
    let redis = store.is_some_and(StoreConfig::crosses_in_clear);
    [
        (kms, "DATA KEYS CROSS THE NETWORK IN THE CLEAR: use https:// for the KMS"),
        (
            redis,
            "names, descriptions and the Redis password cross the network in the clear: \
             use rediss://",
        ),
    ]
    .into_iter()
    .filter_map(|(clear, warning)| clear.then_some(warning))
    .collect()
}

/// Whether a URL has the scheme without TLS and leads to another machine.
fn crosses_in_clear(url: &str, scheme: &str) -> bool {
    let uri = url.parse::<http::Uri>().unwrap_or_default();
    uri.scheme_str() == Some(scheme) && !is_loopback(uri.host().unwrap_or_default())
}

fn is_loopback(host: &str) -> bool {
    let host = host.trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn tls_files(f: &mut Faults, args: &ServeArgs) -> Option<TlsFiles> {
    let cert = f.required("--tls-cert", args.tls_cert.as_ref());
    let key = f.required("--tls-key", args.tls_key.as_ref());
    let client_ca = f.required("--tls-client-ca", args.tls_client_ca.as_ref());
    let [cert, key, client_ca] =
        [cert, key, client_ca].map(|path| PathBuf::from(path.unwrap_or_default()));
    f.not_empty("--tls-client-crl", args.tls_client_crl.as_ref());
    let client_crl = args.tls_client_crl.as_ref().filter(|path| !path.is_empty());
    let client_crl = client_crl.map(PathBuf::from);
    let files = TlsFiles { cert, key, client_ca, client_crl };
    match tls::load(&files) {
        Ok(_) => Some(files),
        Err(error) => {
            // A file that was not given is a fault already told.
            let faults = error.faults().iter().filter(|(file, _)| !file.as_os_str().is_empty());
            f.0.extend(faults.map(|(file, fault)| format!("{}: {fault}", file.display())));
            None
        }
    }
}

fn policy_file(f: &mut Faults, path: Option<&String>) -> Option<PathBuf> {
    let path = PathBuf::from(f.required("--policy", path)?);
    f.note(&format!("--policy {}", path.display()), load_policy(&path))?;
    Some(path)
}

/// A quarter of the time must have room for an attempt to reach the KMS.
fn keyring(f: &mut Faults, age: &str, most: &str) -> Option<KeyringConfig> {
    let capacity = f.parsed("--max-data-keys", most, "a whole number of at least 1");
    const FLAG: &str = "--forget-data-keys-after";
    let age = f.duration(FLAG, age)?;
    let range = Duration::from_secs(4)..=Duration::from_secs(60 * 60);
    let fits = range.contains(&age).then(|| KeyringConfig::forgetting_after(age));
    let keyring = f.note(FLAG, fits.ok_or("must be at least 4s and at most 1h"))?;
    Some(KeyringConfig { capacity: capacity?, ..keyring })
}

/// Reads a policy file.
///
/// # Errors
/// All its faults, or why it cannot be read.
pub fn load_policy(path: &Path) -> Result<Arc<Policy>, String> {
    let text = read_file(path, 0o002)?;
    Policy::parse(&text).map(Arc::new).map_err(|faults| faults.to_string())
}

/// Reads the list of destroyed workspaces: one a line; empty lines, and lines
/// that begin with `#`, tell nothing. It grants and takes much: others must not
/// write to it.
///
/// # Errors
/// What is wrong with it; the first line at fault.
pub fn load_shredded(path: &Path) -> Result<Arc<ShreddedList>, String> {
    let text = read_file(path, 0o002)?;
    let lines = (1..).zip(text.lines().map(str::trim));
    let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    let parsed = lines.map(|(number, line): (usize, _)| {
        WorkspaceId::parse(line).map_err(|refusal| format!("line {number}: {}", refusal.rule()))
    });
    parsed.collect::<Result<_, _>>().map(Arc::new)
}

/// Reads a text file that must not grant the rights in `refused` (mode bits).
fn read_file(path: &Path, refused: u32) -> Result<String, String> {
    let mut file = File::open(path).map_err(|error| error.to_string())?;
    let mode = file.metadata().map_err(|error| error.to_string())?.permissions().mode();
    if mode & refused != 0 {
        return Err(format!("its mode is {:o}, which gives others too many rights", mode & 0o777));
    }
    let mut text = String::new();
    file.read_to_string(&mut text).map_err(|error| error.to_string())?;
    Ok(text)
}

/// Refuses a path at which a file can neither be nor be created.
fn file_at(path: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(path);
    let parent = path.parent().ok_or("must name a file")?;
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let fault = match fs::metadata(&path) {
        Ok(found) if found.is_file() => return Ok(path),
        Ok(_) => "is not a regular file".to_owned(),
        Err(error) if error.kind() == ErrorKind::NotFound && parent.is_dir() => return Ok(path),
        Err(error) => error.to_string(),
    };
    Err(format!("{}: {fault}", path.display()))
}

fn kms(f: &mut Faults, args: &ServeArgs) -> Option<AwsKmsConfig> {
    let key = f
        .required("--kms-key", args.kms_key.as_ref())
        .and_then(|text| f.rule("--kms-key", KmsKeyId::parse(text)));
    let previous_keys: Vec<_> = args
        .kms_previous_key
        .iter()
        .filter_map(|text| f.rule("--kms-previous-key", PreviousKey::parse(text)))
        .collect();
    if let Some(endpoint) = &args.kms_endpoint {
        let url = is_url(endpoint, &["http", "https"]).then_some(());
        f.note("--kms-endpoint", url.ok_or("must be an https:// or http:// URL"));
    }
    f.not_empty("--kms-region", args.kms_region.as_ref());
    let mut config = AwsKmsConfig::new(key?);
    config.previous_keys = previous_keys;
    config.endpoint = args.kms_endpoint.clone();
    config.region = args.kms_region.clone();
    if config.region.is_none() && config.key.region().is_none() {
        config.region = environment_region();
    }
    match config.region(None) {
        Ok(_) => {}
        // Whether the profile names one, only the AWS SDK can find out.
        Err(AwsKmsError::NoRegion) if may_have_aws_profile() => {}
        Err(error) => f.0.push(format!("--kms-region: {error}")),
    }
    Some(config)
}

/// The region that the environment names, read as the AWS SDK does.
fn environment_region() -> Option<String> {
    let named = |name| std::env::var(name).ok().filter(|region| !region.is_empty());
    named("AWS_REGION").or_else(|| named("AWS_DEFAULT_REGION"))
}

/// Whether there is a file in which the AWS SDK looks for profiles.
fn may_have_aws_profile() -> bool {
    let named = |name| std::env::var_os(name).is_some();
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    named("AWS_CONFIG_FILE")
        || named("AWS_SHARED_CREDENTIALS_FILE")
        || [".aws/config", ".aws/credentials"].iter().any(|file| home.join(file).exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_text_is_fine_on_this_machine_only() {
        for url in ["http://kms:8080", "http://10.0.0.1", "http://[2001:db8::1]:80/x"] {
            assert!(crosses_in_clear(url, "http"), "{url}");
        }
        let fine = ["https://kms:8080", "http://127.0.0.1:1", "http://localhost", "http://[::1]:2"];
        for url in fine {
            assert!(!crosses_in_clear(url, "http"), "{url}");
        }
    }
}
