//! `import` and `keys`, as their users run them: processes, against replicas on
//! Redis and against `dev`.

mod files;
mod import;
mod interrupted;
mod keys;
mod terminal;

use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use tempfile::TempDir;
use workflow_secrets::grpc::proto::Secret;

use super::support::{
    platform::{Platform, Replica, get, list, resolve, value},
    program::{Outcome, command, run_within},
};

/// For a busy machine.
const LONG: Duration = Duration::from_secs(60);

/// A command of the program, as one of the callers, for the server at an address.
pub(crate) fn cli(
    platform: &Platform,
    address: SocketAddr,
    caller: &str,
    arguments: &[&str],
) -> Command {
    let mut command = command(arguments[0]);
    command.args(&arguments[1..]).args(["--address", &format!("https://{address}")]);
    let files = [("--ca", "ca.crt".to_owned()), ("--cert", format!("{caller}.crt"))];
    for (flag, file) in files.into_iter().chain([("--key", format!("{caller}.key"))]) {
        command.arg(flag).arg(platform.file(&file));
    }
    command.stdin(Stdio::null());
    command
}

/// One replica, and files to import.
struct Rig {
    platform: Platform,
    replica: Replica,
    dir: TempDir,
}

impl Rig {
    async fn start() -> Self {
        let platform = Platform::start().await;
        let replica = platform.replica().await;
        Self { platform, replica, dir: tempfile::tempdir().unwrap() }
    }

    fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::write(&path, content).unwrap();
        path
    }

    /// `import` into the workspace `ws`, as the platform.
    fn import(&self, file: &PathBuf, flags: &[&str]) -> Command {
        self.import_as("platform", file, flags)
    }

    fn import_as(&self, caller: &str, file: &PathBuf, flags: &[&str]) -> Command {
        let arguments = ["import", "--workspace", "ws"];
        let mut command =
            cli(&self.platform, self.replica.address, caller, &[&arguments, flags].concat());
        command.arg(file);
        command
    }

    async fn imported(&self, file: &PathBuf, flags: &[&str]) -> Outcome {
        run_within(&mut self.import(file, flags), LONG).await
    }

    async fn keys(&self, arguments: &[&str]) -> Outcome {
        self.keys_as("operator", arguments).await
    }

    async fn keys_as(&self, caller: &str, arguments: &[&str]) -> Outcome {
        let arguments = [&["keys"], arguments].concat();
        run_within(&mut cli(&self.platform, self.replica.address, caller, &arguments), LONG).await
    }

    /// What is stored in `ws`.
    async fn stored(&self) -> Vec<Secret> {
        let mut client = self.platform.client(&self.replica, "platform").await;
        let request =
            workflow_secrets::grpc::proto::ListSecretsRequest { page_size: 1_000, ..list("ws") };
        client.list_secrets(request).await.unwrap().into_inner().secrets
    }

    async fn secret(&self, name: &str) -> Secret {
        let mut client = self.platform.client(&self.replica, "platform").await;
        client.get_secret(get("ws", name)).await.unwrap().into_inner()
    }

    async fn value(&self, name: &str) -> String {
        let mut client = self.platform.client(&self.replica, "executor").await;
        let answer = client.resolve_secrets(resolve("ws", &[name])).await.unwrap();
        value(&answer.into_inner(), name)
    }
}

/// Exit code and standard output.
fn told(outcome: &Outcome) -> (Option<i32>, &str) {
    (outcome.code, &outcome.stdout)
}

/// Asserts the exit code, and that each text stands somewhere in the output.
#[track_caller]
pub(crate) fn assert_told(outcome: &Outcome, code: i32, texts: &[&str]) {
    let all = format!("{}{}", outcome.stdout, outcome.stderr);
    assert_eq!(outcome.code, Some(code), "{all}");
    for text in texts {
        assert!(all.contains(text), "no {text:?} in {all}");
    }
}
