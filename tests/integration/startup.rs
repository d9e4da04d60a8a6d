//! Settings, and what is refused before and at the start.

use std::{
    fs,
    net::TcpListener,
    os::unix::fs::{PermissionsExt as _, symlink},
    time::Duration,
};

use super::support::{
    platform::{Platform, create, free_address, resolve, value},
    program::{Outcome, command, run},
    redis_server::Options,
};

/// One flag with its value.
type Setting<'a> = [&'a str; 2];

async fn serve(settings: &[Setting<'_>], environment: &[(&str, &str)]) -> Outcome {
    run(command("serve").args(settings.concat()).envs(environment.iter().copied())).await
}

#[tokio::test]
async fn all_faults_are_named_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &str| {
        let path = dir.path().join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (cert, key) = (file("tls.crt", "no certificate"), file("tls.key", "open to all"));
    let policy = file("policy.toml", "[[grant]]\ncaller = \"nobody\"\nrole = \"king\"\n");
    let absent = dir.path().join("absent").to_str().unwrap().to_owned();
    let outcome = serve(
        &[
            ["--listen", "nowhere"],
            ["--tls-cert", &cert],
            ["--tls-key", &key],
            ["--tls-client-ca", &absent],
            ["--policy", &policy],
            ["--store", "mysql://localhost"],
            ["--redis-key-prefix", "{}"],
            ["--redis-min-replicas", "many"],
            ["--redis-timeout", "soon"],
            ["--redis-password-file", &absent],
            ["--kms-key", "key of mine"],
            ["--kms-previous-key", "alias/old"],
            ["--kms-endpoint", "localhost:4566"],
            ["--max-secrets-per-workspace", "-"],
            ["--max-versions", "-"],
            ["--max-redactions-per-minute", "0"],
            ["--max-preparations-per-minute", "0"],
            ["--max-caller-calls-per-second", "-1"],
            ["--max-workspace-calls-per-second", "many"],
            ["--max-workspace-calls-at-once", "0"],
            ["--rotate-data-keys-after", "yearly"],
            ["--rotate-data-keys-after-changes", "many"],
            ["--max-audit-events", "many"],
            ["--deleted-retention", "a week"],
            ["--shutdown-grace", "1s"],
            ["--drain-delay", "2s"],
            ["--log", "a=b=c"],
            ["--log-format", "xml"],
            ["--admin-listen", "nowhere"],
        ],
        &[("LOG_SENSITIVE_BODIES", "1"), ("LOG_SIGNABLE_BODY", "1")],
    )
    .await;
    assert_faults(
        &outcome,
        &[
            "environment: the environment variable LOG_SENSITIVE_BODIES makes",
            "environment: the environment variable LOG_SIGNABLE_BODY makes",
            "--listen: must be",
            "--environment: is required",
            &format!("{cert}: holds no certificates"),
            &format!("{key}: is open to others"),
            &format!("{absent}: No such file"),
            &format!("--policy {policy}: "),
            "--store: must",
            "--redis-key-prefix: must",
            "--redis-min-replicas: must",
            "--redis-timeout: must",
            &format!("--redis-password-file {absent}: No such file"),
            "--kms-key: must",
            "--kms-previous-key: must",
            "--kms-endpoint: must",
            "--max-secrets-per-workspace: must",
            "--max-versions: must",
            "--max-redactions-per-minute: must",
            "--max-preparations-per-minute: must",
            "--max-caller-calls-per-second: must",
            "--max-workspace-calls-per-second: must",
            "--max-workspace-calls-at-once: must",
            "--rotate-data-keys-after: must",
            "--rotate-data-keys-after-changes: must",
            "--max-audit-events: must",
            "--deleted-retention: must",
            "--drain-delay: must",
            "--log: must",
            "--log-format: must",
            "--admin-listen: must",
        ],
    );
    assert!(!outcome.stderr.contains("open to all"), "{}", outcome.stderr);
}

/// Exactly these faults are told, each by its beginning, and nothing is served.
fn assert_faults(outcome: &Outcome, faults: &[&str]) {
    assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(64), ""), "{}", outcome.stderr);
    for fault in faults {
        let line = format!("workflow-secrets: {fault}");
        assert!(outcome.stderr.contains(&line), "no {fault:?} in {}", outcome.stderr);
    }
    assert_eq!(outcome.stderr.lines().count(), faults.len(), "{}", outcome.stderr);
}

