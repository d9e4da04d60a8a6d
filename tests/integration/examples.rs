//! The programs in `examples/` do what they promise, against a real replica.

use std::{
    env,
    fs::{self, File},
    net::SocketAddr,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use tempfile::TempDir;

use super::support::{
    platform::{Client, Platform, Replica, create, delete},
    program::{self, Outcome},
    redis_server::Options,
};

const WS: &str = "ws";
const KEY: &str = "sk_live_51H8wJqKZvFm0pXb";
const LABEL: &str = "{{secrets.STRIPE_KEY}}";

#[derive(Clone, Copy, PartialEq)]
enum Language {
    Python,
    Node,
}

use Language::{Node, Python};

const BOTH: [Language; 2] = [Python, Node];

/// A platform with one replica and one secret, and a place for files.
struct Stage {
    platform: Platform,
    replica: Replica,
    people: Client,
    dir: TempDir,
}

impl Stage {
    async fn new(flags: &[&str]) -> Self {
        let platform = Platform::start_with(Options::default()).await;
        let replica = platform.replica_with(flags).await;
        let mut people = platform.client(&replica, "platform").await;
        people.create_secret(create(WS, "STRIPE_KEY", KEY)).await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        install_node(dir.path());
        Self { platform, replica, people, dir }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs a part of the custom code.
    fn run(&self, language: Language, part: &[&str]) -> Run {
        self.run_with(language, "executor", &["--credential", "STRIPE_KEY=stripe"], part)
    }

    fn run_with(&self, language: Language, caller: &str, flags: &[&str], part: &[&str]) -> Run {
        let code = [&python(), concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python/custom_code.py")];
        self.run_command(language, caller, self.replica.address, flags, &[&code, part].concat())
    }

    fn run_command(
        &self,
        language: Language,
        caller: &str,
        address: SocketAddr,
        flags: &[&str],
        code: &[&str],
    ) -> Run {
        let mut command = match language {
            Python => Command::new(python()),
            Node => Command::new("node"),
        };
        match language {
            Python => command
                .args(["-W", "error"])
                .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/python/run_node.py")),
            Node => command.arg(self.file("examples/node/run-node.mjs")),
        };
        for (flag, file) in [("ca", "ca.crt"), ("cert", "crt"), ("key", "key")] {
            let file = if flag == "ca" { file.to_owned() } else { format!("{caller}.{file}") };
            command.arg(format!("--{flag}")).arg(self.platform.file(&file));
        }
        command
            .args(["--address", &format!("localhost:{}", address.port()), "--workspace", WS])
            .args(flags);
        Run::start(command.arg("--").args(code))
    }

    /// One more replica where the last one was.
    async fn restart(&mut self) {
        self.replica = self.platform.replica_at(self.replica.address).await;
        self.people = self.platform.client(&self.replica, "platform").await;
    }
}

fn python() -> String {
    env::var("WFS_TOOLS_PYTHON").unwrap_or_else(|_| "python3".to_owned())
}

/// A copy of the example with its modules, which `tests/run.sh` has installed
/// elsewhere.
fn install_node(dir: &Path) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (from, to) = (root.join("examples/node"), dir.join("examples/node"));
    fs::create_dir_all(&to).unwrap();
    for file in fs::read_dir(&from).unwrap() {
        let file = file.unwrap();
        if file.file_type().unwrap().is_file() {
            fs::copy(file.path(), to.join(file.file_name())).unwrap();
        }
    }
    let modules = env::var_os("WFS_NODE_MODULES");
    let modules = modules.map_or_else(|| from.join("node_modules"), PathBuf::from);
    assert!(modules.exists(), "no {modules:?}: run tests/run.sh, or set WFS_NODE_MODULES");
    symlink(modules, to.join("node_modules")).unwrap();
    symlink(root.join("proto"), dir.join("proto")).unwrap();
}

/// An example under way, with a directory of its own for temporary files.
struct Run {
    child: Child,
    dir: TempDir,
}

impl Run {
    fn start(command: &mut Command) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("tmp")).unwrap();
        let create = |name: &str| Stdio::from(File::create(dir.path().join(name)).unwrap());
        let child = command
            .env("TMPDIR", dir.path().join("tmp"))
            .env("CANARY", KEY)
            .stdin(Stdio::null())
            .stdout(create("stdout"))
            .stderr(create("stderr"))
            .spawn()
            .unwrap();
        Self { child, dir }
    }

    fn stdout(&self) -> String {
        fs::read_to_string(self.dir.path().join("stdout")).unwrap()
    }

    fn stderr(&self) -> String {
        fs::read_to_string(self.dir.path().join("stderr")).unwrap()
    }

    /// Its end, whatever it is, leaves nothing behind and has shown no value and
    /// no fault of the example's own.
    async fn ended(mut self) -> Outcome {
        let status = program::ended(&mut self.child, Duration::from_secs(90)).await;
        let (stdout, stderr) = (self.stdout(), self.stderr());
        let code = status.unwrap_or_else(|| panic!("still running: {stdout}{stderr}")).code();
        let left: Vec<_> = fs::read_dir(self.dir.path().join("tmp")).unwrap().collect();
        assert!(left.is_empty(), "{left:?}: {stderr}");
        assert!(!stdout.contains(KEY) && !stderr.contains(KEY), "{stdout}{stderr}");
        for trouble in ["Traceback", "Exception ignored", "Warning", "node:internal"] {
            assert!(!stderr.contains(trouble), "{stderr}");
        }
        Outcome { code, stdout, stderr }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // Fails if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits longer than other tests do: interpreters start, and the service may.
async fn until(condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), wait).await.expect("did not come about");
}

