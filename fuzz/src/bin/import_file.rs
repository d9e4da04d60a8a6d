#![no_main]
//! A file to import is read as names and values, each name once, which JSON that
//! others write of them is read as too; or refused by line, without its text.
//!
//! The first byte tells whether it is a .env file or JSON.

use std::collections::BTreeSet;

use libfuzzer_sys::fuzz_target;
use workflow_secrets::{cli::import::fuzzing::entries, config::Format};
use workflow_secrets_fuzz::CANARY;

fuzz_target!(|data: &[u8]| {
    let Some((format, bytes)) = data.split_first() else { return };
    let format = if format % 2 == 0 { Format::Env } else { Format::Json };
    match entries(format, bytes) {
        Ok(found) => {
            let names: BTreeSet<_> = found.iter().map(|(name, _)| name).collect();
            assert_eq!(names.len(), found.len(), "a name twice");
            // By hand, since the order counts.
            let members: Vec<_> = found
                .iter()
                .map(|(name, value)| {
                    assert!((1..=64 * 1024).contains(&value.len()));
                    format!("{name:?}: {}", serde_json::to_string(value).expect("JSON"))
                })
                .collect();
            let json = format!("{{{}}}", members.join(",\n"));
            assert!(entries(Format::Json, json.as_bytes()).is_ok_and(|again| again == found));
        }
        Err(faults) => {
            let lines = 1 + bytes.split(|byte| *byte == b'\n').count();
            assert!(!faults.is_empty());
            for (line, told) in faults {
                assert!((1..=lines).contains(&line), "line {line}");
                assert!(!told.contains(CANARY), "{told}");
            }
        }
    }
});
