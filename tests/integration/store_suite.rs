//! What every store engine must do, clause by clause of the trait
//! [`workflow_secrets::store::Store`]. The engines' test modules run it all.

use std::{collections::BTreeSet, sync::Arc};

use workflow_secrets::{
    domain::{DataKeyId, Revision, SecretName, SecretUid},
    store::{Batch, Expect, Key, Operation, Quota, StoreError, Trail},
};

use crate::support::store::{
    S, at, batch, check, delete, get, meta, put, rec, request, run, set, show, ws,
};

/// Makes a test of each clause; `$store` gives a fresh store and whatever must
/// live as long. Or, `together`, runs one after the other; `$store` gives a
/// fresh store for a name.
macro_rules! suite {
    (together $store:expr) => { crate::store_suite::suite! { @clauses together $store } };
    ($store:path) => { crate::store_suite::suite! { @clauses each $store } };
    (@clauses $how:ident $($store:tt)+) => {
        crate::store_suite::suite! { @$how ($($store)+)
            reads_keep_the_order_of_keys
            nothing_is_read_of_what_is_not_there
            revisions_are_exact_to_the_last_bit
            an_expected_absence_is_checked
            a_batch_is_carried_out_whole
            a_failed_last_expectation_undoes_the_batch
            checks_alone_change_nothing
            a_key_may_stand_in_a_batch_once
            a_known_request_is_replayed
            a_failed_request_is_not_remembered
            expect_empty_wants_no_record_at_all
            a_quota_counts_what_is_there_afterwards
            a_quota_counts_one_kind
            each_change_has_a_greater_revision
            calls_tell_the_revision
            a_shredded_workspace_stays_so
            a_shredding_remembers_no_request
            no_commit_outlives_a_shredding
            a_trail_tells_the_newest_first
            a_trail_drops_its_oldest
            only_what_is_done_is_in_the_trail
            scans_run_in_byte_order
            scans_go_on_after_a_key
            scans_keep_to_their_prefix
            keys_are_those_that_a_scan_finds
            workspaces_are_listed
            workspaces_are_isolated
            bytes_are_kept_exactly
            large_records_are_kept
            one_of_many_writers_wins
            racing_batches_never_mix
            a_dropped_commit_is_whole_or_nothing
            a_healthy_store_says_so
        }
    };
    (@together ($store:expr) $($clause:ident)*) => {$(
        crate::store_suite::$clause($store(stringify!($clause)).await).await;
    )*};
    (@each ($store:path) $($clause:ident)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $clause() {
            let (store, _keep) = $store().await;
            crate::store_suite::$clause(store).await;
        }
    )*};
}
pub(crate) use suite;

async fn keys(store: &S, workspace: &str, prefix: &str, after: Option<&Key>, n: usize) -> Vec<Key> {
    let found = store.scan(&ws(workspace), prefix, after, n).await.unwrap();
    found.into_iter().map(|(key, _)| key).collect()
}

pub(crate) async fn reads_keep_the_order_of_keys(store: S) {
    for (revision, name) in [(1, "A"), (2, "B"), (3, "C")] {
        set(&store, "w", meta(name), rec(revision, name.as_bytes())).await;
    }
    let wanted = ["C", "missing", "A", "B", "A"].map(meta);
    let found = store.read(&ws("w"), &wanted).await.unwrap();
    let revisions: Vec<_> = found.iter().map(|r| r.as_ref().map(|r| r.revision.as_u64())).collect();
    assert_eq!(revisions, [Some(3), None, Some(1), Some(2), Some(1)]);
    assert_eq!(found[0].as_ref().unwrap().bytes, b"C");
}

pub(crate) async fn nothing_is_read_of_what_is_not_there(store: S) {
    assert!(store.read(&ws("w"), &[]).await.unwrap().is_empty());
    assert!(get(&store, "w", &meta("A")).await.is_none());
    assert!(store.scan(&ws("w"), "", None, 10).await.unwrap().is_empty());
    assert!(store.request(&ws("w"), &request("r")).await.unwrap().is_none());
    assert!(list(&store).await.is_empty());
}

pub(crate) async fn revisions_are_exact_to_the_last_bit(store: S) {
    // Neighbours that are one and the same double.
    for revision in [(1 << 53) + 1, u64::MAX, u64::from_be_bytes(*b"\0\n\r\"\\\xff\0\x01")] {
        set(&store, "w", meta("A"), rec(revision, b"old")).await;
        for wrong in [revision - 1, revision.wrapping_add(1), revision ^ (1 << 63), 0] {
            let change = batch([put(meta("A"), at(wrong), rec(9, b"new"))]);
            assert_eq!(run(&store, "w", change).await, "conflict m/A", "{revision} {wrong}");
        }
        assert_eq!(show(&store, "w", &meta("A")).await, Some((revision, "old".into())));
        let change = batch([put(meta("A"), at(revision), rec(9, b"new"))]);
        assert_eq!(run(&store, "w", change).await, "done");
    }
    let absent = batch([put(meta("B"), at(9), rec(9, b"new"))]);
    assert_eq!(run(&store, "w", absent).await, "conflict m/B");
}

