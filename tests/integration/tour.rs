//! The README's tour tells the truth: each of its commands, run with real
//! grpcurl against a fresh `workflow-secrets dev`, prints what stands there.

use std::{env, path::PathBuf, process::Command};

#[test]
fn the_tour_of_the_readme_shows_the_real_output() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let python = env::var_os("WFS_TOOLS_PYTHON")
        .map_or_else(|| root.join(".tools/python/bin/python"), PathBuf::from);
    let tour = Command::new(&python)
        .arg(root.join("tests/python/tour.py"))
        .args(["--binary", env!("CARGO_BIN_EXE_workflow-secrets")])
        .output()
        .unwrap_or_else(|error| panic!("{}: {error}; run tests/run.sh --tools", python.display()));
    assert!(
        tour.status.success(),
        "{}{}\nIf the README is wrong: tests/python/tour.py --update",
        String::from_utf8_lossy(&tour.stdout),
        String::from_utf8_lossy(&tour.stderr),
    );
}
