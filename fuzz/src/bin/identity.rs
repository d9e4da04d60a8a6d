#![no_main]
//! A certificate names one SPIFFE id, as its bytes have it, or none. Headers give
//! an actor and a trace, or are refused without being repeated.
//!
//! If the first byte is 0, a certificate follows; else headers, apart by bytes
//! 0xff, each with a byte before it that tells its name.

use libfuzzer_sys::fuzz_target;
use workflow_secrets::{domain::CallerId, grpc::fuzzing};

const NAMES: [&str; 3] = ["x-actor", "x-actor-bin", "traceparent"];

fuzz_target!(|data: &[u8]| match data.split_first() {
    Some((0, certificate)) => {
        if let Ok(id) = fuzzing::identify(certificate) {
            let text = id.as_str();
            assert!(text.starts_with("spiffe://") && text.is_ascii());
            let uri = [&[0x86], text.as_bytes()].map(<[u8]>::to_vec);
            // Tag, length, text: a name of type URI, found without a parser.
            let sans = certificate.windows(text.len()).filter(|part| *part == text.as_bytes());
            assert!(sans.count() >= 1, "{uri:?} is not there");
            assert!(CallerId::parse(text).is_ok_and(|again| again == id));
        }
    }
    Some((_, headers)) => {
        let headers = headers.split(|byte| *byte == 0xff).take(8);
        let headers = headers.filter_map(<[u8]>::split_first);
        let headers: Vec<_> = headers
            .map(|(name, value)| (NAMES[usize::from(*name) % NAMES.len()], value))
            .collect();
        let caller = CallerId::parse("spiffe://td/caller").expect("an id");
        match fuzzing::metadata(caller, &headers) {
            Ok([actor, trace]) => {
                let actors = headers.iter().filter(|(name, _)| name.starts_with("x-actor"));
                if let Some(actor) = actor {
                    assert!((1..=256).contains(&actor.chars().count()));
                    assert!(!actor.chars().any(char::is_control));
                    assert!(actors.clone().any(|(_, value)| *value == actor.as_bytes()));
                }
                if let Some(trace) = trace {
                    assert!(trace.len() == 32 && trace.bytes().any(|byte| byte != b'0'));
                }
            }
            Err((field, _)) => assert!(NAMES[..2].contains(&field)),
        }
    }
    None => {}
});
