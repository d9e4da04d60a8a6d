//! Floods of frames that cost the sender little.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::timeout;

use super::{CUT, HEALTH, RESOLVE, Siege};
use crate::support::http2::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, Heard, Http2, PING, PRIORITY, RST_STREAM,
    SETTINGS, WINDOW_UPDATE, call_fields, field, frame, open_call,
};

/// ENHANCE_YOUR_CALM.
const CALM: u32 = 11;

/// Frames sent at once.
const TOGETHER: usize = 200;

/// Who may flood: anybody, and who is granted nothing or something.
const ATTACKERS: [Option<&str>; 3] = [None, Some("stranger"), Some("executor")];

/// Sends what `next` makes of the number of a stream, until the connection is
/// cut or so many were sent. Tells whether it was cut, and what came.
async fn flood(mut one: Http2, many: u32, next: impl Fn(u32) -> Vec<u8>) -> (bool, Heard) {
    let heard = one.listen();
    let streams: Vec<_> = (0..many).map(|index| index * 2 + 1).collect();
    for some in streams.chunks(TOGETHER) {
        let bytes: Vec<_> = some.iter().flat_map(|stream| next(*stream)).collect();
        if one.send(&bytes).await.is_err() {
            break;
        }
    }
    // A connection that lives on answers to this.
    let _ = one.send(&frame(PING, 0, 0, b"still on")).await;
    let told = async {
        while !heard.ended() && heard.heard().pongs == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(CUT, told).await.expect("neither cut nor alive");
    (heard.heard().pongs == 0, heard.heard())
}

/// CVE-2023-44487.
#[tokio::test]
async fn rapid_resets_are_cut_off() {
    let siege = Siege::start().await;
    let reset = frame(RST_STREAM, 0, 0, &8_u32.to_be_bytes());
    for caller in ATTACKERS {
        let one = siege.http2(caller, &[]).await;
        let path = if caller.is_none() { HEALTH } else { RESOLVE };
        let next = |stream: u32| {
            let mut reset = reset.clone();
            reset[5..9].copy_from_slice(&stream.to_be_bytes());
            [open_call(stream, path, &[]), reset].concat()
        };
        let (cut, heard) = siege.under("resets", flood(one, 20_000, next)).await;
        assert!(cut && heard.goaway.is_none_or(|code| code == CALM), "{caller:?}: {heard:?}");
    }
    siege.end().await;
}

/// CVE-2025-8671: the server is made to reset.
#[tokio::test]
async fn resets_that_the_server_is_made_to_send_are_cut_off() {
    let siege = Siege::start().await;
    for caller in ATTACKERS {
        let one = siege.http2(caller, &[]).await;
        let path = if caller.is_none() { HEALTH } else { RESOLVE };
        let nothing = 0_u32.to_be_bytes();
        let next = |stream: u32| {
            [open_call(stream, path, &[]), frame(WINDOW_UPDATE, 0, stream, &nothing)].concat()
        };
        let (cut, heard) = siege.under("made to reset", flood(one, 20_000, next)).await;
        assert!(cut, "{caller:?}: {heard:?}");
    }
    siege.end().await;
}

#[tokio::test]
async fn streams_beyond_the_limit_are_refused() {
    let siege = Siege::start().await;
    for caller in ATTACKERS {
        let one = siege.http2(caller, &[]).await;
        let path = if caller.is_none() { HEALTH } else { RESOLVE };
        let next = |stream: u32| open_call(stream, path, &[]);
        let (cut, heard) = siege.under("streams", flood(one, 1_000, next)).await;
        // Refused for want of an identity, or one by one.
        assert!(cut || heard.resets + heard.answers >= 700, "{caller:?}: {heard:?}");
    }
    siege.end().await;
}

/// CVE-2024-27316 and its like.
#[tokio::test]
async fn header_blocks_without_end_are_cut_off() {
    let siege = Siege::start().await;
    for caller in ATTACKERS {
        for size in [0, 1, 1_000] {
            let mut one = siege.http2(caller, &[]).await;
            one.send(&frame(HEADERS, 0, 1, &call_fields(RESOLVE))).await.unwrap();
            // Text that is never more than half of a field.
            let piece = frame(CONTINUATION, 0, 1, &vec![b'x'; size]);
            let attack = flood(one, 30_000, |_| piece.clone());
            let (cut, heard) = siege.under("CONTINUATION", attack).await;
            assert!(cut, "{caller:?} {size}: {heard:?}");
        }
    }
    siege.end().await;
}

/// Metadata that takes far more room than it had on its way, in calls that
/// wait for their message.
#[tokio::test]
async fn many_header_fields_take_no_room() {
    let siege = Siege::start().await;
    let many: Vec<u8> = (0..400).flat_map(|index| field(&format!("x{index}"), "")).collect();
    let attack = join_all((0..8).map(async |_| {
        let one = siege.http2(None, &[]).await;
        flood(one, 200, |stream| open_call(stream, HEALTH, &many)).await
    }));
    for (cut, heard) in siege.under("header fields", attack).await {
        assert!(!cut, "{heard:?}");
    }
    for caller in [None, Some("executor")] {
        let path = if caller.is_none() { HEALTH } else { RESOLVE };
        // More than the server takes.
        let one = siege.http2(caller, &[]).await;
        let large = field("x", &"x".repeat(15_000));
        let next = |stream| {
            let head = frame(HEADERS, 0, stream, &call_fields(path));
            let more = frame(CONTINUATION, 0, stream, &large);
            [head, more, frame(CONTINUATION, END_HEADERS, stream, &large)].concat()
        };
        let (cut, heard) = siege.under("large headers", flood(one, 500, next)).await;
        assert!(cut || heard.resets + heard.answers > 100, "{caller:?}: {heard:?}");
    }
    siege.end().await;
}

/// Frames that ask for an answer, which the sender never reads, and frames
/// that mean nothing.
#[tokio::test]
async fn idle_frames_are_cut_off_or_do_no_harm() {
    let siege = Siege::start().await;
    for caller in ATTACKERS {
        for (what, one) in [
            ("PING", frame(PING, 0, 0, b"12345678")),
            ("SETTINGS", frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 9])),
        ] {
            let mut unread = siege.http2(caller, &[]).await;
            let many = one.repeat(1_000);
            let attack = async {
                for _ in 0..100 {
                    // Not taken any more, since nobody reads the answers.
                    if unread.send(&many).await.is_err() {
                        break;
                    }
                }
            };
            siege.under(what, attack).await;
        }
        for (what, one) in [
            ("WINDOW_UPDATE", frame(WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes())),
            ("PRIORITY", frame(PRIORITY, 0, 3, &[0, 0, 0, 1, 0])),
            ("unknown", frame(0xbe, 0xff, 0, &[7; 64])),
            ("empty DATA", frame(DATA, 0, 1, &[])),
        ] {
            let mut connection = siege.http2(caller, &[]).await;
            connection.send(&open_call(1, RESOLVE, &[])).await.unwrap();
            siege.under(what, flood(connection, 10_000, |_| one.clone())).await;
        }
    }
    // Bytes one by one, of a message that is waited for.
    let mut one = siege.http2(Some("executor"), &[]).await;
    one.send(&open_call(1, RESOLVE, &[])).await.unwrap();
    one.send(&frame(DATA, 0, 1, &[0, 0, 3, 0, 0])).await.unwrap();
    let byte = frame(DATA, 0, 1, b"x");
    siege.under("tiny DATA", flood(one, 50_000, |_| byte.clone())).await;
    // After the end of its stream.
    let mut one = siege.http2(Some("executor"), &[]).await;
    one.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &call_fields(RESOLVE))).await.unwrap();
    let late = frame(DATA, 0, 1, &[7; 1_024]);
    let (cut, heard) = siege.under("late DATA", flood(one, 10_000, |_| late.clone())).await;
    assert!(cut || heard.resets > 0, "{heard:?}");
    siege.end().await;
}