pub(crate) async fn an_expected_absence_is_checked(store: S) {
    let create = || batch([put(meta("A"), Some(Expect::Absent), rec(1, b"1"))]);
    assert_eq!(run(&store, "w", create()).await, "done");
    assert_eq!(run(&store, "w", create()).await, "conflict m/A");
    assert_eq!(run(&store, "w", batch([delete(meta("A"), at(1))])).await, "done");
    assert_eq!(run(&store, "w", create()).await, "done");
}

pub(crate) async fn a_batch_is_carried_out_whole(store: S) {
    set(&store, "w", meta("OLD"), rec(1, b"old")).await;
    set(&store, "w", meta("SEEN"), rec(2, b"seen")).await;
    let name = SecretName::parse("A").unwrap();
    let change = batch([
        put(meta("A"), Some(Expect::Absent), rec(5, b"metadata")),
        put(Key::value(&name), Some(Expect::Absent), rec(6, b"value")),
        put(meta("SEEN"), at(2), rec(3, b"seen again")),
        delete(meta("OLD"), at(1)),
        delete(meta("NEVER"), None),
        check(Key::active_data_key(), Some(Expect::Absent)),
    ]);
    assert_eq!(run(&store, "w", change).await, "done");
    assert_eq!(show(&store, "w", &meta("A")).await, Some((5, "metadata".into())));
    assert_eq!(show(&store, "w", &Key::value(&name)).await, Some((6, "value".into())));
    assert_eq!(show(&store, "w", &meta("SEEN")).await, Some((3, "seen again".into())));
    assert_eq!(show(&store, "w", &meta("OLD")).await, None);
    let all = keys(&store, "w", "", None, 10).await;
    assert_eq!(all, [meta("A"), meta("SEEN"), Key::value(&name)]);
}

pub(crate) async fn a_failed_last_expectation_undoes_the_batch(store: S) {
    set(&store, "w", meta("A"), rec(1, b"a")).await;
    set(&store, "w", meta("B"), rec(2, b"b")).await;
    let mut change = batch([
        put(meta("NEW"), Some(Expect::Absent), rec(7, b"new")),
        put(meta("A"), at(1), rec(8, b"changed")),
        delete(meta("B"), at(2)),
        check(meta("C"), at(3)),
    ]);
    change.request = Some((request("r"), b"outcome".to_vec()));
    assert_eq!(run(&store, "w", change).await, "conflict m/C");
    assert_eq!(show(&store, "w", &meta("A")).await, Some((1, "a".into())));
    assert_eq!(show(&store, "w", &meta("B")).await, Some((2, "b".into())));
    assert_eq!(keys(&store, "w", "", None, 10).await, ["A", "B"].map(meta));
}

pub(crate) async fn checks_alone_change_nothing(store: S) {
    set(&store, "w", meta("A"), rec(1, b"a")).await;
    let good = batch([check(meta("A"), at(1)), check(meta("B"), Some(Expect::Absent))]);
    assert_eq!(run(&store, "w", good).await, "done");
    assert_eq!(run(&store, "w", Batch::default()).await, "done");
    let bad = batch([check(meta("A"), Some(Expect::Absent))]);
    assert_eq!(run(&store, "w", bad).await, "conflict m/A");
    assert_eq!(keys(&store, "w", "", None, 10).await, [meta("A")]);
}

pub(crate) async fn a_key_may_stand_in_a_batch_once(store: S) {
    let twice = batch([
        put(meta("A"), None, rec(1, b"1")),
        put(meta("B"), None, rec(1, b"1")),
        delete(meta("A"), None),
    ]);
    let refused = store.commit(&ws("w"), twice).await;
    assert!(matches!(refused, Err(StoreError::Malformed(_))));
    assert!(keys(&store, "w", "", None, 10).await.is_empty());
}

pub(crate) async fn a_known_request_is_replayed(store: S) {
    let create = |outcome: &[u8]| Batch {
        request: Some((request("r-1"), outcome.to_vec())),
        ..batch([put(meta("A"), Some(Expect::Absent), rec(1, b"1"))])
    };
    assert_eq!(run(&store, "w", create(b"first \0")).await, "done");
    let known = store.request(&ws("w"), &request("r-1")).await.unwrap();
    assert_eq!(known.as_deref(), Some(&b"first \0"[..]));
    // The expectation would fail now; the replay comes first.
    assert_eq!(run(&store, "w", create(b"second")).await, "replayed first \0");
    let mut other = create(b"third");
    other.expect_empty = true;
    other.quota = Some(Quota { kind: Key::METADATA, max: 0 });
    other.operations = vec![delete(meta("A"), None)];
    assert_eq!(run(&store, "w", other).await, "replayed first \0");
    assert_eq!(show(&store, "w", &meta("A")).await, Some((1, "1".into())));
    // Ids belong to a workspace, and other ids are other requests.
    assert_eq!(run(&store, "w2", create(b"there")).await, "done");
    let other = Batch { request: Some((request("r-12"), vec![])), ..Batch::default() };
    assert_eq!(run(&store, "w", other.clone()).await, "done");
    assert_eq!(run(&store, "w", other).await, "replayed ");
}