/// Faulty, each of them, whatever the store.
const FAULTY: [Setting<'_>; 22] = [
    ["--tls-key", "/absent/tls.key"],
    ["--tls-client-ca", "/absent/ca.crt"],
    ["--audit", "/absent/audit.jsonl"],
    ["--redis-username", ""],
    ["--redis-password-file", "/absent/password"],
    ["--redis-ca", "/absent/redis.crt"],
    ["--redis-cert", "/absent/client.crt"],
    ["--redis-key", "/absent/client.key"],
    ["--redis-sentinel-username", ""],
    ["--redis-sentinel-password-file", "/absent/sentinel"],
    ["--redis-key-prefix", "{}"],
    ["--redis-min-replicas", "-1"],
    ["--redis-timeout", "6s"],
    ["--kms-previous-key", "alias/old"],
    ["--kms-region", ""],
    ["--max-secrets-per-workspace", "0"],
    ["--max-versions", "101"],
    ["--max-audit-events", "1000001"],
    ["--deleted-retention", "3651d"],
    ["--rotate-data-keys-after", "59m"],
    ["--rotate-data-keys-after-changes", "999"],
    ["--admin-listen", "9464"],
];

const FAULTS: [&str; 25] = [
    "--environment: is required",
    "--tls-cert: is required",
    "/absent/tls.key: No such file",
    "/absent/ca.crt: No such file",
    "--policy: is required",
    "--audit: /absent/audit.jsonl: No such file",
    "--redis-username: must not be empty",
    "--redis-password-file /absent/password: No such file",
    "--redis-ca /absent/redis.crt: No such file",
    "--redis-cert /absent/client.crt: No such file",
    "--redis-key /absent/client.key: No such file",
    "--redis-sentinel-username: must not be empty",
    "--redis-sentinel-password-file /absent/sentinel: No such file",
    "--redis-key-prefix: must",
    "--redis-min-replicas: must",
    "--redis-timeout: must be longer than 0 and at most 5s",
    "--require-durable: must be true or false",
    "--kms-previous-key: must",
    "--max-secrets-per-workspace: must be a number of secrets, at least 1",
    "--max-versions: must be a number of earlier values, at most 100",
    "--max-audit-events: must be a number of entries, at most 1000000",
    "--rotate-data-keys-after: must be 0s or at least 1h",
    "--rotate-data-keys-after-changes: must be a number of changes, 0 or at least 1000",
    "--deleted-retention: must be at most 3650days",
    "--admin-listen: must",
];

#[tokio::test]
async fn no_fault_hides_another() {
    let unclear = [("WORKFLOW_SECRETS_REQUIRE_DURABLE", "maybe")];
    let missing = ["--store: is required", "--kms-key: is required"];
    let region = "--kms-region: must not be empty";
    let outcome = serve(&FAULTY, &unclear).await;
    assert_faults(&outcome, &[&FAULTS[..], &missing, &[region]].concat());

    // The same for a store that none of them concerns, and one of a Redis.
    let key = "arn:aws:kms:eu-west-1:111122223333:alias/a";
    let mismatch = "--kms-region: the KMS key";
    for store in ["embedded:store.redb", "rediss-sentinel://localhost/main"] {
        let given = [&FAULTY[..], &[["--store", store], ["--kms-key", key]]].concat();
        let outcome = serve(&given, &unclear).await;
        assert_faults(&outcome, &[&FAULTS[..], &[region, mismatch]].concat());
    }
}

