//! Programs of others that tests run. `tests/run.sh` installs them.

use std::{env, process::Stdio, time::Duration};

use tokio::{io::AsyncWriteExt as _, process::Command, time::timeout};

/// How a program ended.
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs the grpcurl named by `WFS_GRPCURL`, or the one on the path.
pub(crate) async fn grpcurl(arguments: &[&str], stdin: &str) -> Ended {
    run("WFS_GRPCURL", "grpcurl", arguments, stdin).await
}

/// Runs the Python named by `WFS_TOOLS_PYTHON`, or the one on the path.
pub(crate) async fn python(arguments: &[&str]) -> Ended {
    run("WFS_TOOLS_PYTHON", "python3", arguments, "").await
}

/// Does not block the thread: the KMS endpoint may live on it.
async fn run(variable: &str, default: &str, arguments: &[&str], stdin: &str) -> Ended {
    let program = env::var(variable).unwrap_or_else(|_| default.to_owned());
    let mut child = Command::new(&program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap_or_else(|error| {
            panic!("cannot run {program}: {error}; run tests/run.sh, or set {variable}")
        });
    // A program that ends without reading closes the pipe.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes()).await;
    let ended = timeout(Duration::from_secs(120), child.wait_with_output());
    let ended = ended.await.expect("the program ends").unwrap();
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    Ended { code: ended.status.code(), stdout: text(ended.stdout), stderr: text(ended.stderr) }
}