pub(crate) async fn a_failed_request_is_not_remembered(store: S) {
    set(&store, "w", meta("A"), rec(1, b"1")).await;
    let mut create = Batch {
        request: Some((request("r"), b"outcome".to_vec())),
        ..batch([put(meta("A"), Some(Expect::Absent), rec(2, b"2"))])
    };
    assert_eq!(run(&store, "w", create.clone()).await, "conflict m/A");
    create.expect_empty = true;
    assert_eq!(run(&store, "w", create.clone()).await, "not empty");
    assert!(store.request(&ws("w"), &request("r")).await.unwrap().is_none());
    create.expect_empty = false;
    create.operations[0].expect = at(1);
    assert_eq!(run(&store, "w", create).await, "done");
}

pub(crate) async fn expect_empty_wants_no_record_at_all(store: S) {
    let mint = || Batch {
        expect_empty: true,
        ..batch([put(Key::active_data_key(), Some(Expect::Absent), rec(1, b"key"))])
    };
    let leftover = Key::data_key(DataKeyId::from_bytes([7; 16]));
    set(&store, "w", leftover.clone(), rec(1, b"old key")).await;
    assert_eq!(run(&store, "w", mint()).await, "not empty");
    assert!(get(&store, "w", &Key::active_data_key()).await.is_none());
    assert_eq!(run(&store, "other", mint()).await, "done");
    // A remembered request is no record.
    let clear = Batch { request: Some((request("r"), vec![])), ..batch([delete(leftover, None)]) };
    assert_eq!(run(&store, "w", clear).await, "done");
    assert_eq!(run(&store, "w", mint()).await, "done");
    assert_eq!(run(&store, "w", mint()).await, "not empty");
}

pub(crate) async fn a_quota_counts_what_is_there_afterwards(store: S) {
    let limited = |max, operations: Vec<Operation>| Batch {
        operations,
        quota: Some(Quota { kind: Key::METADATA, max }),
        ..Batch::default()
    };
    let add = |name: &str| put(meta(name), None, rec(1, b"1"));
    assert_eq!(run(&store, "w", limited(2, vec![add("A"), add("B"), add("C")])).await, "full");
    assert!(keys(&store, "w", "", None, 10).await.is_empty());
    assert_eq!(run(&store, "w", limited(2, vec![add("A"), add("B")])).await, "done");
    assert_eq!(run(&store, "w", limited(2, vec![add("C")])).await, "full");
    // What makes room in the same batch counts, what is not there does not.
    assert_eq!(
        run(&store, "w", limited(2, vec![add("C"), delete(meta("NONE"), None)])).await,
        "full"
    );
    assert_eq!(run(&store, "w", limited(2, vec![add("C"), delete(meta("A"), None)])).await, "done");
    assert_eq!(keys(&store, "w", "", None, 10).await, ["B", "C"].map(meta));
    // A lowered limit lets changes and deletions through.
    assert_eq!(run(&store, "w", limited(1, vec![add("B")])).await, "done");
    assert_eq!(run(&store, "w", limited(0, vec![delete(meta("B"), None)])).await, "done");
    // Other workspaces do not count.
    assert_eq!(run(&store, "w2", limited(1, vec![add("A")])).await, "done");
    assert_eq!(run(&store, "w", limited(u64::MAX, vec![add("D")])).await, "done");
}

pub(crate) async fn a_quota_counts_one_kind(store: S) {
    let limited = |kind, max, operations: Vec<Operation>| Batch {
        operations,
        quota: Some(Quota { kind, max }),
        ..Batch::default()
    };
    let value = |name: &str| Key::value(&SecretName::parse(name).unwrap());
    let uid = SecretUid::from_bytes([7; 16]);
    set(&store, "w", Key::active_data_key(), rec(1, b"key")).await;
    for version in 1..=5 {
        set(&store, "w", Key::earlier(uid, version), rec(1, b"old")).await;
    }
    for name in ["A", "B"] {
        let both = vec![put(meta(name), None, rec(1, b"1")), put(value(name), None, rec(1, b"1"))];
        assert_eq!(run(&store, "w", limited(Key::METADATA, 2, both)).await, "done");
    }
    let third = || vec![put(meta("C"), None, rec(1, b"1")), put(value("C"), None, rec(1, b"1"))];
    assert_eq!(run(&store, "w", limited(Key::METADATA, 2, third())).await, "full");
    // Room made among others is none.
    let swap = vec![put(meta("C"), None, rec(1, b"1")), delete(value("A"), None)];
    assert_eq!(run(&store, "w", limited(Key::METADATA, 2, swap)).await, "full");
    assert_eq!(show(&store, "w", &value("A")).await, Some((1, "1".into())));
    // The kinds next to it in byte order do not count, and one that grows not at
    // all is not checked.
    assert_eq!(run(&store, "w", limited(Key::EARLIER, 0, third())).await, "done");
    let sixth = vec![put(Key::earlier(uid, 6), None, rec(1, b"old"))];
    assert_eq!(run(&store, "w", limited(Key::EARLIER, 5, sixth.clone())).await, "full");
    assert_eq!(run(&store, "w", limited(Key::EARLIER, 6, sixth)).await, "done");
    let gone = vec![delete(Key::earlier(uid, 1), None), delete(Key::earlier(uid, 2), None)];
    assert_eq!(run(&store, "w", limited(Key::EARLIER, 0, gone)).await, "done");
    let fifth = vec![put(Key::earlier(uid, 1), None, rec(1, b"old"))];
    assert_eq!(run(&store, "w", limited(Key::EARLIER, 5, fifth)).await, "done");
}

