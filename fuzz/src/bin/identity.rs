#![no_main]
//! A certificate names one SPIFFE id, as its bytes have it, or none. Headers give
//! an actor and a trace, or are refused without being repeated. No call may take
//! longer than the service allows.
//!
//! If the first byte is 0, a certificate follows; if 2, a grpc-timeout; else headers, apart by bytes
//! 0xff, each with a byte before it that tells its name.

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use workflow_secrets::{domain::CallerId, grpc::fuzzing};

const NAMES: [&str; 3] = ["x-actor", "x-actor-bin", "traceparent"];

fuzz_target!(|data: &[u8]| match data.split_first() {
    Some((0, certificate)) => {
        if let Ok(id) = fuzzing::identify(certificate) {
            let text = id.as_str();
            assert!(text.starts_with("spiffe://") && text.is_ascii());
            // As it stands there, found without a parser.
            let mut parts = certificate.windows(text.len());
            assert!(parts.any(|part| part == text.as_bytes()));
            assert!(CallerId::parse(text).is_ok_and(|again| again == id));
        }
    }
    Some((2, told)) => {
        const LONGEST: Duration = Duration::from_secs(10);
        let (call, stream) = fuzzing::call_time(told, LONGEST);
        assert!(call <= LONGEST);
        // Eight digits of hours.
        assert!(stream.is_none_or(|all| all <= Duration::from_secs(99_999_999 * 3_600)));
        let proper = (2..=9).contains(&told.len())
            && told[..told.len() - 1].iter().all(u8::is_ascii_digit)
            && b"HMSmun".contains(&told[told.len() - 1]);
        assert_eq!(stream.is_some(), proper);
    }
    Some((_, headers)) => {
        let headers = headers.split(|byte| *byte == 0xff).take(8);
        let headers = headers.filter_map(<[u8]>::split_first);
        let headers: Vec<_> =
            headers.map(|(name, value)| (NAMES[usize::from(*name) % NAMES.len()], value)).collect();
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
