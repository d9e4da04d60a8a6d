//! A client in another language and on another gRPC stack: Python's grpcio,
//! built from the proto files of this repository.

use super::support::{platform::Platform, tools};

#[tokio::test]
async fn python_speaks_the_whole_api() {
    let platform = Platform::start().await;
    let replica = platform.replica().await;
    let root = env!("CARGO_MANIFEST_DIR");
    let certificates = platform.file("");
    let ended = tools::python(&[
        "-W",
        "error",
        &format!("{root}/tests/python/client.py"),
        &format!("{root}/proto"),
        certificates.to_str().unwrap(),
        &replica.address.to_string(),
    ])
    .await;
    let hint = "is tests/python/requirements.txt installed? run tests/run.sh, or set \
                WFS_TOOLS_PYTHON";
    assert_eq!(ended.code, Some(0), "{}{}\n{hint}", ended.stdout, ended.stderr);
    // Each part reports itself, so that none is skipped unseen.
    let parts = [
        "tour",
        "errors",
        "many unresolved",
        "documents",
        "many places",
        "prepare",
        "redact",
        "values",
        "largest answer",
    ];
    assert_eq!(ended.stdout.lines().collect::<Vec<_>>(), parts);
    // The service agrees that it was asked: creations, with the person named.
    let created = replica.audit().into_iter().filter(|line| line["action"] == "create");
    assert!(created.filter(|line| line["actor"] == "Zoë").count() > 0);
}