pub(crate) async fn calls_tell_the_revision(store: S) {
    let told = async |batch| store.commit_at(&ws("w"), batch).await.unwrap().1;
    let read = async || store.read_at(&ws("w"), &[meta("A")]).await.unwrap();
    let kept = |one| Batch { bookkeeping: true, ..batch([one]) };
    assert_eq!(told(kept(put(meta("NOTE"), None, rec(1, b"a")))).await, None);
    assert_eq!(read().await.0, None);
    let first = told(batch([put(meta("A"), None, rec(1, b"a"))])).await;
    assert!(first.is_some());
    let (revision, records) = read().await;
    assert_eq!((revision, records.len()), (first, 1));
    assert_eq!(told(kept(delete(meta("NOTE"), at(1)))).await, None);
    assert_eq!(told(batch([check(meta("A"), at(1))])).await, None);
    assert_eq!(told(batch([put(meta("A"), at(9), rec(2, b"a"))])).await, None);
    let second = told(batch([delete(meta("A"), None)])).await;
    assert_eq!(second.map(Revision::as_u64), first.map(|first| first.as_u64() + 1));
    assert_eq!(read().await.0, second);
    assert_eq!(store.revision(&ws("w")).await.unwrap(), second);
}

pub(crate) async fn each_change_has_a_greater_revision(store: S) {
    let revision = async |workspace| store.revision(&ws(workspace)).await.unwrap();
    let kept = |one| Batch { bookkeeping: true, ..batch([one]) };
    assert_eq!(revision("w").await, None);
    assert_eq!(run(&store, "w", kept(put(meta("NOTE"), None, rec(1, b"a")))).await, "done");
    assert_eq!(show(&store, "w", &meta("NOTE")).await, Some((1, "a".into())));
    assert_eq!(run(&store, "w", kept(delete(meta("NOTE"), at(1)))).await, "done");
    assert_eq!(revision("w").await, None);
    set(&store, "w", meta("A"), rec(1, b"a")).await;
    let mut last = revision("w").await.unwrap();
    let changes = [
        batch([put(meta("A"), at(1), rec(2, b"a"))]),
        batch([put(meta("B"), None, rec(1, b"b")), check(meta("A"), at(2))]),
        batch([delete(meta("A"), None)]),
        batch([delete(meta("B"), None)]),
    ];
    for change in changes {
        assert_eq!(run(&store, "w", change).await, "done");
        let next = revision("w").await.unwrap();
        assert_eq!(next.as_u64(), last.as_u64() + 1);
        last = next;
    }
    // What changes nothing has none, and neither have other workspaces.
    let remember = Batch { request: Some((request("r"), vec![])), ..Batch::default() };
    let same = [
        (Batch::default(), "done"),
        (remember.clone(), "done"),
        (remember, "replayed "),
        (batch([check(meta("A"), Some(Expect::Absent))]), "done"),
        (batch([put(meta("A"), at(1), rec(2, b"a"))]), "conflict m/A"),
        (kept(put(meta("NOTE"), None, rec(1, b"a"))), "done"),
        (kept(put(meta("NOTE"), at(2), rec(3, b"b"))), "conflict m/NOTE"),
        (kept(put(meta("NOTE"), at(1), rec(2, b"b"))), "done"),
        (kept(delete(meta("NOTE"), None)), "done"),
    ];
    for (change, result) in same {
        assert_eq!(run(&store, "w", change).await, result);
        assert_eq!(revision("w").await, Some(last));
    }
    assert_eq!(revision("other").await, None);
    set(&store, "other", meta("A"), rec(1, b"a")).await;
    assert_ne!(revision("other").await, Some(last), "the first is random");
}

