//! On a terminal: a bar.

use std::{
    fs::File,
    io::Read as _,
    process::{Command, Stdio},
    thread,
};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use super::{LONG, Rig, assert_told};
use crate::support::program::{command, ended};

/// Exit code, standard output, and what the terminal showed of standard error.
async fn on_a_terminal(command: &mut Command) -> (Option<i32>, String, String) {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, vec![]).unwrap().into_string().unwrap();
    let terminal = File::options().read(true).write(true).open(name).unwrap();
    command.env("TERM", "xterm").env_remove("NO_COLOR");
    command.stdout(Stdio::piped()).stderr(Stdio::from(terminal));
    let mut child = command.spawn().unwrap();
    // Else the terminal would never end.
    command.stderr(Stdio::null());
    let shown = thread::spawn(move || {
        let mut shown = vec![];
        // Linux tells the end of a terminal by an error.
        let _ = File::from(master).read_to_end(&mut shown);
        String::from_utf8(shown).unwrap()
    });
    let status = ended(&mut child, LONG).await.expect("still running");
    let mut stdout = String::new();
    child.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
    (status.code(), stdout, shown.join().unwrap())
}

#[tokio::test]
async fn there_is_a_bar_which_goes_when_it_is_done() {
    let rig = Rig::start().await;
    let lines: String = (0..40).map(|i| format!("K{i}='the value of {i}'\n")).collect();
    let file = rig.file(".env", &lines);
    let (code, stdout, shown) = on_a_terminal(&mut rig.import(&file, &["--yes"])).await;
    assert_eq!(code, Some(0), "{stdout}{shown}");
    assert!(stdout.ends_with("create 40\ncreated 40\n"), "{stdout}");
    assert!(shown.contains("checking [") && shown.contains("storing ["), "{shown:?}");
    assert!(shown.contains("█") && shown.contains(" of 40"), "{shown:?}");
    // Cleared, so that nothing of it stands behind the report.
    assert!(shown.ends_with("\u{1b}[2K") || shown.ends_with("\u{1b}[2K\r"), "{shown:?}");
    assert!(!stdout.contains("the value") && !shown.contains("the value"));

    assert_told(&rig.keys(&["rotate", "--workspace", "ws"]).await, 0, &["data keys: 2"]);
    let arguments = ["keys", "reencrypt", "--workspace", "ws"];
    let mut reencrypt = super::cli(&rig.platform, rig.replica.address, "operator", &arguments);
    let (code, stdout, shown) = on_a_terminal(&mut reencrypt).await;
    assert_eq!(code, Some(0), "{stdout}{shown}");
    assert!(shown.contains("pass 1 ") && shown.contains("pass 2 ["), "{shown:?}");
    assert!(shown.contains(" of 40  changed 40, failed 0"), "{shown:?}");
}

/// A terminal that can do nothing gets lines.
#[tokio::test]
async fn lines_where_there_can_be_no_bar() {
    let rig = Rig::start().await;
    let file = rig.file(".env", "A=b\n");
    let mut dumb = rig.import(&file, &[]);
    let outcome = super::run_within(dumb.env("TERM", "dumb"), LONG).await;
    assert_eq!(outcome.stderr, "checking: 0 of 1\n");
    // Help is complete, and in one place.
    let help = super::run_within(command("import").arg("--help"), LONG).await;
    for told in ["Exit codes:", "--dry-run", "--import-id <ID>", "--actor <NAME>"] {
        assert!(help.stdout.contains(told), "{told}: {}", help.stdout);
    }
}
