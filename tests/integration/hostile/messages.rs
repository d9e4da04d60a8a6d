//! Messages that are large, or become so, and answers that nobody reads.

use std::{process::Command, time::Duration};

use futures_util::future::join_all;
use prost::Message as _;
use tokio::time::timeout;
use tonic::{Code, transport::Channel};

use super::{CUT, RESOLVE, Siege};
use crate::support::{
    documents::render_json,
    edge::{announce, call, refusal, stalled},
    http2::{INITIAL_WINDOW, WINDOW_UPDATE, data, frame, message, open_call},
    platform::{create, reason, resolve},
};

const RENDER: &str = "/workflowsecrets.v1.SecretsService/RenderTemplate";

type Reason = Option<(Code, String)>;

fn because(code: Code, why: &str) -> Reason {
    Some((code, why.to_owned()))
}

/// How calls with such a message, which is not told to be the last, are refused.
async fn refused(channel: &Channel, path: &str, message: &[u8], many: usize) -> Vec<Reason> {
    let calls = (0..many).map(|_| stalled(channel, path, message.to_vec()));
    let answers = join_all(calls).await;
    answers.iter().map(|answer| refusal(answer).map(|status| reason(&status))).collect()
}

#[tokio::test]
async fn what_is_too_large_is_refused_by_its_length_alone() {
    let siege = Siege::start().await;
    for caller in ["stranger", "executor"] {
        let channel = siege.channel(Some(caller)).await;
        for (path, most) in [(RESOLVE, 256 * 1024), (RENDER, 1_280 * 1024)] {
            for length in [most + 1, u32::MAX] {
                let head = announce(length);
                let attack = refused(&channel, path, &head, 50);
                for told in siege.under("too large", attack).await {
                    assert_eq!(told, because(Code::ResourceExhausted, "MESSAGE_TOO_LARGE"));
                }
            }
        }
        // Messages one after the other, where one is due: 60 MiB.
        let piece = message(&vec![0x7a; 10_000]);
        let endless = piece.repeat(6_000);
        let answer = siege.under("messages", refused(&channel, RESOLVE, &endless, 1)).await;
        assert_eq!(answer, [because(Code::ResourceExhausted, "MESSAGE_TOO_LARGE")]);
    }
    siege.end().await;
}

#[tokio::test]
async fn a_gzip_bomb_is_not_opened() {
    let siege = Siege::start().await;
    let bomb = "head -c 200M /dev/zero | gzip -9";
    let bomb = Command::new("sh").args(["-c", bomb]).output().unwrap().stdout;
    assert!((100_000..250_000).contains(&bomb.len()));
    let mut bomb = message(&bomb);
    bomb[0] = 1;
    let channel = siege.channel(Some("executor")).await;
    let attack = join_all((0..50).map(|_| call(&channel, RESOLVE, bomb.clone())));
    for answer in siege.under("gzip", attack).await {
        assert!(refusal(&answer).is_some_and(|status| status.code() != Code::Ok));
    }
    siege.end().await;
}

