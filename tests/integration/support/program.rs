//! The program itself, as processes.

use std::{
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

/// One of its subcommands, without arguments yet.
pub(crate) fn command(subcommand: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_workflow-secrets"));
    command.arg(subcommand);
    command
}

/// What a run left behind.
pub(crate) struct Outcome {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs it to its end, which must come within 10 s.
pub(crate) async fn run(command: &mut Command) -> Outcome {
    run_within(command, Duration::from_secs(10)).await
}

/// The same within another time.
pub(crate) async fn run_within(command: &mut Command, time: Duration) -> Outcome {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    outcome(child, time).await
}

/// Waits for the end of one whose output is piped.
pub(crate) async fn outcome(mut child: Child, within: Duration) -> Outcome {
    if ended(&mut child, within).await.is_none() {
        child.kill().unwrap();
        let output = child.wait_with_output().unwrap();
        panic!("still running: {}", String::from_utf8_lossy(&output.stderr));
    }
    let output = child.wait_with_output().unwrap();
    Outcome {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Waits for the end of a process; `None` if it does not come in time.
pub(crate) async fn ended(child: &mut Child, within: Duration) -> Option<ExitStatus> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        if start.elapsed() > within {
            return None;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// SIGTERM.
pub(crate) fn terminate(child: &Child) {
    signal(child, "-TERM");
}

/// Any signal, as `kill` spells it.
pub(crate) fn signal(child: &Child, signal: &str) {
    let status = Command::new("kill").args([signal, &child.id().to_string()]).status();
    assert!(status.unwrap().success());
}
