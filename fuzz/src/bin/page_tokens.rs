#![no_main]
//! A page token that a listing takes is the one it gave, and no other listing
//! takes it. First a byte that tells what is listed, then the token; `*` in its
//! place stands for the proper seal, which no mutation would find.

use libfuzzer_sys::fuzz_target;
use workflow_secrets::{domain::SecretName, service::fuzzing};
use workflow_secrets_fuzz::CANARY;

const LISTING: [&str; 3] = ["ListSecrets", "spiffe://td/caller", "ws"];
/// The same text, cut elsewhere.
const OTHER: [&str; 3] = ["ListSecrets", "spiffe://td/calle", "rws"];

fuzz_target!(|data: &[u8]| {
    let Some((kind, token)) = data.split_first() else { return };
    let Ok(token) = std::str::from_utf8(token) else { return };
    let name = SecretName::parse("A").expect("a name");
    let first = fuzzing::token_after(&LISTING, &name);
    let seal = first.strip_suffix('A').expect("the place comes last");
    let token = match token.strip_prefix('*') {
        Some(place) => format!("{seal}{place}"),
        None => token.to_owned(),
    };
    match fuzzing::page_token(*kind, &LISTING, &token) {
        Ok(None) => assert!(token.is_empty()),
        Ok(Some(again)) => {
            assert_eq!(again, token);
            assert!(fuzzing::page_token(*kind, &OTHER, &token).is_err());
            // A place is a name, perhaps with a uid, or a number.
            assert!(token.len() <= seal.len() + 128 + 1 + 36);
        }
        Err(error) => assert!(!format!("{error:?}").contains(CANARY)),
    }
});