/// Waits until the processes whose ids follow the label are gone.
async fn until_killed(stdout: &str) {
    let ids = stdout.split_whitespace().skip(1);
    let gone = |id: &str| match fs::read_to_string(format!("/proc/{id}/stat")) {
        Err(_) => true,
        // Whoever should bury it need not be there.
        Ok(stat) => stat.contains(") Z "),
    };
    assert_eq!(ids.clone().count(), 2, "{stdout}");
    until(|| ids.clone().all(gone)).await;
}

#[tokio::test]
async fn the_code_gets_its_context_and_its_output_comes_without_values() {
    let stage = Stage::new(&[]).await;
    let config = stage.file("config.json");
    fs::write(&config, r#"{"n": 1.50e3, "auth": "Bearer {{secrets.STRIPE_KEY}}"}"#).unwrap();
    for language in BOTH {
        let flags = ["--credential", "STRIPE_KEY=stripe", "--run-id", "run-7", "--config"];
        let flags = [&flags[..], &[config.to_str().unwrap()]].concat();
        let ended = stage.run_with(language, "executor", &flags, &["shows"]).ended().await;
        let expected = format!(
            "modes ['0o700', '0o600'] of ['context.json']\n\
             environment ['HOME', 'LANG', 'PATH']\n\
             secrets {{'stripe': '{LABEL}'}}\n\
             \"config\": {{\"n\": 1.50e3, \"auth\": \"Bearer {LABEL}\"}}}}\n\
             raw {LABEL}\nbase64 {LABEL}\nsplit {LABEL}\n"
        );
        assert_eq!((ended.code, ended.stdout), (Some(0), expected), "{}", ended.stderr);
        assert!(ended.stderr.contains(&format!("oops {LABEL}\n")), "{}", ended.stderr);
        for told in
            ["stdout: STRIPE_KEY masked as BASE64: 1", "stderr: STRIPE_KEY masked as RAW: 1"]
        {
            assert!(ended.stderr.contains(told), "{told}: {}", ended.stderr);
        }
    }
    let lines = stage.replica.audit();
    let count = |action: &str, outcome: &str| {
        let same = |line: &&serde_json::Value| {
            line["action"] == action && line["outcome"] == outcome && line["run_id"] == "run-7"
        };
        lines.iter().filter(same).count()
    };
    // For each language: a render with an alias and without, and two streams.
    assert_eq!((count("render", "ok"), count("redact", "ok"), count("redact", "found")), (4, 4, 4));
}

#[tokio::test]
async fn more_output_than_is_kept_comes_through_whole() {
    let stage = Stage::new(&[]).await;
    for run in BOTH.map(|language| stage.run(language, &["much"])) {
        let ended = run.ended().await;
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        let line = format!("{} {LABEL}\n", "x".repeat(1000));
        assert!(ended.stdout == line.repeat(2500), "{} bytes", ended.stdout.len());
        assert!(ended.stderr.contains("masked as RAW: 2500\n"), "{}", ended.stderr);
    }
}

#[tokio::test]
async fn code_that_writes_faster_than_the_service_answers_has_to_wait() {
    let stage = Stage::new(&[]).await;
    for (number, language) in BOTH.into_iter().enumerate() {
        let (go, done) =
            (stage.file(&format!("go-{number}")), stage.file(&format!("done-{number}")));
        let run = stage.run(language, &["floods", go.to_str().unwrap(), done.to_str().unwrap()]);
        until(|| run.stdout() == "ready\n").await;
        stage.replica.stop_signal();
        fs::write(&go, "").unwrap();
        // Time enough to write it all into memory that has no bound.
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(!done.exists(), "2.5 MB were taken");
        stage.replica.cont_signal();
        let ended = run.ended().await;
        assert_eq!((ended.code, done.exists()), (Some(0), true), "{}", ended.stderr);
        assert_eq!(ended.stdout.matches(LABEL).count(), 2500);
    }
}

#[tokio::test]
async fn without_secrets_or_redaction_the_code_does_not_run() {
    let mut stage = Stage::new(&["--max-redactions-per-minute", "2"]).await;
    let config = stage.file("config.json");
    fs::write(&config, r#"{"headers": {"x": "{{secrets.no-name}}"}}"#).unwrap();
    let mark = stage.file("ran");
    let marks = ["marks", mark.to_str().unwrap()];
    let missing = ["--credential", "STRIPE_KEY=stripe", "--credential", "GONE"];
    for (caller, flags, told) in [
        ("executor", &missing[..], "FAILED_PRECONDITION SECRETS_UNRESOLVED: "),
        ("executor", &missing[..], "  MISSING GONE credentials[1]\n"),
        ("executor", &["--config", config.to_str().unwrap()], "/headers/x"),
        ("platform", &[], "PERMISSION_DENIED NOT_GRANTED: "),
    ] {
        for refused in BOTH.map(|language| stage.run_with(language, caller, flags, &marks)) {
            let refused = refused.ended().await;
            assert_eq!(refused.code, Some(3), "{}", refused.stderr);
            assert!(refused.stderr.contains(told), "{told}: {}", refused.stderr);
        }
    }
    let address = stage.replica.address;
    for wrong in BOTH.map(|language| stage.run_command(language, "executor", address, &[], &[])) {
        assert_eq!(wrong.ended().await.code, Some(2));
    }

    // Two streams a minute: asked for a third, the service names the time of
    // the next one, which is later than any delay of the examples' own.
    assert_eq!(stage.run(Python, &["fails"]).ended().await.code, Some(1));
    for waiting in BOTH.map(|language| stage.run(language, &marks)) {
        until(|| waiting.stderr().contains(" s\n")).await;
        let told = waiting.stderr();
        assert!(told.contains("RESOURCE_EXHAUSTED RATE_LIMITED: "), "{told}");
        let seconds = told.split("trying again in ").nth(1).unwrap().trim_end();
        let seconds: f64 = seconds.trim_end_matches(" s").parse().unwrap();
        assert!(seconds > 15.0, "{told}");
        program::terminate(&waiting.child);
        assert_eq!(waiting.ended().await.code, Some(143));
    }

    stage.replica.kill9();
    for waiting in BOTH.map(|language| stage.run(language, &marks)) {
        let ended = waiting.ended().await;
        assert_eq!(ended.code, Some(4), "{}", ended.stderr);
        assert_eq!(ended.stderr.matches("trying again in").count(), 5, "{}", ended.stderr);
    }
    assert!(!mark.exists());
}

#[tokio::test]
async fn however_the_code_ends_nothing_of_it_is_left() {
    let stage = Stage::new(&[]).await;
    for failed in BOTH.map(|language| stage.run(language, &["fails"])) {
        let failed = failed.ended().await;
        assert_eq!(failed.code, Some(1), "{}", failed.stderr);
        assert!(failed.stderr.contains(&format!("oops {LABEL}\n")), "{}", failed.stderr);
        assert!(failed.stderr.contains("ended with status 3"), "{}", failed.stderr);
    }

    let (address, nothing) = (stage.replica.address, &["/no/such/program"]);
    let start = |language| stage.run_command(language, "executor", address, &[], nothing);
    for failed in BOTH.map(start) {
        let failed = failed.ended().await;
        assert_eq!(failed.code, Some(1), "{}", failed.stderr);
        assert!(failed.stderr.contains("cannot be started"), "{}", failed.stderr);
    }

    for left in BOTH.map(|language| stage.run(language, &["leaves"])) {
        let left = left.ended().await;
        assert_eq!(left.code, Some(0), "{}", left.stderr);
        until_killed(&left.stdout).await;
    }

    let flags = ["--credential", "STRIPE_KEY=stripe", "--timeout", "10"];
    let start = |language| stage.run_with(language, "executor", &flags, &["hangs"]);
    for late in BOTH.map(start) {
        let late = late.ended().await;
        assert_eq!(late.code, Some(5), "{}", late.stderr);
        assert!(late.stderr.contains("killed after 10 s"), "{}", late.stderr);
        until_killed(&late.stdout).await;
    }

    for running in BOTH.map(|language| stage.run(language, &["hangs"])) {
        until(|| running.stdout().contains('\n')).await;
        assert_eq!(fs::read_dir(running.dir.path().join("tmp")).unwrap().count(), 1);
        program::terminate(&running.child);
        let ended = running.ended().await;
        assert_eq!(ended.code, Some(143), "{}", ended.stderr);
        until_killed(&ended.stdout).await;
    }
}

#[tokio::test]
async fn a_stream_that_is_cut_goes_on_where_it_was() {
    let mut stage = Stage::new(&[]).await;
    for (number, language) in BOTH.into_iter().enumerate() {
        for (way, politely) in [("killed", false), ("ended", true)] {
            let go = stage.file(&format!("go-{number}-{way}"));
            let run = stage.run(language, &["waits", go.to_str().unwrap()]);
            let first = format!("first {LABEL}\nthen ");
            until(|| run.stdout() == first && run.stderr().contains('\n')).await;
            if politely {
                stage.replica.terminate();
                assert!(stage.replica.ended(Duration::from_secs(20)).await.success());
            } else {
                stage.replica.kill9();
            }
            stage.restart().await;
            fs::write(&go, "").unwrap();
            let ended = run.ended().await;
            assert_eq!(ended.code, Some(0), "{way}: {}", ended.stderr);
            assert_eq!(ended.stdout, format!("{first}{LABEL} last {LABEL}\n"));
            assert_eq!(ended.stderr.matches(&format!("first {LABEL}\n")).count(), 1);
            assert!(ended.stderr.contains("stdout: the stream was cut"), "{}", ended.stderr);
            assert_eq!(ended.stderr.contains("SHUTTING_DOWN"), politely, "{}", ended.stderr);
        }
    }
}

#[tokio::test]
async fn what_cannot_be_redacted_is_not_shown() {
    let mut stage = Stage::new(&[]).await;
    for (number, language) in BOTH.into_iter().enumerate() {
        let go = stage.file(&format!("go-{number}"));
        let run = stage.run(language, &["waits", go.to_str().unwrap()]);
        let first = format!("first {LABEL}\nthen ");
        until(|| run.stdout() == first).await;
        // When the stream is opened again, there is nothing to look for.
        stage.people.delete_secret(delete(WS, "STRIPE_KEY")).await.unwrap();
        stage.replica.kill9();
        stage.restart().await;
        let refused = |line: &serde_json::Value| line["outcome"] == "SECRETS_UNRESOLVED";
        until(|| stage.replica.audit().iter().any(refused)).await;
        fs::write(&go, "").unwrap();
        let ended = run.ended().await;
        assert_eq!((ended.code, ended.stdout), (Some(6), first), "{}", ended.stderr);
        // The rest of the value, ` last `, the value, and the end of the line.
        let withheld = KEY.len() + 6 + KEY.len() + 1;
        let told = format!("stdout: {withheld} bytes withheld: FAILED_PRECONDITION SECRETS_UNR");
        assert!(ended.stderr.contains(&told), "{told}: {}", ended.stderr);
        stage.people.create_secret(create(WS, "STRIPE_KEY", KEY)).await.unwrap();
    }
}
