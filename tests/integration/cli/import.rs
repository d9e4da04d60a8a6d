//! What an import does, and what it leaves alone.

use std::{fs::File, process::Stdio};

use tonic::Request;
use workflow_secrets::grpc::proto::{Owner, ShredWorkspaceRequest};

use super::{LONG, Rig, assert_told, told};
use crate::{
    dev_mode::Dev,
    support::{
        platform::{create, delete, get, resolve, update, value, with},
        program::{command, run_within},
    },
};

const ENV: &str = "# of the platform\nFIRST=one\nexport SECOND='two # $X\nlines'\n";

#[tokio::test]
async fn a_dry_run_stores_nothing_and_yes_stores_all() {
    let rig = Rig::start().await;
    let file = rig.file(".env", ENV);
    let plan = "workspace ws, secrets in the file: 2\ncreate  FIRST\ncreate  SECOND\ncreate 2\n";
    for flags in [&[][..], &["--dry-run"], &["--update-existing"]] {
        let outcome = rig.imported(&file, flags).await;
        let end = "nothing was stored; to do it, add --yes\n";
        assert_eq!(told(&outcome), (Some(0), &*format!("{plan}{end}")), "{}", outcome.stderr);
    }
    assert!(rig.stored().await.is_empty());
    // The server has checked values and rights.
    let audit = rig.replica.audit();
    let validated: Vec<_> = audit.iter().filter(|line| line["outcome"] == "validated").collect();
    assert_eq!(validated.len(), 6);

    let outcome = rig.imported(&file, &["--yes", "--actor", "Zoë"]).await;
    assert_eq!(told(&outcome), (Some(0), &*format!("{plan}created 2\n")), "{}", outcome.stderr);
    assert_eq!(outcome.stderr, "checking: 0 of 2\nstoring: 0 of 2\n");
    assert_eq!((rig.value("FIRST").await, rig.value("SECOND").await), {
        ("one".to_owned(), "two # $X\nlines".to_owned())
    });
    assert_eq!(rig.secret("FIRST").await.created_by, "Zoë");
}

#[tokio::test]
async fn json_brings_descriptions_and_expiry() {
    let rig = Rig::start().await;
    let file = rig.file(
        "secrets.json",
        r#"{"PLAIN": "one", "LONG": {"value": "two\n", "description": "of Zoë",
            "expire_time": "2100-01-31T00:00:00.5Z"}}"#,
    );
    let outcome = rig.imported(&file, &["--yes", "--actor", "zoe@example.com"]).await;
    assert_told(&outcome, 0, &["created 2\n"]);
    let long = rig.secret("LONG").await;
    assert_eq!(
        (long.description.as_str(), long.created_by.as_str()),
        ("of Zoë", "zoe@example.com")
    );
    let time = long.expire_time.unwrap();
    assert_eq!((time.seconds, time.nanos), (4_105_036_800, 500_000_000));
    assert_eq!(rig.value("LONG").await, "two\n");
    assert!(rig.secret("PLAIN").await.expire_time.is_none());

    // What the file does not say stays.
    let file = rig.file("secrets.json", r#"{"LONG": "three"}"#);
    assert_told(&rig.imported(&file, &["--yes", "--update-existing"]).await, 0, &["updated 1\n"]);
    let again = rig.secret("LONG").await;
    assert_eq!((again.description, again.expire_time), (long.description, Some(time)));
    assert_eq!(rig.value("LONG").await, "three");
}

#[tokio::test]
async fn run_again_it_changes_nothing() {
    let rig = Rig::start().await;
    let file = rig.file(".env", ENV);
    assert_told(&rig.imported(&file, &["--yes"]).await, 0, &["created 2\n"]);
    let before = rig.stored().await;
    let outcome = rig.imported(&file, &["--yes"]).await;
    assert_told(&outcome, 0, &["keep    FIRST  exists", "keep 2\nkept 2\n"]);
    assert_eq!(rig.stored().await, before);

    // Only what is new comes in.
    let file = rig.file(".env", &format!("{ENV}THIRD=three\n").replace("one", "other"));
    let outcome = rig.imported(&file, &["--yes"]).await;
    assert_told(&outcome, 0, &["create 1, keep 2\ncreated 1, kept 2\n"]);
    assert_eq!((rig.value("FIRST").await, rig.stored().await.len()), ("one".to_owned(), 3));
}

#[tokio::test]
async fn an_update_run_again_under_its_id_changes_nothing() {
    let rig = Rig::start().await;
    let mut client = rig.platform.client(&rig.replica, "platform").await;
    client.create_secret(create("ws", "FIRST", "old")).await.unwrap();
    let file = rig.file(".env", ENV);
    let flags = ["--yes", "--update-existing", "--import-id", "release-7"];
    let outcome = rig.imported(&file, &flags).await;
    assert_told(&outcome, 0, &["update  FIRST  has version 1\n", "created 1, updated 1\n"]);
    assert_eq!(rig.value("FIRST").await, "one");
    let before = rig.stored().await;
    let outcome = rig.imported(&file, &flags).await;
    assert_told(&outcome, 0, &["update 2\n", "unchanged 2\n"]);
    assert_eq!(rig.stored().await, before);

    // Another value under the same id is another import, which is told, and not
    // from anything that lies in the store.
    let other = rig.file("other.env", "FIRST=guess\n");
    let outcome = rig.imported(&other, &flags).await;
    assert_told(&outcome, 1, &["refused FIRST  REQUEST_ID_REUSED: "]);
    assert_eq!(rig.stored().await, before);

    // An id of its own, printed, is given to each import that has none.
    let outcome = rig.imported(&file, &["--yes", "--update-existing"]).await;
    assert_told(&outcome, 0, &["updated 2\n"]);
    let (_, id) = outcome.stdout.split_once("--import-id ").unwrap();
    let id = id.split_whitespace().next().unwrap();
    assert_eq!(rig.secret("FIRST").await.version, 3);
    let flags = ["--yes", "--update-existing", "--import-id", id];
    assert_told(&rig.imported(&file, &flags).await, 0, &["unchanged 2\n"]);

    // What others did since is neither undone nor taken for done.
    client
        .update_secret(with(update("ws", "FIRST"), |change| change.value = Some("newer".into())))
        .await
        .unwrap();
    client.delete_secret(delete("ws", "SECOND")).await.unwrap();
    let outcome = rig.imported(&file, &flags).await;
    let since = "was stored by this import, and changed or deleted since";
    assert_told(&outcome, 1, &[&format!("refused FIRST  {since}"), "refused 2\n"]);
    assert!(outcome.stdout.contains(&format!("refused SECOND  {since}")), "{}", outcome.stdout);
    assert_eq!(rig.value("FIRST").await, "newer");
    assert!(client.get_secret(get("ws", "SECOND")).await.is_err());
}

