//! Files and arguments that are wrong.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
};

use super::{LONG, Rig, assert_told, cli, told};
use crate::support::{
    needles::Needles,
    platform::free_address,
    program::{command, run},
};

const CANARY: &str = "canary/9Xk2Vt7LmQ4zR8kP+wT1=";

/// No call is made, and nothing of the file is told but where it is wrong.
#[tokio::test]
async fn all_that_is_wrong_in_a_file_is_told_and_nothing_of_what_it_says() {
    let rig = Rig::start().await;
    let env = format!(
        "GOOD={CANARY}\n{CANARY}\n{CANARY}=x\nDOLLAR=\"{CANARY}$HOME\"\nQUOTED='{CANARY}'{CANARY}\n\
         GOOD='{CANARY}'\nOPEN='{CANARY}\n"
    );
    let json = format!(
        "{{\"GOOD\": \"{CANARY}\",\n\"{CANARY}\": \"x\",\n\"LIST\": [\"{CANARY}\"],\n\"MORE\": \
         {{\"value\": \"x\", \"{CANARY}\": \"y\"}},\n\"TIME\": {{\"value\": \"{CANARY}\", \
         \"expire_time\": \"{CANARY}\"}}}}"
    );
    let syntax = format!("{{\"GOOD\": \"{CANARY}\",\n\"A\": {CANARY}}}");
    for (name, content, lines) in [
        (".env", env, &[2, 2, 3, 4, 5, 6, 7][..]),
        ("secrets.json", json, &[2, 3, 4, 5]),
        ("syntax.json", syntax, &[2]),
    ] {
        let outcome = rig.imported(&rig.file(name, &content), &["--yes"]).await;
        assert_eq!(told(&outcome), (Some(65), ""), "{}", outcome.stderr);
        for (told, line) in outcome.stderr.lines().zip(lines) {
            assert!(told.starts_with(&format!("workflow-secrets: line {line}: ")), "{told}");
        }
        assert_eq!(outcome.stderr.lines().count(), lines.len(), "{}", outcome.stderr);
        let needles = Needles::new([("value", CANARY.as_bytes())]);
        needles.assert_absent(&[(name.to_owned(), outcome.stderr.into_bytes())]);
    }
    assert!(rig.replica.audit().is_empty(), "{}", rig.replica.stdout());

    let empty = rig.imported(&rig.file("empty.env", "# nothing\n"), &["--yes"]).await;
    assert_told(&empty, 65, &["holds no secret"]);
    let absent = rig.imported(&rig.dir.path().join("absent.env"), &["--yes"]).await;
    assert_told(&absent, 65, &["absent.env: No such file"]);
    let directory = rig.dir.path().join("directory.env");
    fs::create_dir(&directory).unwrap();
    assert_told(&rig.imported(&directory, &["--yes"]).await, 65, &["directory.env: "]);
}

#[tokio::test]
async fn all_wrong_arguments_are_told_at_once() {
    let rig = Rig::start().await;
    let file = rig.file("secrets", "");
    let open = rig.file("open.key", "");
    fs::set_permissions(&open, Permissions::from_mode(0o644)).unwrap();
    let open = open.to_str().unwrap();
    let wrong = ["--workspace", "w s", "--import-id", "a b", "--update-existing"];
    let files = ["--ca", "/absent/ca.crt", "--cert", "/absent/tls.crt", "--key", open];
    let names = ["--actor", "spiffe://x", "--server-name", "a b"];
    let outcome =
        run(command("import").args([&wrong[..], &files, &names].concat()).arg(&file)).await;
    assert_eq!(told(&outcome), (Some(64), ""), "{}", outcome.stderr);
    let faults = [
        "--workspace: must match",
        "--format: is required",
        "--import-id: must match",
        "--actor: must not start",
        "--server-name: must be",
        "--ca /absent/ca.crt: No such file",
        "--cert /absent/tls.crt: No such file",
        &format!("--key {open}: is open to others"),
    ];
    for fault in faults {
        assert!(outcome.stderr.contains(&format!(": {fault}")), "{fault}: {}", outcome.stderr);
    }
    assert_eq!(outcome.stderr.lines().count(), faults.len(), "{}", outcome.stderr);

    let file = rig.file(".env", "A=b\n");
    let workspace = ["--workspace", "ws"];
    for (flags, fault) in [
        (&["--address", "https://127.0.0.1:1"][..], "--ca: is required"),
        (&["--address", "http://192.0.2.1:1"], "http:// is for this machine only"),
        (&["--address", "ftp://127.0.0.1:1"], "--address: must be"),
        (&["--address", "http://127.0.0.1:1", "--cert", "x"], "--cert, --key: belong together"),
        (&["--address", "http://127.0.0.1:1", "--format", "yaml"], "--format: must be"),
        (&["--yes", "--dry-run"], "cannot be used with"),
        (&["--import-id", "x"], "--update-existing"),
    ] {
        let mut command = command("import");
        let outcome = run(command.args([&workspace[..], flags].concat()).arg(&file)).await;
        assert_told(&outcome, 64, &[fault]);
    }
    for (arguments, fault) in [
        (&["describe"][..], "--workspace: is required"),
        (&["rotate", "--workspace", ""], "--workspace: is required"),
        (&["rewrap"], "--workspace or --all: is required"),
        (&["rewrap", "--workspace", "ws", "--all"], "cannot be used with"),
        (&["rewrap", "--all", "--kms-key", ""], "--kms-key: must not be empty"),
        (&["rotate", "--workspace", "ws", "--data-key", ""], "--data-key: must not be empty"),
        (&["polish"], "unrecognized subcommand"),
        (&[], "Usage"),
    ] {
        assert_told(&run(command("keys").args(arguments)).await, 64, &[fault]);
    }
}

#[tokio::test]
async fn a_server_that_cannot_be_reached_or_trusted_gets_nothing() {
    let rig = Rig::start().await;
    let file = rig.file(".env", "A=b\n");
    let arguments = ["import", "--workspace", "ws", "--yes"];
    let mut nowhere = cli(&rig.platform, free_address(), "platform", &arguments);
    let outcome = super::run_within(nowhere.arg(&file), LONG).await;
    assert_told(&outcome, 69, &["cannot be reached: "]);

    let name = [&arguments[..], &["--server-name", "example.com"]].concat();
    let mut other = cli(&rig.platform, rig.replica.address, "platform", &name);
    let outcome = super::run_within(other.arg(&file), LONG).await;
    assert_told(&outcome, 69, &["cannot be reached: ", "certificate"]);
    assert!(rig.replica.audit().is_empty());
}
