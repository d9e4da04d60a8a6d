//! ListSecrets page by page.

use std::collections::HashSet;

use tonic::Code;
use tonic_types::StatusExt as _;
use workflow_secrets::grpc::proto;

use super::support::platform::{
    Client, Platform, assert_refused, create, delete, list, update, with,
};

const WS: &str = "ws";

fn page(size: i32, token: &str) -> proto::ListSecretsRequest {
    proto::ListSecretsRequest { page_size: size, page_token: token.to_owned(), ..list(WS) }
}

fn names(page: &proto::ListSecretsResponse) -> Vec<String> {
    page.secrets.iter().map(|secret| secret.name.clone()).collect()
}

/// The names of all pages.
async fn all(client: &mut Client, mut request: proto::ListSecretsRequest) -> Vec<Vec<String>> {
    let mut pages = Vec::new();
    loop {
        let page = client.list_secrets(request.clone()).await.unwrap().into_inner();
        pages.push(names(&page));
        if page.next_page_token.is_empty() {
            return pages;
        }
        request.page_token = page.next_page_token;
    }
}

#[tokio::test]
async fn pages_follow_one_another_in_byte_order() {
    let platform = Platform::start().await;
    let replica = platform.replica().await;
    let mut client = platform.client(&replica, "platform").await;
    assert_eq!(all(&mut client, list(WS)).await, [[""; 0]]);

    // Created in no order; another workspace is never mixed in.
    let longest = "z".repeat(128);
    for name in ["b", "B", "_a", "A1", "a", "A", &longest, "A_", "a_b", "AA"] {
        client.create_secret(create(WS, name, "value")).await.unwrap();
        client.create_secret(create("ws2", &name.replace('A', "C"), "value")).await.unwrap();
    }
    let expected = ["A", "A1", "AA", "A_", "B", "_a", "a", "a_b", "b", &longest];
    for size in [1, 2, 3, 5, 9, 10, 11, 0, 1_000, i32::MAX] {
        let pages = all(&mut client, page(size, "")).await;
        assert_eq!(pages.concat(), expected, "pages of {size}");
        let per_page = usize::try_from(size).unwrap();
        if per_page > 0 {
            assert_eq!(pages.len(), expected.len().div_ceil(per_page), "pages of {size}");
            assert!(pages.iter().all(|page| page.len() <= per_page));
        }
    }
    // What List tells is what Get tells.
    let listed = client.list_secrets(page(1, "")).await.unwrap().into_inner();
    let request = proto::GetSecretRequest { workspace: WS.to_owned(), name: "A".to_owned() };
    assert_eq!(listed.secrets, [client.get_secret(request).await.unwrap().into_inner()]);

    // The place is a name, not a number: deletions before and at it do not
    // matter.
    let first = client.list_secrets(page(3, "")).await.unwrap().into_inner();
    for name in ["A", "AA"] {
        client.delete_secret(delete(WS, name)).await.unwrap();
    }
    let rest = all(&mut client, page(3, &first.next_page_token)).await.concat();
    assert_eq!(rest, expected[3..]);
}