#[tokio::test]
async fn one_that_is_refused_stops_all_of_it() {
    let rig = Rig::start().await;
    let mut sheets = rig.platform.client(&rig.replica, "sheets").await;
    let owner = Owner { integration: "google_sheets".into(), connection_id: "c1".into() };
    let owned = with(create("ws", "SHEETS", "token"), |request| request.owner = Some(owner));
    sheets.create_secret(owned).await.unwrap();
    let file = rig.file(
        "secrets.json",
        r#"{"NEW": "one", "SHEETS": "two",
            "PAST": {"value": "three", "expire_time": "2020-01-01T00:00:00Z"}}"#,
    );
    let outcome = rig.imported(&file, &["--yes", "--update-existing"]).await;
    assert_told(
        &outcome,
        1,
        &[
            "create  NEW\n",
            "refuse  SHEETS  SYSTEM_MANAGED: ",
            "refuse  PAST  INVALID_FIELD: ",
            "create 1, refuse 2\n",
            "2 refused; nothing was stored",
        ],
    );
    // Left alone, it is not in the way.
    let file = rig.file("fine.json", r#"{"NEW": "one", "SHEETS": "two"}"#);
    assert_told(&rig.imported(&file, &["--yes"]).await, 0, &["created 1, kept 1\n"]);
    let mut executor = rig.platform.client(&rig.replica, "executor").await;
    let answer = executor.resolve_secrets(resolve("ws", &["SHEETS", "NEW"])).await.unwrap();
    let answer = answer.into_inner();
    assert_eq!((value(&answer, "SHEETS"), value(&answer, "NEW")), ("token".into(), "one".into()));
}

#[tokio::test]
async fn without_the_right_nothing_comes_in() {
    let rig = Rig::start().await;
    let file = rig.file(".env", ENV);
    for caller in ["executor", "operator", "stranger"] {
        let mut command = rig.import_as(caller, &file, &["--yes"]);
        let outcome = run_within(&mut command, LONG).await;
        assert_told(&outcome, 1, &["refuse  FIRST  NOT_GRANTED: ", "refuse 2\n"]);
    }
    let mut nobody = command("import");
    nobody.args(["--workspace", "ws", "--yes", "--ca"]).arg(rig.platform.file("ca.crt"));
    nobody.args(["--address", &format!("https://{}", rig.replica.address)]).arg(&file);
    let outcome = run_within(&mut nobody, LONG).await;
    assert_told(&outcome, 1, &["refuse  FIRST  UNAUTHENTICATED: "]);
    assert!(rig.stored().await.is_empty());

    let mut operator = rig.platform.key_client(&rig.replica, "operator").await;
    let request = ShredWorkspaceRequest { workspace: "ws".into(), confirm: "ws".into() };
    operator.shred_workspace(Request::new(request)).await.unwrap();
    let outcome = rig.imported(&file, &["--yes"]).await;
    assert_told(&outcome, 1, &["WORKSPACE_SHREDDED: ", "nothing was stored"]);
}

#[tokio::test]
async fn a_full_workspace_takes_what_fits() {
    let rig = Rig::start().await;
    let replica = rig.platform.replica_with(&["--max-secrets-per-workspace", "3"]).await;
    let lines: String = (0..5).map(|i| format!("K{i}=value\n")).collect();
    let file = rig.file(".env", &lines);
    let mut command = super::cli(
        &rig.platform,
        replica.address,
        "platform",
        &["import", "--workspace", "ws", "--yes"],
    );
    let outcome = run_within(command.arg(&file), LONG).await;
    assert_told(&outcome, 1, &["QUOTA_EXCEEDED: ", "created 3, refused 2\n", "2 refused"]);
    assert_eq!(rig.stored().await.len(), 3);
}

#[tokio::test]
async fn dev_takes_standard_input() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(&dir.path().join("data")).await;
    let file = dir.path().join("input");
    std::fs::write(&file, r#"{"KEY": "value"}"#).unwrap();
    let import = async |flags: &[&str]| {
        let mut command = command("import");
        command.args(["-", "--workspace", "demo", "--address", &format!("http://{}", dev.address)]);
        command.args(flags).stdin(Stdio::from(File::open(&file).unwrap()));
        run_within(&mut command, LONG).await
    };
    assert_told(&import(&["--yes"]).await, 64, &["--format: is required"]);
    assert_told(&import(&["--yes", "--format", "json"]).await, 0, &["created 1\n"]);
    let answer = dev.client().await.resolve_secrets(resolve("demo", &["KEY"])).await.unwrap();
    assert_eq!(value(&answer.into_inner(), "KEY"), "value");
}