pub(crate) async fn a_shredded_workspace_stays_so(store: S) {
    let others = ["w1", "W", "w_", "v"];
    for workspace in ["w", "w1", "W", "w_", "v"] {
        set(&store, workspace, meta("A"), rec(1, b"a")).await;
        set(&store, workspace, Key::active_data_key(), rec(1, b"key")).await;
    }
    let before = store.revision(&ws("w")).await.unwrap().unwrap();
    let first = store.shred(&ws("w"), rec(7, b"first")).await.unwrap();
    assert!(first.records == 2 && first.tombstone == rec(7, b"first"));
    assert_eq!(keys(&store, "w", "", None, 9).await, [Key::tombstone()]);
    assert_eq!(show(&store, "w", &Key::tombstone()).await, Some((7, "first".into())));
    assert_eq!(store.read(&ws("w"), &[meta("A")]).await.unwrap().iter().flatten().count(), 0);
    let after = store.revision(&ws("w")).await.unwrap().unwrap();
    assert!(after > before, "caches by revision see it");

    let again = store.shred(&ws("w"), rec(8, b"second")).await.unwrap();
    assert!(again.records == 0 && again.tombstone == rec(7, b"first"));
    for change in [
        Batch::default(),
        batch([put(meta("A"), None, rec(1, b"a"))]),
        batch([put(meta("A"), Some(Expect::Absent), rec(1, b"a"))]),
        batch([put(meta("A"), at(9), rec(1, b"a"))]),
        batch([delete(Key::tombstone(), None)]),
        batch([put(Key::tombstone(), at(7), rec(9, b"x"))]),
        Batch { expect_empty: true, ..batch([put(Key::active_data_key(), None, rec(1, b"k"))]) },
        Batch { request: Some((request("r"), b"o".to_vec())), ..Batch::default() },
    ] {
        assert_eq!(run(&store, "w", change).await, "shredded");
    }
    assert_eq!(keys(&store, "w", "", None, 9).await, [Key::tombstone()]);
    assert_eq!(store.revision(&ws("w")).await.unwrap(), Some(after));
    assert!(store.request(&ws("w"), &request("r")).await.unwrap().is_none());
    for workspace in others {
        assert_eq!(keys(&store, workspace, "", None, 9).await.len(), 2, "{workspace}");
    }
    // One that never was cannot come to be either.
    let never = store.shred(&ws("never"), rec(1, b"t")).await.unwrap();
    assert_eq!(never.records, 0);
    let create = batch([put(meta("A"), None, rec(1, b"a"))]);
    assert_eq!(run(&store, "never", create).await, "shredded");
    let all: BTreeSet<_> = ["w", "never"].into_iter().chain(others).map(str::to_owned).collect();
    assert_eq!(list(&store).await, all);
}

pub(crate) async fn a_shredding_remembers_no_request(store: S) {
    for workspace in ["w", "w1"] {
        for number in 0..50 {
            let id = request(&format!("r-{number}"));
            let remember = Batch { request: Some((id, b"o".to_vec())), ..Batch::default() };
            assert_eq!(run(&store, workspace, remember).await, "done");
        }
    }
    store.shred(&ws("w"), rec(1, b"t")).await.unwrap();
    for number in 0..50 {
        let id = request(&format!("r-{number}"));
        assert!(store.request(&ws("w"), &id).await.unwrap().is_none());
        assert!(store.request(&ws("w1"), &id).await.unwrap().is_some());
    }
    let known = Batch { request: Some((request("r-1"), vec![])), ..Batch::default() };
    assert_eq!(run(&store, "w", known).await, "shredded", "not replayed");
}

pub(crate) async fn no_commit_outlives_a_shredding(store: S) {
    let write = |n: u64| {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            for round in 0..20 {
                let key = meta(&format!("N{n}_{round}"));
                let made = run(&store, "w", batch([put(key, None, rec(1, b"x"))])).await;
                assert!(made == "done" || made == "shredded", "{made}");
            }
        })
    };
    let writers: Vec<_> = (0..10).map(write).collect();
    while keys(&store, "w", "", None, 30).await.len() < 30 {
        tokio::task::yield_now().await;
    }
    store.shred(&ws("w"), rec(1, b"t")).await.unwrap();
    assert_eq!(keys(&store, "w", "", None, 9).await, [Key::tombstone()]);
    for writer in writers {
        writer.await.unwrap();
    }
    assert_eq!(keys(&store, "w", "", None, 9).await, [Key::tombstone()]);
}

/// Entries, newest first.
async fn trail(store: &S, workspace: &str) -> Vec<String> {
    let found = store.scan(&ws(workspace), Key::TRAIL, None, usize::MAX).await.unwrap();
    found.into_iter().map(|(_, record)| String::from_utf8(record.bytes).unwrap()).collect()
}

fn telling(entry: impl ToString, keep: u64, operation: Operation) -> Batch {
    let trail = Some(Trail { entry: entry.to_string().into_bytes(), keep });
    Batch { trail, ..batch([operation]) }
}