#[tokio::test]
async fn messages_that_grow_when_decoded_are_refused() {
    let siege = Siege::start().await;
    let executor = siege.channel(Some("executor")).await;
    let stranger = siege.channel(Some("stranger")).await;

    let names: Vec<_> = (0..10_000).map(|index| format!("N{index}")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let names = message(&resolve("ws", &names).encode_to_vec());
    let attack = join_all((0..10).map(|_| call(&executor, RESOLVE, names.clone())));
    for answer in siege.under("10,000 names", attack).await {
        let told = reason(&refusal(&answer).unwrap());
        assert_eq!(told, (Code::ResourceExhausted, "TOO_MANY_CREDENTIALS".to_owned()));
    }

    // 130,000 credentials, with nothing in them, from calls that never end.
    let empty = message(&[0x12, 0].repeat(130_000));
    for channel in [&executor, &stranger] {
        let outcome = siege.under("empty names", refused(channel, RESOLVE, &empty, 150)).await;
        let timeout = because(Code::DeadlineExceeded, "TIMEOUT");
        let overloaded = because(Code::ResourceExhausted, "OVERLOADED");
        assert!(outcome.iter().all(|told| *told == timeout || *told == overloaded));
        assert!(outcome.contains(&timeout) && outcome.contains(&overloaded));
    }

    // Groups within groups, which nobody knows.
    let deep = message(&[0x7b].repeat(250_000));
    let attack = join_all((0..10).map(|_| call(&executor, RESOLVE, deep.clone())));
    for answer in siege.under("groups", attack).await {
        let told = reason(&refusal(&answer).unwrap());
        assert_eq!(told, (Code::InvalidArgument, "MALFORMED_MESSAGE".to_owned()));
    }
    siege.end().await;
}

#[tokio::test]
async fn deep_json_is_refused() {
    let siege = Siege::start().await;
    let executor = siege.channel(Some("executor")).await;
    for piece in ["[", r#"{"a":"#] {
        let deep = piece.repeat(1024 * 1024 / piece.len());
        let deep = message(&render_json("ws", &deep).encode_to_vec());
        let attack = join_all((0..4).map(|_| call(&executor, RENDER, deep.clone())));
        for answer in siege.under("deep JSON", attack).await {
            let told = reason(&refusal(&answer).unwrap());
            assert_eq!(told, (Code::InvalidArgument, "INVALID_FIELD".to_owned()));
        }
    }
    siege.end().await;
}

/// Nearly whole messages: 100 MiB and more, if all were kept.
#[tokio::test]
async fn messages_that_never_end_are_kept_within_bounds() {
    let siege = Siege::start().await;
    let executor = siege.channel(Some("executor")).await;
    for (path, length, many) in [(RESOLVE, 256 * 1024, 200), (RENDER, 1_280 * 1024, 90)] {
        let mut nearly = message(&vec![0; length]);
        nearly.truncate(length);
        let outcome = siege.under("endless", refused(&executor, path, &nearly, many)).await;
        let timeout = because(Code::DeadlineExceeded, "TIMEOUT");
        let overloaded = because(Code::ResourceExhausted, "OVERLOADED");
        assert!(outcome.iter().all(|told| *told == timeout || *told == overloaded));
        assert!(outcome.contains(&timeout) && outcome.contains(&overloaded));
    }
    siege.end().await;
}

/// 6 MiB each: 384 MiB, if all were kept.
#[tokio::test]
async fn answers_that_nobody_reads_are_kept_within_bounds() {
    let siege = Siege::start().await;
    let mut writer = siege.platform.client(&siege.replica, "platform").await;
    writer.create_secret(create("ws", "LARGE", &"v".repeat(65_536))).await.unwrap();
    let names: Vec<_> = (0..100).map(|index| format!("LARGE=A{index}")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let request = message(&resolve("ws", &names).encode_to_vec());
    // Takes nothing of a stream; or all of it, but reads nothing.
    for window in [0, 0x3fff_ffff_u32] {
        let mut one = siege.http2(Some("executor"), &[(INITIAL_WINDOW, window)]).await;
        if window > 0 {
            let more = (window - 65_535).to_be_bytes();
            one.send(&frame(WINDOW_UPDATE, 0, 0, &more)).await.unwrap();
        }
        let attack = async {
            for index in 0..60 {
                let stream = index * 2 + 1;
                let call = [open_call(stream, RESOLVE, &[]), data(stream, &request)].concat();
                let sent = one.send(&call).await;
                // Messages are sent whatever window there is for them: where the server
                // cannot write, it may end the connection for that.
                assert!(sent.is_ok() || window > 0 && index > 20, "{sent:?} at {index}");
                if sent.is_err() {
                    break;
                }
            }
            // Time enough to make them all.
            siege.others.until_served(30).await;
            if window > 0 {
                return;
            }
            // Read after all, each comes to an end: whole, or withheld. So does the
            // connection, if the sign of life that it owes is long due.
            let listener = one.listen();
            let more = |stream| frame(WINDOW_UPDATE, 0, stream, &(8_u32 << 20).to_be_bytes());
            let all: Vec<_> = (0..60).flat_map(|index| more(index * 2 + 1)).collect();
            let _ = one.send(&[more(0).repeat(60), all].concat()).await;
            let all = async {
                while listener.heard().ended < 60 && !listener.ended() {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            };
            timeout(2 * CUT, all).await.expect("ended");
        };
        siege.under("unread answers", attack).await;
    }
    siege.end().await;
}