#[tokio::test]
async fn each_wrong_setting_alone_is_told_before_a_port_opens() {
    let platform = Platform::start_with(Options::default()).await;
    let (empty, plain) = (platform.file("empty"), platform.file("plain"));
    fs::create_dir(&empty).unwrap();
    fs::write(&plain, "").unwrap();
    let path = |path: &std::path::Path| path.to_str().unwrap().to_owned();
    let below = path(&plain.join("audit.jsonl"));
    // Whoever tries to open this port is told that it is taken.
    let taken = TcpListener::bind(free_address()).unwrap();
    let flags = platform.flags(taken.local_addr().unwrap());
    let start = async |without: &str, more: &[&str], variables: &[(&str, &str)]| {
        let kept = flags.chunks(2).filter(|flag| flag[0] != without).flatten();
        let mut command = command("serve");
        for variable in
            ["AWS_REGION", "AWS_DEFAULT_REGION", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"]
        {
            command.env_remove(variable);
        }
        let command = command.env("HOME", &empty).envs(variables.iter().copied());
        run(command.args(kept).args(more)).await
    };
    for (setting, fault) in [
        (["--audit", ""], "--audit: must name a file"),
        (["--audit", "/absent/dir/a"], "--audit: /absent/dir/a: No such file"),
        (["--audit", &below], &format!("--audit: {below}: Not a directory")),
        (["--audit", &path(&empty)], &format!("--audit: {}: is not a regular", path(&empty))),
        (["--redis-ca", &path(&plain)], &format!("--redis-ca {}: holds no", path(&plain))),
        (["--admin-listen", "9464"], "--admin-listen: must"),
        (["--max-secrets-per-workspace", "0"], "--max-secrets-per-workspace: must"),
        (["--max-secrets-per-workspace", "4294967296"], "--max-secrets-per-workspace: must"),
        (["--max-versions", "101"], "--max-versions: must"),
        (["--max-versions", "-1"], "--max-versions: must"),
        (["--max-data-keys", "0"], "--max-data-keys: must"),
        (["--forget-data-keys-after", "3s"], "--forget-data-keys-after: must be at least 4s"),
        (["--forget-data-keys-after", "61m"], "--forget-data-keys-after: must be at least 4s"),
    ] {
        let outcome = start("", &setting, &[]).await;
        let needs_tls = (setting[0] == "--redis-ca").then_some("--redis-ca: needs a rediss://");
        assert_faults(
            &outcome,
            &[Some(fault), needs_tls].into_iter().flatten().collect::<Vec<_>>(),
        );
    }
    for (store, fault) in [
        ("embedded:", "--store: embedded: must be followed by a file"),
        ("embedded:/absent/dir/s", "--store: /absent/dir/s: No such file"),
        ("redis-sentinel://localhost", "--store: must name the master after the sentinels"),
        ("redis-cluster://localhost/1", "--store: must not name a database"),
        ("redis-clusters://localhost", "--store: must be redis[s]://"),
    ] {
        assert_faults(&start("--store", &["--store", store], &[]).await, &[fault]);
    }

    // No region is a fault where no profile can name one.
    let region = "--kms-region";
    let none = "--kms-region: no AWS region";
    assert_faults(&start(region, &[], &[("AWS_REGION", "")]).await, &[none]);
    let other = [
        "--kms-previous-key",
        "arn:aws:kms:us-east-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab",
    ];
    let elsewhere = start(region, &other, &[("AWS_REGION", "eu-west-1")]).await;
    assert_faults(&elsewhere, &["--kms-region: the KMS key"]);
    for named in [
        ("AWS_REGION", "eu-west-1"),
        ("AWS_DEFAULT_REGION", "eu-west-1"),
        ("AWS_CONFIG_FILE", "/some/file"),
    ] {
        let outcome = start(region, &[], &[named]).await;
        assert_eq!(outcome.code, Some(69), "{named:?}: {}", outcome.stderr);
        assert!(outcome.stderr.contains("cannot listen on"), "{}", outcome.stderr);
    }
}

#[tokio::test]
async fn a_switch_takes_the_usual_words_or_none() {
    for (argument, fine) in [
        ("--require-durable", true),
        ("--require-durable=1", true),
        ("--require-durable=ON", true),
        ("--require-durable=no", true),
        ("--require-durable=", false),
        ("--require-durable=2", false),
    ] {
        // It must not take the next flag for its value.
        let outcome = run(command("serve").args([argument, "--log", "a=b=c"])).await;
        assert_eq!(outcome.code, Some(64), "{argument}: {}", outcome.stderr);
        assert!(outcome.stderr.contains("--log: must"), "{argument}: {}", outcome.stderr);
        let refused = outcome.stderr.contains("--require-durable: must be true or false");
        assert_eq!(!refused, fine, "{argument}: {}", outcome.stderr);
    }
}

#[tokio::test]
async fn errors_name_the_file() {
    let platform = Platform::start_with(Options::default()).await;
    // Only opening it finds out that it leads nowhere.
    let link = platform.file("audit.jsonl");
    symlink("/absent/dir/a", &link).unwrap();
    let mut replica = platform.launch(&["--audit", link.to_str().unwrap()]);
    let status = replica.ended(Duration::from_secs(10)).await;
    assert_eq!(status.code(), Some(69), "{}", replica.stderr());
    let told = format!("workflow-secrets: audit stream {}: No such file", link.display());
    assert!(replica.stderr().contains(&told), "{}", replica.stderr());

    let probe = run(command("probe").args(["--ca", "/absent/ca.crt"])).await;
    assert_eq!(probe.code, Some(64), "{}", probe.stderr);
    assert!(probe.stderr.contains("--ca /absent/ca.crt: "), "{}", probe.stderr);
    let data = run(command("dev").args(["--data-dir", "", "--listen", "10.0.0.1:1"])).await;
    assert_faults(&data, &["--listen: dev speaks", "--data-dir: must not be empty"]);
}

#[tokio::test]
async fn settings_must_fit_each_other() {
    let outcome = serve(
        &[
            ["--store", "redis://localhost"],
            ["--redis-ca", "ca.crt"],
            ["--redis-key", "client.key"],
            ["--redis-sentinel-username", "guide"],
            ["--redis-sentinel-password-file", "password"],
            ["--redis-timeout", "0s"],
            ["--kms-key", "arn:aws:kms:eu-west-1:111122223333:alias/a"],
            ["--kms-region", "us-east-1"],
        ],
        &[],
    )
    .await;
    assert_eq!(outcome.code, Some(64), "{}", outcome.stderr);
    for fault in [
        "--redis-ca: needs a rediss:// store",
        "--redis-key: needs a rediss:// store",
        "--redis-key: needs --redis-cert",
        "--redis-sentinel-username: needs a redis-sentinel:// store",
        "--redis-sentinel-password-file: needs a redis-sentinel:// store",
        "--redis-timeout: must be longer than 0",
        "--kms-region: the KMS key \"arn:aws:kms:eu-west-1:111122223333:alias/a\" is not of",
    ] {
        assert!(outcome.stderr.contains(fault), "no {fault:?} in {}", outcome.stderr);
    }
}

#[tokio::test]
async fn settings_are_checked_before_a_port_opens() {
    let platform = Platform::start_with(Options::default()).await;
    // Whoever tries to open this port is told that it is taken.
    let taken = TcpListener::bind(free_address()).unwrap();
    let flags = platform.flags(taken.local_addr().unwrap());
    let outcome = run(command("serve").args(&flags)).await;
    assert_eq!(outcome.code, Some(69), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("cannot listen on"), "{}", outcome.stderr);
    for variable in ["LOG_SENSITIVE_BODIES", "LOG_SIGNABLE_BODY"] {
        let outcome = run(command("serve").args(&flags).env(variable, "")).await;
        assert_eq!(outcome.code, Some(64), "{}", outcome.stderr);
        assert!(outcome.stderr.contains(variable), "{}", outcome.stderr);
        assert!(!outcome.stderr.contains("cannot listen on"), "{}", outcome.stderr);
    }
}

#[tokio::test]
async fn wrong_usage_is_a_wrong_setting_too() {
    for arguments in [vec!["--no-such-flag"], vec!["--listen"], vec!["stray"]] {
        let outcome = run(command("serve").args(&arguments)).await;
        assert_eq!(outcome.code, Some(64), "{arguments:?}: {}", outcome.stderr);
    }
    assert_eq!(run(&mut command("no-such-command")).await.code, Some(64));
}

#[tokio::test]
async fn help_names_the_variable_of_every_flag() {
    let outcome = run(command("serve").arg("--help")).await;
    assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(0), ""));
    let help = outcome.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
    let flags: Vec<_> = outcome
        .stdout
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("--")?.split([' ', '[']).next())
        .collect();
    assert!(flags.len() >= 25, "{flags:?}");
    // Certificate, key, CAs, their revocation lists, policy, workspaces destroyed.
    assert_eq!(help.matches("(reloaded on change)").count(), 6, "{help}");
    for flag in flags {
        let variable = flag.replace('-', "_").to_uppercase();
        let told = help.contains(&format!("[env: WORKFLOW_SECRETS_{variable}="));
        assert!(told, "the variable of --{flag} is not told");
    }
}

