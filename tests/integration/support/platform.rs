//! The whole thing, real: redis-server, a KMS endpoint, and replicas of the
//! service as processes of the very binary that production runs.

use std::{
    fs::{self, File},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;
use tonic::{Code, Status, transport::Channel};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_types::StatusExt as _;
use workflow_secrets::grpc::{
    proto::{
        self, key_service_client::KeyServiceClient, secrets_service_client::SecretsServiceClient,
    },
    tls::TlsFiles,
};

use super::{
    kms_endpoint::{ACCESS_KEY_ID, KmsEndpoint, REGION},
    pki::{self, Ca, Identity},
    program,
    redis_server::{Options, RedisServer},
};

pub(crate) type Client = SecretsServiceClient<Channel>;
pub(crate) type KeyClient = KeyServiceClient<Channel>;

/// The service's name in health checks.
pub(crate) const SERVICE: &str = "workflowsecrets.v1.SecretsService";

/// Alias of the key-encryption key.
pub(crate) const KMS_ALIAS: &str = "alias/workflow-secrets";

/// Callers, by the last part of their SPIFFE ids. `sheets` and `slack` are
/// integrations named `google_sheets` and `slack`; `stranger` is granted
/// nothing.
pub(crate) const CALLERS: [&str; 6] =
    ["executor", "platform", "sheets", "slack", "operator", "stranger"];

const POLICY: &str = r#"
[[grant]]
caller = "spiffe://test/executor"
role = "executor"
workspaces = ["*"]

[[grant]]
caller = "spiffe://test/platform"
role = "platform"
workspaces = ["*"]

[[grant]]
caller = "spiffe://test/sheets"
role = "integration"
integrations = ["google_sheets"]
workspaces = ["*"]

[[grant]]
caller = "spiffe://test/slack"
role = "integration"
integrations = ["slack"]
workspaces = ["*"]

[[grant]]
caller = "spiffe://test/operator"
role = "operator"
workspaces = ["*"]
"#;

/// What replicas share.
pub(crate) struct Platform {
    pub(crate) redis: RedisServer,
    pub(crate) kms: KmsEndpoint,
    /// ARN behind [`KMS_ALIAS`].
    pub(crate) kms_key: String,
    pub(crate) ca: Ca,
    tls: TlsFiles,
    dir: TempDir,
}

impl Platform {
    /// Redis with an append-only file synced on each write, and no replica of
    /// the service yet.
    pub(crate) async fn start() -> Self {
        Self::start_with(Options::default().durable()).await
    }

    /// The same on a Redis of these options.
    pub(crate) async fn start_with(redis: Options) -> Self {
        let (redis, kms) = (RedisServer::start(redis).await, KmsEndpoint::start().await);
        let kms_key = kms.create_key();
        kms.set_alias(KMS_ALIAS, &kms_key);
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::new();
        let tls = pki::write_server_files(dir.path(), &ca.server(), &ca);
        fs::write(dir.path().join("policy.toml"), POLICY).unwrap();
        for caller in CALLERS {
            let Identity { cert, key } = ca.client(&[&spiffe_id(caller)]);
            fs::write(dir.path().join(format!("{caller}.crt")), cert).unwrap();
            pki::write_key(&dir.path().join(format!("{caller}.key")), &key);
        }
        Self { redis, kms, kms_key, ca, tls, dir }
    }

    /// A file that all replicas share: `policy.toml`, `tls.crt`, `tls.key`,
    /// `ca.crt`, and `CALLER.crt` and `CALLER.key` of each caller.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// One more replica, ready.
    pub(crate) async fn replica(&self) -> Replica {
        self.replica_with(&[]).await
    }

    /// The same with further flags; they go before those that every replica
    /// gets.
    pub(crate) async fn replica_with(&self, flags: &[&str]) -> Replica {
        let replica = self.launch(flags);
        replica.ready(self).await;
        replica
    }

    /// A ready replica in the place of one that has ended.
    pub(crate) async fn replica_at(&self, address: SocketAddr) -> Replica {
        let replica = self.spawn(address, None, |command, all| command.args(all));
        replica.ready(self).await;
        replica
    }

    /// A replica just launched, which may or may not get ready.
    pub(crate) fn launch(&self, flags: &[&str]) -> Replica {
        self.launch_in(&[], flags)
    }

    /// The same with further environment variables.
    pub(crate) fn launch_in(&self, variables: &[(&str, &str)], flags: &[&str]) -> Replica {
        self.launch_at(free_address(), variables, flags)
    }

    /// The same at this address.
    pub(crate) fn launch_at(
        &self,
        address: SocketAddr,
        variables: &[(&str, &str)],
        flags: &[&str],
    ) -> Replica {
        self.spawn(address, None, |command, all| {
            let pairs = all.chunks(2).filter(|pair| !flags.contains(&pair[0].as_str()));
            command.args(pairs.flatten()).args(flags).envs(variables.iter().copied())
        })
    }

    /// A ready replica whose standard output goes elsewhere.
    pub(crate) async fn replica_to(&self, stdout: impl Into<Stdio>) -> Replica {
        self.replica_to_with(stdout, &[]).await
    }

    /// The same with further flags.
    pub(crate) async fn replica_to_with(
        &self,
        stdout: impl Into<Stdio>,
        flags: &[&str],
    ) -> Replica {
        let stdout = Some(stdout.into());
        let replica =
            self.spawn(free_address(), stdout, |command, all| command.args(all).args(flags));
        replica.ready(self).await;
        replica
    }

    /// A ready replica that has all settings from environment variables.
    pub(crate) async fn replica_by_environment(&self, more: &[(&str, &str)]) -> Replica {
        let replica = self.spawn(free_address(), None, |command, all| {
            for setting in all.chunks(2) {
                let name = setting[0].trim_start_matches('-').replace('-', "_").to_uppercase();
                command.env(format!("WORKFLOW_SECRETS_{name}"), &setting[1]);
            }
            command.envs(more.iter().copied())
        });
        replica.ready(self).await;
        replica
    }

    fn spawn(
        &self,
        address: SocketAddr,
        stdout: Option<Stdio>,
        configure: impl FnOnce(&mut Command, Vec<String>) -> &mut Command,
    ) -> Replica {
        let dir = tempfile::tempdir().unwrap();
        let create = |name: &str| Stdio::from(File::create(dir.path().join(name)).unwrap());
        let mut command = program::command("serve");
        let child = configure(&mut command, self.flags(address))
            .envs([("AWS_ACCESS_KEY_ID", ACCESS_KEY_ID), ("AWS_SECRET_ACCESS_KEY", "test")])
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .stdout(stdout.unwrap_or_else(|| create("stdout")))
            .stderr(create("stderr"))
            .spawn()
            .unwrap();
        Replica { address, dir, child }
    }

    /// The flags that every replica gets.
    pub(crate) fn flags(&self, address: SocketAddr) -> Vec<String> {
        let file = |path: &Path| path.to_str().unwrap().to_owned();
        [
            ("--listen", address.to_string()),
            ("--environment", "test".to_owned()),
            ("--tls-cert", file(&self.tls.cert)),
            ("--tls-key", file(&self.tls.key)),
            ("--tls-client-ca", file(&self.tls.client_ca)),
            ("--policy", file(&self.file("policy.toml"))),
            ("--store", self.redis.url()),
            ("--kms-key", KMS_ALIAS.to_owned()),
            ("--kms-endpoint", self.kms.url()),
            ("--kms-region", REGION.to_owned()),
        ]
        .into_iter()
        .flat_map(|(flag, value)| [flag.to_owned(), value])
        .collect()
    }

    /// A client of one replica, as one of [`CALLERS`].
    pub(crate) async fn client(&self, replica: &Replica, caller: &str) -> Client {
        SecretsServiceClient::new(self.channel_as(replica, caller).await)
            .max_decoding_message_size(16 * 1024 * 1024)
    }

    /// The same for the administration of keys.
    pub(crate) async fn key_client(&self, replica: &Replica, caller: &str) -> KeyClient {
        KeyServiceClient::new(self.channel_as(replica, caller).await)
    }

    /// A channel to one replica, as one of [`CALLERS`].
    pub(crate) async fn channel_as(&self, replica: &Replica, caller: &str) -> Channel {
        self.channel(replica, Some(&self.identity(caller))).await
    }

    /// Certificate and key of one of [`CALLERS`].
    pub(crate) fn identity(&self, caller: &str) -> Identity {
        let read = |end: &str| fs::read_to_string(self.file(&format!("{caller}.{end}"))).unwrap();
        Identity { cert: read("crt"), key: read("key") }
    }

    /// A channel to one replica, with or without a certificate.
    pub(crate) async fn channel(&self, replica: &Replica, identity: Option<&Identity>) -> Channel {
        let config = pki::client_config(&self.ca, identity);
        pki::channel(replica.address, config).await.unwrap()
    }
}

/// SPIFFE id of one of [`CALLERS`].
pub(crate) fn spiffe_id(caller: &str) -> String {
    format!("spiffe://test/{caller}")
}

/// One running service; killed when dropped.
pub(crate) struct Replica {
    pub(crate) address: SocketAddr,
    dir: TempDir,
    child: Child,
}

impl Replica {
    /// Waits until it can serve.
    pub(crate) async fn ready(&self, platform: &Platform) {
        self.until_health(platform, SERVICE, ServingStatus::Serving).await;
    }

    /// Waits until its health service says this of a service name.
    pub(crate) async fn until_health(
        &self,
        platform: &Platform,
        name: &str,
        status: ServingStatus,
    ) {
        let start = Instant::now();
        while self.health(platform, name).await != Some(status) {
            assert!(start.elapsed() < Duration::from_secs(20), "not {status:?}: {}", self.stderr());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// What its health service says of a service name; `None`: no answer.
    pub(crate) async fn health(&self, platform: &Platform, name: &str) -> Option<ServingStatus> {
        let config = pki::client_config(&platform.ca, None);
        let channel = pki::channel(self.address, config).await.ok()?;
        let request = HealthCheckRequest { service: name.to_owned() };
        Some(HealthClient::new(channel).check(request).await.ok()?.into_inner().status())
    }

    /// Its audit lines so far.
    pub(crate) fn audit(&self) -> Vec<serde_json::Value> {
        let lines = self.stdout();
        lines.lines().map(|line| serde_json::from_str(line).expect("a JSON line")).collect()
    }

    pub(crate) fn stdout(&self) -> String {
        fs::read_to_string(self.dir.path().join("stdout")).unwrap()
    }

    pub(crate) fn stderr(&self) -> String {
        fs::read_to_string(self.dir.path().join("stderr")).unwrap()
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL.
    pub(crate) fn kill9(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM.
    pub(crate) fn terminate(&self) {
        program::terminate(&self.child);
    }

    /// Makes it hang: connections stay open and nothing is answered.
    pub(crate) fn stop_signal(&self) {
        program::signal(&self.child, "-STOP");
    }

    /// Lets it go on.
    pub(crate) fn cont_signal(&self) {
        program::signal(&self.child, "-CONT");
    }

    /// How it ended, if it has.
    #[allow(dead_code, reason = "for the soak")]
    pub(crate) fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Waits for its end.
    pub(crate) async fn ended(&mut self, within: Duration) -> ExitStatus {
        let status = program::ended(&mut self.child, within).await;
        status.unwrap_or_else(|| panic!("still running: {}", self.stderr()))
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        // Fails if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A loopback port that was free a moment ago.
pub(crate) fn free_address() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap()
}

pub(crate) fn create(workspace: &str, name: &str, value: &str) -> proto::CreateSecretRequest {
    proto::CreateSecretRequest {
        workspace: workspace.to_owned(),
        name: name.to_owned(),
        value: value.to_owned(),
        description: String::new(),
        owner: None,
        expire_time: None,
        request_id: String::new(),
        validate_only: false,
        ttl: None,
    }
}

/// A change of nothing yet.
pub(crate) fn update(workspace: &str, name: &str) -> proto::UpdateSecretRequest {
    proto::UpdateSecretRequest {
        workspace: workspace.to_owned(),
        name: name.to_owned(),
        value: None,
        description: None,
        expire_time: None,
        etag: String::new(),
        allow_missing: false,
        request_id: String::new(),
        validate_only: false,
        owner: None,
        fencing_token: None,
        ttl: None,
    }
}

/// A request changed in place: one that holds a value overwrites it on drop, so
/// it cannot be taken apart.
pub(crate) fn with<T>(mut request: T, change: impl FnOnce(&mut T)) -> T {
    change(&mut request);
    request
}

pub(crate) fn get(workspace: &str, name: &str) -> proto::GetSecretRequest {
    proto::GetSecretRequest { workspace: workspace.to_owned(), name: name.to_owned() }
}

pub(crate) fn delete(workspace: &str, name: &str) -> proto::DeleteSecretRequest {
    proto::DeleteSecretRequest {
        workspace: workspace.to_owned(),
        name: name.to_owned(),
        ..Default::default()
    }
}

pub(crate) fn list(workspace: &str) -> proto::ListSecretsRequest {
    proto::ListSecretsRequest { workspace: workspace.to_owned(), ..Default::default() }
}

/// Names under themselves, or `name=alias`; of an earlier version: `name@2`,
/// `name@2=alias`.
pub(crate) fn resolve(workspace: &str, names: &[&str]) -> proto::ResolveSecretsRequest {
    let credential = |name: &&str| {
        let (secret, alias) = name.split_once('=').unwrap_or((name, ""));
        let (secret, version) = secret.split_once('@').unwrap_or((secret, "0"));
        let version = version.parse().unwrap();
        proto::Credential {
            secret: secret.to_owned(),
            alias: alias.to_owned(),
            version,
            ..Default::default()
        }
    };
    proto::ResolveSecretsRequest {
        workspace: workspace.to_owned(),
        credentials: names.iter().map(credential).collect(),
        workflow_id: String::new(),
        run_id: "run-1".to_owned(),
    }
}

/// The value behind an alias of an answer.
pub(crate) fn value(response: &proto::ResolveSecretsResponse, alias: &str) -> String {
    response.secrets[alias].value.clone()
}

/// Code and reason of an error; its domain is checked on the way.
pub(crate) fn reason(status: &Status) -> (Code, String) {
    let details = status.get_error_details();
    let info = details.error_info().unwrap_or_else(|| panic!("no ErrorInfo: {status:?}"));
    assert_eq!(info.domain, "workflowsecrets.v1");
    (status.code(), info.reason.clone())
}

/// Asserts that a call may be tried again: UNAVAILABLE, why, and when.
#[track_caller]
pub(crate) fn assert_unavailable<T>(outcome: Result<tonic::Response<T>, Status>, why: &str) {
    let status = assert_refused(outcome, Code::Unavailable, why);
    let details = status.get_error_details();
    assert!(details.retry_info().and_then(|info| info.retry_delay).is_some(), "{status:?}");
}

/// Asserts code and reason of an error.
#[track_caller]
pub(crate) fn assert_refused<T>(
    outcome: Result<tonic::Response<T>, Status>,
    code: Code,
    why: &str,
) -> Status {
    let status = outcome.err().expect("an error");
    assert_eq!(reason(&status), (code, why.to_owned()), "{status:?}");
    status
}
