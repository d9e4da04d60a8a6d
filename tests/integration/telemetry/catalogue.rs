//! The table of metrics is what `/metrics` shows.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    time::{Duration, Instant},
};

use super::http::{Family, scrape, watched};
use crate::support::{
    platform::{Platform, create, resolve},
    redis_server::Options,
};

/// A row of the table.
#[derive(Debug, PartialEq)]
struct Row {
    kind: String,
    labels: BTreeSet<String>,
    help: String,
}

/// The rows of deploy/METRICS.md, by their name at `/metrics`.
fn table() -> BTreeMap<String, Row> {
    let text = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/METRICS.md"));
    let code = |cell: &str| cell.trim().trim_matches('`').to_owned();
    let mut rows = BTreeMap::new();
    let text = text.unwrap();
    let table = text.lines().skip_while(|line| !line.starts_with("| OTLP |")).skip(2);
    for line in table.take_while(|line| !line.is_empty()) {
        let cells: Vec<_> = line.trim_matches('|').split(" | ").collect();
        let [otlp, shown, kind, unit, labels, help] = cells[..] else { panic!("{line}") };
        let name = code(shown);
        // The one is made of the other.
        let mut made = code(otlp).replace('.', "_");
        made.push_str(if code(unit) == "s" { "_seconds" } else { "" });
        made.push_str(if kind.trim() == "counter" { "_total" } else { "" });
        assert_eq!(made, name);
        let labels = labels.split(',').map(code).filter(|label| !label.is_empty() && label != "–");
        let labels = labels.map(|label| label.replace('.', "_")).collect();
        let row = Row { kind: kind.trim().to_owned(), labels, help: help.trim().to_owned() };
        assert!(rows.insert(name, row).is_none(), "{line}");
    }
    rows
}

#[tokio::test]
async fn the_table_of_metrics_tells_what_is_shown() {
    let platform = Platform::start_with(Options::default()).await;
    let (replica, admin) = watched(&platform, &[], &[]).await;
    let mut writer = platform.client(&replica, "platform").await;
    writer.create_secret(create("ws", "KEY", "value")).await.unwrap();
    let mut executor = platform.client(&replica, "executor").await;
    executor.resolve_secrets(resolve("ws", &["KEY"])).await.unwrap();
    // An error of the server, for `error.type`.
    let mut unknown = tonic::client::Grpc::new(platform.channel(&replica, None).await);
    unknown.ready().await.unwrap();
    let path = "/workflowsecrets.v1.SecretsService/NoSuchMethod".parse().unwrap();
    let codec = tonic_prost::ProstCodec::<(), ()>::default();
    unknown.unary(tonic::Request::new(()), path, codec).await.unwrap_err();
    let mut identified = tonic::client::Grpc::new(platform.channel_as(&replica, "executor").await);
    identified.ready().await.unwrap();
    let path = "/workflowsecrets.v1.SecretsService/NoSuchMethod".parse().unwrap();
    let codec = tonic_prost::ProstCodec::<(), ()>::default();
    identified.unary(tonic::Request::new(()), path, codec).await.unwrap_err();

    let table = table();
    let start = Instant::now();
    // Gauges of what is in memory are set every 2 s.
    let shown = loop {
        let shown = scrape(admin).await;
        if shown.contains_key("workflow_secrets_data_key_cached") && shown.len() > table.len() {
            break shown;
        }
        let missing: Vec<_> = table.keys().filter(|name| !shown.contains_key(*name)).collect();
        assert!(start.elapsed() < Duration::from_secs(30), "not shown: {missing:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    let mut told = BTreeMap::new();
    for (name, Family { kind, help, labels, .. }) in shown {
        if name != "target_info" {
            told.insert(name, Row { kind, labels, help });
        }
    }
    assert_eq!(told, table);
    let made_up = "rpc_server_call_duration_seconds_count{error_type=\"UNIMPLEMENTED\",\
                   rpc_method=\"_OTHER\",rpc_response_status_code=\"UNIMPLEMENTED\",\
                   rpc_system_name=\"grpc\"}";
    let shown = scrape(admin).await;
    assert_eq!(shown["rpc_server_call_duration_seconds"].samples[made_up], 1.0);
}