#[tokio::test]
async fn environment_variables_work_like_flags() {
    let platform = Platform::start().await;
    let audit = platform.file("audit.jsonl");
    let more = [
        ("WORKFLOW_SECRETS_AUDIT", audit.to_str().unwrap()),
        ("WORKFLOW_SECRETS_REQUIRE_DURABLE", "true"),
        ("WORKFLOW_SECRETS_MAX_SECRETS_PER_WORKSPACE", "1"),
        ("WORKFLOW_SECRETS_LOG_FORMAT", "text"),
    ];
    let replica = platform.replica_by_environment(&more).await;
    let mut writer = platform.client(&replica, "platform").await;
    let mut executor = platform.client(&replica, "executor").await;
    writer.create_secret(create("ws", "KEY", "value")).await.unwrap();
    assert!(writer.create_secret(create("ws", "ANOTHER", "value")).await.is_err());
    let answer = executor.resolve_secrets(resolve("ws", &["KEY"])).await.unwrap();
    assert_eq!(value(&answer.into_inner(), "KEY"), "value");
    assert_eq!(fs::read_to_string(audit).unwrap().lines().count(), 3);
    assert!(replica.stderr().contains(" INFO "), "{}", replica.stderr());
}

#[tokio::test]
async fn a_flag_counts_more_than_its_variable() {
    let outcome = serve(
        &[["--log-format", "xml"], ["--redis-timeout", "1s"]],
        &[("WORKFLOW_SECRETS_LOG_FORMAT", "json"), ("WORKFLOW_SECRETS_REDIS_TIMEOUT", "soon")],
    )
    .await;
    assert_eq!(outcome.code, Some(64));
    assert!(outcome.stderr.contains("--log-format"), "{}", outcome.stderr);
    assert!(!outcome.stderr.contains("--redis-timeout"), "{}", outcome.stderr);
}