pub(crate) async fn a_trail_tells_the_newest_first(store: S) {
    for number in 1..=12 {
        let change = telling(number, 100, put(meta("A"), None, rec(number, b"a")));
        assert_eq!(run(&store, "w", change).await, "done");
        // Its number is that of the workspace.
        let revision = store.revision(&ws("w")).await.unwrap().unwrap().as_u64();
        let found = store.scan(&ws("w"), Key::TRAIL, None, 1).await.unwrap();
        let key = format!("a/{:016}", 9_007_199_254_740_991 - revision);
        assert_eq!(found[0].0.as_str(), key);
        assert!(found[0].1 == rec(1, number.to_string().as_bytes()));
        if number % 3 == 0 {
            // Others count, too.
            set(&store, "w", meta("B"), rec(number, b"b")).await;
        }
    }
    let expected: Vec<_> = (1..=12).rev().map(|number| number.to_string()).collect();
    assert_eq!(trail(&store, "w").await, expected);
    let all = keys(&store, "w", Key::TRAIL, None, 100).await;
    assert_eq!(keys(&store, "w", Key::TRAIL, Some(&all[3]), 2).await, all[4..6]);
    assert!(trail(&store, "w2").await.is_empty());
    // A workspace that has no more than its trail is one.
    let gone = batch([delete(meta("A"), None), delete(meta("B"), None)]);
    assert_eq!(run(&store, "w", gone).await, "done");
    assert_eq!(list(&store).await, BTreeSet::from(["w".to_owned()]));
}

pub(crate) async fn a_trail_drops_its_oldest(store: S) {
    // What stands next to it in byte order stays.
    set(&store, "w", meta("A"), rec(1, b"a")).await;
    for number in 1..=250 {
        let change = telling(number, 240, put(meta("A"), None, rec(number, b"a")));
        assert_eq!(run(&store, "w", change).await, "done");
        let other = telling(number, 240, put(meta("A"), None, rec(number, b"a")));
        assert_eq!(run(&store, "w2", other).await, "done");
    }
    let newest = |count: u64, last: u64| -> Vec<_> {
        (last + 1 - count..=last).rev().map(|number| number.to_string()).collect()
    };
    assert_eq!(trail(&store, "w").await, newest(240, 250));
    // A smaller number is reached in steps, which are long enough.
    let fewer = |number| telling(number, 3, put(meta("A"), None, rec(1, b"a")));
    assert_eq!(run(&store, "w", fewer(251)).await, "done");
    assert_eq!(trail(&store, "w").await, newest(141, 251));
    assert_eq!(run(&store, "w", fewer(252)).await, "done");
    assert_eq!(run(&store, "w", fewer(253)).await, "done");
    assert_eq!(trail(&store, "w").await, newest(3, 253));
    assert_eq!(trail(&store, "w2").await, newest(240, 250));
    // A larger one is reached again.
    let more = telling(254, 4, put(meta("A"), None, rec(1, b"a")));
    assert_eq!(run(&store, "w", more).await, "done");
    assert_eq!(trail(&store, "w").await, newest(4, 254));
    assert_eq!(keys(&store, "w", Key::METADATA, None, 9).await, [meta("A")]);
    // Its records count as such, and as no others.
    let quota = Some(Quota { kind: Key::METADATA, max: 1 });
    let full = Batch { quota, ..telling("no", 4, put(meta("B"), None, rec(1, b"b"))) };
    assert_eq!(run(&store, "w", full).await, "full");
}

pub(crate) async fn only_what_is_done_is_in_the_trail(store: S) {
    set(&store, "w", meta("A"), rec(1, b"a")).await;
    let revision = store.revision(&ws("w")).await.unwrap();
    let lost = telling("lost", 9, put(meta("A"), at(7), rec(2, b"a")));
    assert_eq!(run(&store, "w", lost).await, "conflict m/A");
    let empty = Batch { expect_empty: true, ..telling("x", 9, delete(meta("A"), None)) };
    assert_eq!(run(&store, "w", empty).await, "not empty");
    assert!(trail(&store, "w").await.is_empty());
    assert_eq!(store.revision(&ws("w")).await.unwrap(), revision);

    let once = || Batch {
        request: Some((request("r"), b"o".to_vec())),
        ..telling("once", 9, put(meta("A"), at(1), rec(2, b"a")))
    };
    assert_eq!(run(&store, "w", once()).await, "done");
    assert_eq!(run(&store, "w", once()).await, "replayed o");
    assert_eq!(trail(&store, "w").await, ["once"]);
    // An entry alone is a change.
    let before = store.revision(&ws("w")).await.unwrap().unwrap();
    let alone = telling("alone", 9, check(meta("A"), at(2)));
    assert_eq!(run(&store, "w", alone).await, "done");
    assert!(store.revision(&ws("w")).await.unwrap().unwrap() > before);
    assert_eq!(trail(&store, "w").await, ["alone", "once"]);
}

