//! Imports: what they print, and what they leave at the server.

use std::time::Duration;

use serde_json::json;

use super::{CANARIES, Stage, resolve, value};
use crate::{
    cli::cli,
    support::{platform::update, program::run_within},
};

/// Keeps what an import prints.
async fn import(stage: &mut Stage, caller: &str, content: &str, flags: &[&str], code: i32) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("secrets");
    std::fs::write(&file, content).unwrap();
    let arguments = [&["import", "--workspace", "imports"], flags].concat();
    let mut command = cli(&stage.platform, stage.replicas[0].address, caller, &arguments);
    command.arg(&file).env("RUST_LOG", "trace").env("RUST_BACKTRACE", "full");
    let outcome = run_within(&mut command, Duration::from_secs(60)).await;
    assert_eq!(outcome.code, Some(code), "{} {}", outcome.stdout, outcome.stderr);
    stage.told.0.extend(outcome.stdout.bytes());
    stage.told.0.extend(outcome.stderr.bytes());
}

pub(super) async fn provoke(stage: &mut Stage) {
    let [one, two, three] = CANARIES;
    let fine = json!({"ONE": one, "TWO": two, "THREE": {"value": three}}).to_string();
    let json = ["--format", "json"];
    let with = |flags: &[&'static str]| [&json[..], flags].concat();
    import(stage, "platform", &fine, &with(&["--dry-run"]), 0).await;
    import(stage, "executor", &fine, &with(&["--yes"]), 1).await;
    import(stage, "platform", &fine, &with(&["--yes"]), 0).await;
    import(stage, "platform", &fine, &with(&["--yes"]), 0).await;
    let update_existing = ["--yes", "--update-existing", "--import-id", "again"];
    import(stage, "platform", &fine, &with(&update_existing), 0).await;
    import(stage, "platform", &fine, &with(&update_existing), 0).await;
    let mut people = stage.client("platform").await;
    let mut change = update("imports", "ONE");
    change.value = Some(two.to_owned());
    stage.told.keep(people.update_secret(change).await).unwrap();
    import(stage, "platform", &fine, &with(&update_existing), 1).await;
    let other = json!({"TWO": three}).to_string();
    import(stage, "platform", &other, &with(&update_existing), 1).await;
    // More than the quota: some are refused when they are stored.
    let more = json!({"FOUR": one, "FIVE": two, "SIX": three}).to_string();
    import(stage, "platform", &more, &with(&["--yes"]), 1).await;

    for (wrong, format) in [
        (format!("{one}\n{two}\nA={two}\nB=\"{one}$\nC='{three}"), "env"),
        (json!({one: two, "A": [two], "B": {"value": 1, three: one}}).to_string(), "json"),
        (format!("{{\"A\": {three}"), "json"),
    ] {
        import(stage, "platform", &wrong, &["--format", format, "--yes"], 65).await;
    }
    let mut reader = stage.client("executor").await;
    let answer = reader.resolve_secrets(resolve("imports", &["ONE@2=a", "TWO", "THREE"])).await;
    let answer = answer.unwrap().into_inner();
    assert_eq!(["a", "TWO", "THREE"].map(|alias| value(&answer, alias)), CANARIES);
}
