//! Imports that are cut off, and servers that come and go.

use std::{process::Stdio, time::Duration};

use super::{LONG, Rig, assert_told, cli};
use crate::support::{
    lossy_proxy::LossyProxy,
    program::{ended, outcome},
    redis_server::until,
};

/// More than goes at once.
const SECRETS: usize = 300;

fn content() -> String {
    (0..SECRETS).map(|i| format!("K{i:03}=value of {i}\n")).collect()
}

/// How many changes have been carried out.
fn changes(rig: &Rig) -> usize {
    let lines = rig.replica.stdout();
    let changes = lines.lines().filter(|line| {
        let change = line.contains("\"create\"") || line.contains("\"update\"");
        change && line.contains("\"outcome\":\"ok\"")
    });
    changes.count()
}

/// Kills an import when part of its work is done.
async fn cut(rig: &Rig, flags: &[&str]) {
    let file = rig.file(".env", &content());
    let before = changes(rig);
    let mut command = rig.import(&file, flags);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    until(|| changes(rig) > before + 20).await;
    child.kill().unwrap();
    assert!(ended(&mut child, LONG).await.unwrap().code().is_none(), "it had ended before");
    // Calls under way are carried out.
    let mut last = changes(rig);
    loop {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let now = changes(rig);
        if now == last {
            break;
        }
        last = now;
    }
    assert!(last < before + SECRETS, "nothing is left to do");
}

#[tokio::test]
async fn cut_off_by_kill_9_it_goes_on() {
    let rig = Rig::start().await;
    cut(&rig, &["--yes"]).await;
    let done = changes(&rig);
    let file = rig.file(".env", &content());
    let outcome = rig.imported(&file, &["--yes"]).await;
    let told = format!("created {}, kept {done}\n", SECRETS - done);
    assert_told(&outcome, 0, &[&told]);
    let stored = rig.stored().await;
    assert!(stored.len() == SECRETS && stored.iter().all(|secret| secret.version == 1));

    // The same where each exists and gets a new value: one, not two.
    let flags = ["--yes", "--update-existing", "--import-id", "second"];
    cut(&rig, &flags).await;
    let updated = changes(&rig) - SECRETS;
    let outcome = rig.imported(&file, &flags).await;
    let told = format!("updated {}, unchanged {updated}\n", SECRETS - updated);
    assert_told(&outcome, 0, &[&told]);
    let stored = rig.stored().await;
    assert!(stored.len() == SECRETS && stored.iter().all(|secret| secret.version == 2));
    assert_eq!(rig.value("K299").await, "value of 299");
}

/// Answers are lost with their connections while the calls are carried out: the
/// same request_id makes them harmless.
#[tokio::test]
async fn lost_answers_store_nothing_twice() {
    let rig = Rig::start().await;
    let proxy = LossyProxy::start(rig.replica.address.port()).await;
    let file = rig.file(".env", &content());
    for (flags, told, version) in [
        (&["--yes"][..], format!("created {SECRETS}\n"), 1),
        (&["--yes", "--update-existing"], format!("updated {SECRETS}\n"), 2),
    ] {
        let before = changes(&rig);
        let arguments = [&["import", "--workspace", "ws"], flags].concat();
        let mut command = cli(&rig.platform, proxy.address(), "platform", &arguments);
        command.arg(&file).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        for more in [5, 60, 120] {
            until(|| changes(&rig) > before + more).await;
            proxy.lose_answers();
        }
        assert_told(&outcome(child, LONG).await, 0, &[&told]);
        let stored = rig.stored().await;
        assert_eq!(stored.len(), SECRETS);
        assert!(stored.iter().all(|secret| secret.version == version), "{stored:?}");
    }
}

/// STORE_UNAVAILABLE is waited out.
#[tokio::test]
async fn an_outage_of_the_store_is_waited_out() {
    let mut rig = Rig::start().await;
    let file = rig.file(".env", &content());
    let mut command = rig.import(&file, &["--yes"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    until(|| changes(&rig) > 20).await;
    rig.platform.redis.kill9();
    until(|| rig.replica.stdout().contains("STORE_UNAVAILABLE")).await;
    rig.platform.redis.restart().await;
    assert_told(&outcome(child, LONG).await, 0, &[&format!("created {SECRETS}\n")]);
    assert_eq!(rig.stored().await.len(), SECRETS);
}

/// A server that stays away ends it, and it says what is left.
#[tokio::test]
async fn a_server_that_is_lost_for_good_ends_it() {
    let mut rig = Rig::start().await;
    let file = rig.file(".env", &content());
    let mut command = rig.import(&file, &["--yes", "--update-existing", "--import-id", "once"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    until(|| changes(&rig) > 20).await;
    rig.replica.kill9();
    let outcome = outcome(child, 3 * LONG).await;
    assert_told(&outcome, 69, &["not stored", "run it again with --import-id once to go on"]);

    rig.replica = rig.platform.replica().await;
    let flags = ["--yes", "--update-existing", "--import-id", "once"];
    assert_told(&rig.imported(&file, &flags).await, 0, &["created "]);
    let stored = rig.stored().await;
    assert!(stored.len() == SECRETS && stored.iter().all(|secret| secret.version == 1));
}