pub(crate) async fn scans_run_in_byte_order(store: S) {
    // Bytes: digits 30.., upper case 41.., _ 5f, lower case 61..
    let ordered = ["A", "A0", "AA", "A_", "Aa", "B", "Z", "_", "_A", "__", "a", "a0", "aA", "z"];
    for name in ["z", "_", "a0", "A_", "B", "A", "__", "aA", "AA", "Z", "a", "Aa", "_A", "A0"] {
        set(&store, "w", meta(name), rec(1, name.as_bytes())).await;
    }
    let found = store.scan(&ws("w"), Key::METADATA, None, 100).await.unwrap();
    let names: Vec<_> = found.iter().map(|(_, r)| str::from_utf8(&r.bytes).unwrap()).collect();
    assert_eq!(names, ordered);
    assert_eq!(found[0].1.revision, Revision::from_u64(1));
    assert_eq!(keys(&store, "w", Key::METADATA, None, 3).await, ["A", "A0", "AA"].map(meta));
    assert!(keys(&store, "w", Key::METADATA, None, 0).await.is_empty());
    assert_eq!(keys(&store, "w", "m/A", None, 100).await, ["A", "A0", "AA", "A_", "Aa"].map(meta));
}

pub(crate) async fn scans_go_on_after_a_key(store: S) {
    let mut all = Vec::new();
    for number in 0..25 {
        let key = meta(&format!("N{number:02}"));
        set(&store, "w", key.clone(), rec(1, b"x")).await;
        all.push(key);
    }
    let (mut found, mut after) = (Vec::new(), None);
    for size in [7, 7, 7, 4, 0] {
        let page = keys(&store, "w", Key::METADATA, after.as_ref(), 7).await;
        assert_eq!(page.len(), size);
        after = page.last().cloned().or(after);
        found.extend(page);
    }
    assert_eq!(found, all);
    // After a key that is not there, the last one, and one before the prefix.
    assert_eq!(keys(&store, "w", "m/", Some(&meta("N10x")), 1).await, [meta("N11")]);
    assert!(keys(&store, "w", "m/", Some(&meta("N24")), 9).await.is_empty());
    assert_eq!(keys(&store, "w", "m/", Some(&Key::active_data_key()), 1).await, [meta("N00")]);
}

pub(crate) async fn keys_are_those_that_a_scan_finds(store: S) {
    let names = ["Ab", "AB", "a_", "aB", "B"];
    for (revision, name) in (1..).zip(names) {
        let one = batch([put(meta(name), None, rec(revision, b"x"))]);
        assert_eq!(run(&store, "w", one).await, "done");
    }
    for (prefix, limit) in [("m/", 9), ("m/", 2), ("m/a", 9), ("m/A", 9), ("", 9), ("x", 9)] {
        let scanned = store.scan(&ws("w"), prefix, None, limit).await.unwrap();
        let scanned: Vec<Key> = scanned.into_iter().map(|(key, _)| key).collect();
        assert_eq!(store.keys(&ws("w"), prefix, limit).await.unwrap(), scanned, "{prefix}");
    }
    assert_eq!(store.keys(&ws("w"), "m/a", 9).await.unwrap(), [meta("aB"), meta("a_")]);
    assert!(store.keys(&ws("other"), "m/", usize::MAX).await.unwrap().is_empty());
}

pub(crate) async fn scans_keep_to_their_prefix(store: S) {
    let name = SecretName::parse("A").unwrap();
    for key in [Key::active_data_key(), meta("A"), Key::value(&name)] {
        set(&store, "w", key, rec(1, b"x")).await;
    }
    assert_eq!(keys(&store, "w", Key::METADATA, None, 9).await, [meta("A")]);
    assert_eq!(keys(&store, "w", Key::VALUE, None, 9).await, [Key::value(&name)]);
    assert_eq!(keys(&store, "w", Key::DATA_KEY, None, 9).await, [Key::active_data_key()]);
    assert_eq!(keys(&store, "w", "", None, usize::MAX).await.len(), 3);
    assert!(keys(&store, "w", "m/B", None, 9).await.is_empty());
    // After the end of the prefix's range there is nothing.
    assert!(keys(&store, "w", Key::METADATA, Some(&Key::value(&name)), 9).await.is_empty());
}

async fn list(store: &S) -> BTreeSet<String> {
    let (mut found, mut cursor) = (BTreeSet::new(), None);
    loop {
        let (page, next) = store.workspaces(cursor.as_ref()).await.unwrap();
        found.extend(page.iter().map(ToString::to_string));
        match next {
            Some(next) => cursor = Some(next),
            None => return found,
        }
    }
}

pub(crate) async fn workspaces_are_listed(store: S) {
    // More than one page of either engine.
    let all: BTreeSet<_> = (0..1_203).map(|number| format!("ws_{number}")).collect();
    let writes: Vec<_> = all.iter().map(|w| set(&store, w, meta("A"), rec(1, b"x"))).collect();
    futures_util::future::join_all(writes).await;
    assert_eq!(list(&store).await, all);
    assert_eq!(run(&store, "ws_7", batch([delete(meta("A"), None)])).await, "done");
    let remember = Batch { request: Some((request("r"), vec![])), ..Batch::default() };
    assert_eq!(run(&store, "only-a-request", remember).await, "done");
    let mut left = all;
    left.remove("ws_7");
    assert_eq!(list(&store).await, left);
}