/// Starts a replica that must end by itself, and say why.
async fn check_refusal(platform: &Platform, flags: &[&str], why: &str) {
    let mut replica = platform.launch(flags);
    let status = replica.ended(Duration::from_secs(10)).await;
    assert_eq!(status.code(), Some(69), "{}", replica.stderr());
    let told = replica.stderr().contains(&format!("workflow-secrets: Redis: {why}"));
    assert!(told, "{}", replica.stderr());
}

#[tokio::test]
async fn a_redis_that_does_not_fit_is_refused() {
    let evicting = Options::default().memory("100mb", "allkeys-lru");
    let platform = Platform::start_with(evicting).await;
    check_refusal(&platform, &[], "maxmemory-policy of Redis must be noeviction").await;

    let user = Options::default().user("service", &[">right", "~*", "+@all"]);
    let mut platform = Platform::start_with(user).await;
    check_refusal(&platform, &["--require-durable"], "Redis has no append-only file").await;
    let password = platform.file("password");
    let login =
        ["--redis-username", "service", "--redis-password-file", password.to_str().unwrap()];
    fs::write(&password, "wrong").unwrap();
    fs::set_permissions(&password, fs::Permissions::from_mode(0o644)).unwrap();
    let mut replica = platform.launch(&login);
    let status = replica.ended(Duration::from_secs(10)).await;
    assert_eq!(status.code(), Some(64), "{}", replica.stderr());
    assert!(replica.stderr().contains("its mode is 644"), "{}", replica.stderr());
    fs::set_permissions(&password, fs::Permissions::from_mode(0o600)).unwrap();
    check_refusal(&platform, &login, "Redis denies access: user or password is wrong").await;
    fs::write(&password, "right\n").unwrap();
    platform.replica_with(&login).await;

    platform.redis.kill9();
    check_refusal(&platform, &[], "Redis cannot be reached: connection refused").await;
}
