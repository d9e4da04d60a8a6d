#![no_main]
//! A policy file is taken whole or refused whole, with lines that are there, and
//! grants nothing to those it does not name.

use libfuzzer_sys::fuzz_target;
use workflow_secrets::{
    domain::{CallerId, WorkspaceId},
    service::access::Policy,
};
use workflow_secrets_fuzz::CANARY;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match Policy::parse(text) {
        Ok(policy) => {
            let stranger = CallerId::parse("spiffe://nobody/is-named-so").expect("an id");
            let workspace = WorkspaceId::parse("ws").expect("a workspace");
            if !text.contains("nobody") {
                let grants = policy.grants(&stranger, &workspace);
                assert!(!grants.resolve() && !grants.manage_user() && !grants.list());
                assert!(!grants.manage_keys() && !grants.any_integration());
            }
            // No caller has an empty key.
            assert!(Policy::parse(&format!("{text}\n\"\" = 1\n")).is_err(), "not refused whole");
        }
        Err(errors) => {
            let (lines, faults) = (1 + text.split('\n').count(), errors.faults());
            assert!(!faults.is_empty());
            assert!(faults.is_sorted_by_key(|fault| fault.line));
            for fault in faults {
                assert!((1..=lines).contains(&fault.line), "line {}", fault.line);
                // Keys are named, values are not: of these there is one.
                let key = text.contains(&format!("{CANARY} =")) || text.contains('"');
                assert!(key || !fault.fault.contains(CANARY), "{}", fault.fault);
            }
        }
    }
});