pub(crate) async fn workspaces_are_isolated(store: S) {
    // Prefixes of one another, and names that look like parts of a key.
    let names = ["w", "w1", "w1-", "w1-m", "W1", "w1_records", "records", "m"];
    for (revision, name) in (1..).zip(names) {
        set(&store, name, meta("A"), rec(revision, name.as_bytes())).await;
    }
    for (revision, name) in (1..).zip(names) {
        assert_eq!(show(&store, name, &meta("A")).await, Some((revision, name.to_owned())));
        assert_eq!(keys(&store, name, "", None, 9).await, [meta("A")]);
    }
    assert_eq!(run(&store, "w1", batch([delete(meta("A"), None)])).await, "done");
    assert!(keys(&store, "w1", "", None, 9).await.is_empty());
    for name in names.into_iter().filter(|name| *name != "w1") {
        assert_eq!(keys(&store, name, "", None, 9).await, [meta("A")], "{name}");
    }
}

pub(crate) async fn bytes_are_kept_exactly(store: S) {
    let all: Vec<u8> = (0..=255).chain((0..=255).rev()).collect();
    for bytes in [&all[..], b"", b"\0", b"\r\n$-1\r\n", b"\"quoted\\", b"%s%d"] {
        set(&store, "w", meta("A"), rec(u64::MAX, bytes)).await;
        let back = get(&store, "w", &meta("A")).await.unwrap();
        assert!(back == rec(u64::MAX, bytes));
        let scanned = store.scan(&ws("w"), "m/", None, 9).await.unwrap();
        assert!(scanned[0].1 == rec(u64::MAX, bytes));
    }
}

pub(crate) async fn large_records_are_kept(store: S) {
    let big = |seed: usize| -> Vec<u8> {
        (0..70_000).map(|i| u8::try_from((i * 31 + seed) % 251).unwrap()).collect()
    };
    let names: Vec<_> = (0..20).map(|number| meta(&format!("N{number}"))).collect();
    let mut change = Batch::default();
    for (seed, key) in names.iter().enumerate() {
        change.operations.push(put(key.clone(), Some(Expect::Absent), rec(1, &big(seed))));
    }
    assert_eq!(run(&store, "w", change).await, "done");
    let found = store.read(&ws("w"), &names).await.unwrap();
    for (seed, record) in found.into_iter().enumerate() {
        assert!(record.unwrap().bytes == big(seed));
    }
}

pub(crate) async fn one_of_many_writers_wins(store: S) {
    set(&store, "w", meta("A"), rec(1, b"start")).await;
    let race = |n: u64| {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            let change = batch([put(meta("A"), at(1), rec(100 + n, n.to_string().as_bytes()))]);
            (n, run(&store, "w", change).await)
        })
    };
    let tasks: Vec<_> = (0..100).map(race).collect();
    let mut winners = Vec::new();
    for task in tasks {
        let (n, result) = task.await.unwrap();
        match result.as_str() {
            "done" => winners.push(n),
            other => assert_eq!(other, "conflict m/A"),
        }
    }
    assert_eq!(winners.len(), 1);
    let winner = winners[0];
    assert_eq!(show(&store, "w", &meta("A")).await, Some((100 + winner, winner.to_string())));
}

pub(crate) async fn racing_batches_never_mix(store: S) {
    let write = |n: u64| {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            let both = ["A", "B"].map(|name| put(meta(name), None, rec(n, b"x")));
            assert_eq!(run(&store, "w", batch(both)).await, "done");
        })
    };
    let read = |_| {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            let pair = store.read(&ws("w"), &["A", "B"].map(meta)).await.unwrap();
            assert!(pair[0].as_ref().map(|r| r.revision) == pair[1].as_ref().map(|r| r.revision));
        })
    };
    let tasks: Vec<_> = (1..=40).flat_map(|n| [write(n), read(n)]).collect();
    for task in tasks {
        task.await.unwrap();
    }
}

pub(crate) async fn a_dropped_commit_is_whole_or_nothing(store: S) {
    for round in 0..20_u64 {
        let both = ["A", "B"].map(|name| put(meta(name), None, rec(round, &[7; 5_000])));
        let workspace = ws("w");
        let commit = store.commit(&workspace, batch(both));
        let patience = std::time::Duration::from_micros(round * 50);
        // Either it is done by then or its future is dropped.
        let _ = tokio::time::timeout(patience, commit).await;
        let pair = store.read(&ws("w"), &["A", "B"].map(meta)).await.unwrap();
        assert!(pair[0].as_ref().map(|r| r.revision) == pair[1].as_ref().map(|r| r.revision));
    }
}

pub(crate) async fn a_healthy_store_says_so(store: S) {
    assert_eq!(store.health().await, Ok(()));
    assert!(list(&store).await.is_empty());
}
