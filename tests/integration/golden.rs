//! The format of sealed values is pinned: records sealed once must open for
//! ever, here and in a decoder of another hand (`tests/python`).

use std::{
    env,
    io::Write as _,
    process::{Command, Stdio},
};

use serde_json::{Value, json};
use workflow_secrets::{
    domain::{
        DataKeyId, Environment, KeyMaterial, Plaintext, Revision, SecretName, SecretUid, Timestamp,
        WorkspaceId,
    },
    envelope::{Binding, DataKey, Payload, SealedRecord, open, seal},
};

const GOLDEN: &str = include_str!("../vectors/golden_records.json");
const DECODER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python/decode_record.py");

fn golden() -> Vec<Value> {
    let records: Vec<Value> = serde_json::from_str(GOLDEN).expect("JSON");
    assert_eq!(records.len(), 5);
    records
}

fn text<'a>(case: &'a Value, field: &str) -> &'a str {
    case[field].as_str().expect("text")
}

fn bytes<const N: usize>(case: &Value, field: &str) -> [u8; N] {
    hex::decode(text(case, field)).expect("hexadecimal").try_into().expect("length")
}

/// Calls `f` with the data key and the place that a case tells.
fn with_case<T>(case: &Value, f: impl FnOnce(&DataKey, &Binding<'_>) -> T) -> T {
    let material = KeyMaterial::take(&mut bytes::<32>(case, "data_key")).expect("32 bytes");
    let key = DataKey::new(DataKeyId::from_bytes(bytes(case, "data_key_id")), material);
    let binding = Binding {
        environment: &Environment::parse(text(case, "environment")).expect("environment"),
        workspace: &WorkspaceId::parse(text(case, "workspace")).expect("workspace"),
        uid: SecretUid::from_bytes(bytes(case, "uid")),
        name: &SecretName::parse(text(case, "name")).expect("name"),
        revision: Revision::from_u64(case["revision"].as_u64().expect("number")),
    };
    f(&key, &binding)
}

/// What the decoder prints for a record that opens.
fn expected(case: &Value) -> Value {
    json!({
        "version": case["version"],
        "expire_time": case["expire_time"],
        "value": case["value"],
    })
}

/// A case sealed just now.
fn sealed(mut case: Value) -> Value {
    let expire_time = case["expire_time"].as_object().map(|time| {
        let nanos = time["nanos"].as_u64().expect("number").try_into().expect("nanos");
        Timestamp::new(time["seconds"].as_i64().expect("number"), nanos).expect("in range")
    });
    let payload = Payload {
        version: case["version"].as_u64().expect("number"),
        expire_time,
        value: Plaintext::parse(text(&case, "value").to_owned()).expect("value"),
    };
    let record = with_case(&case, |key, binding| seal(key, binding, &payload)).expect("seals");
    case["record"] = hex::encode(record.into_bytes()).into();
    case
}

/// Runs the Python decoder; its exit status and a result per case.
pub(crate) fn decode(cases: &[Value]) -> (Option<i32>, Vec<Value>) {
    python(&[DECODER], &serde_json::to_vec(cases).expect("JSON"))
}

/// Runs Python; its exit status and the JSON it prints, line by line.
pub(crate) fn python(arguments: &[&str], input: &[u8]) -> (Option<i32>, Vec<Value>) {
    let python = env::var_os("WFS_TOOLS_PYTHON").unwrap_or_else(|| "python3".into());
    let mut python = Command::new(python)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("WFS_TOOLS_PYTHON or python3 starts");
    python.stdin.take().expect("pipe").write_all(input).expect("it reads");
    let output = python.wait_with_output().expect("it ends");
    let lines = String::from_utf8(output.stdout).expect("UTF-8");
    let results = lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    (output.status.code(), results)
}

#[test]
fn golden_records_open() {
    for case in golden() {
        let record = hex::decode(text(&case, "record")).expect("hexadecimal");
        let record = SealedRecord::parse(record).expect("parses");
        let payload = with_case(&case, |key, binding| open(key, binding, &record)).expect("opens");
        let expire_time =
            payload.expire_time.map(|t| json!({"seconds": t.seconds(), "nanos": t.nanos()}));
        let found = json!({
            "version": payload.version,
            "expire_time": expire_time,
            "value": payload.value.expose(),
        });
        assert_eq!(found, expected(&case));
    }
}

#[test]
fn python_opens_golden_records() {
    let cases = golden();
    let results = cases.iter().map(expected).collect();
    assert_eq!(decode(&cases), (Some(0), results));
}

#[test]
fn python_opens_what_is_sealed_now() {
    let cases: Vec<Value> = [1, 39, 40, 4_071, 4_072, 12_263, 65_536]
        .into_iter()
        .map(|len| {
            let mut case = golden().swap_remove(len % 5);
            case["value"] = "x".repeat(len).into();
            sealed(case)
        })
        .collect();
    let results = cases.iter().map(expected).collect();
    assert_eq!(decode(&cases), (Some(0), results));
}

#[test]
fn python_refuses_what_does_not_belong() {
    let good = golden().swap_remove(0);
    let changed: Vec<Value> = [
        ("environment", json!("staging")),
        ("workspace", json!("ws_other")),
        ("name", json!("OTHER")),
        ("uid", json!("ff".repeat(16))),
        ("revision", json!(1)),
        ("data_key", json!("ff".repeat(32))),
        ("record", json!(text(&good, "record").replacen("57465331", "57465332", 1))),
        ("record", json!(&text(&good, "record")[..360])),
    ]
    .into_iter()
    .map(|(field, other)| {
        let mut case = good.clone();
        case[field] = other;
        case
    })
    .collect();
    let (status, results) = decode(&changed);
    assert_eq!(status, Some(1));
    assert_eq!(results.len(), changed.len());
    assert!(results.iter().all(|result| result["error"].is_string()), "{results:?}");
}