#[tokio::test]
async fn a_token_belongs_to_its_listing() {
    let platform = Platform::start().await;
    let replica = platform.replica().await;
    let mut client = platform.client(&replica, "platform").await;
    for name in ["A", "B", "C"] {
        client.create_secret(create(WS, name, "value")).await.unwrap();
        client.create_secret(create("ws2", name, "value")).await.unwrap();
    }
    let token = client.list_secrets(page(1, "")).await.unwrap().into_inner().next_page_token;
    // The page size may change (AIP-158).
    let rest = client.list_secrets(page(2, &token)).await.unwrap().into_inner();
    assert_eq!((names(&rest), rest.next_page_token.as_str()), (vec!["B".into(), "C".into()], ""));

    let mut operator = platform.client(&replica, "operator").await;
    let mut outcomes = vec![operator.list_secrets(page(1, &token)).await];
    let elsewhere = proto::ListSecretsRequest { workspace: "ws2".to_owned(), ..page(1, &token) };
    outcomes.push(client.list_secrets(elsewhere).await);
    let more = proto::ListSecretsRequest { show_system_managed: true, ..page(1, &token) };
    outcomes.push(client.list_secrets(more).await);
    for canary in [
        "canary".to_owned(),
        format!("{token}-canary"),
        format!("canary{token}"),
        token[1..].to_owned(),
    ] {
        outcomes.push(client.list_secrets(page(1, &canary)).await);
    }
    for outcome in outcomes {
        let status = assert_refused(outcome, Code::InvalidArgument, "INVALID_FIELD");
        let details = status.get_error_details();
        assert_eq!(details.bad_request().unwrap().field_violations[0].field, "page_token");
        assert!(!format!("{status:?} {details:?}").contains("canary"));
    }
}

/// 1,100 secrets, two thirds system-managed, and more made meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_listing_misses_nothing_and_repeats_nothing() {
    const SECRETS: usize = 1_100;
    let platform = Platform::start().await;
    let replica = platform.replica().await;
    let mut client = platform.client(&replica, "platform").await;
    let sheets = platform.client(&replica, "sheets").await;
    let mut creations = tokio::task::JoinSet::new();
    for lane in 0..4 {
        let (mut client, mut sheets) = (client.clone(), sheets.clone());
        creations.spawn(async move {
            for number in (lane..SECRETS).step_by(4) {
                // Two out of three belong to an integration.
                if number % 3 == 0 {
                    let request = create(WS, &format!("K{number:04}"), "value");
                    client.create_secret(request).await.unwrap();
                } else {
                    let owner = ("google_sheets".to_owned(), "c1".to_owned());
                    let owner = proto::Owner { integration: owner.0, connection_id: owner.1 };
                    let request = with(update(WS, &format!("K{number:04}")), |r| {
                        r.value = Some("value".to_owned());
                        r.allow_missing = true;
                        r.owner = Some(owner);
                    });
                    sheets.update_secret(request).await.unwrap();
                }
            }
        });
    }
    creations.join_all().await;

    // By default 50 and never more than 1,000 to a page.
    let everything = proto::ListSecretsRequest { show_system_managed: true, ..list(WS) };
    let first = client.list_secrets(everything.clone()).await.unwrap().into_inner();
    assert_eq!(first.secrets.len(), 50);
    let largest = proto::ListSecretsRequest { page_size: 5_000, ..everything.clone() };
    let sizes: Vec<_> = all(&mut client, largest).await.iter().map(Vec::len).collect();
    assert_eq!(sizes, [1_000, 100]);

    let writer = tokio::spawn({
        let mut client = client.clone();
        async move {
            for number in 0..300 {
                // Before, between and after those that are there.
                let name = format!("{}{number:04}x", ["A", "K", "Z"][number % 3]);
                client.create_secret(create(WS, &name, "value")).await.unwrap();
            }
        }
    });
    let mut listings = 0;
    while listings < 3 || !writer.is_finished() {
        listings += 1;
        for (request, expected) in [
            (page(7, ""), (0..SECRETS).step_by(3).collect::<Vec<_>>()),
            (
                proto::ListSecretsRequest { page_size: 90, ..everything.clone() },
                (0..SECRETS).collect(),
            ),
        ] {
            let found = all(&mut client, request).await.concat();
            assert!(found.is_sorted());
            let distinct: HashSet<_> = found.iter().collect();
            assert_eq!(distinct.len(), found.len(), "a secret was listed twice");
            let steady = found.into_iter().filter(|name| name.starts_with('K') && name.len() == 5);
            let expected: Vec<_> = expected.iter().map(|number| format!("K{number:04}")).collect();
            assert_eq!(steady.collect::<Vec<_>>(), expected);
        }
    }
    writer.await.unwrap();
}
