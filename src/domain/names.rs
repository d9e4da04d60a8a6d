//! Names and ids, parsed once at the door.

use std::{fmt, sync::Arc};

/// Why a text was refused. Never holds the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It breaks the rule told here.
    Malformed(&'static str),
    /// It is longer than allowed.
    TooLarge(&'static str),
}

impl Refusal {
    /// The rule, for people.
    pub fn rule(self) -> &'static str {
        match self {
            Refusal::Malformed(rule) | Refusal::TooLarge(rule) => rule,
        }
    }
}

/// Keys that change an object's prototype when JavaScript assigns them.
const RESERVED: [&str; 3] = ["__proto__", "constructor", "prototype"];

fn identifier(text: &str) -> Result<(), Refusal> {
    let mut bytes = text.bytes();
    let head = bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
    if !head || text.len() > 128 || !bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_') {
        return Err(Refusal::Malformed("must match ^[A-Za-z_][A-Za-z0-9_]{0,127}$"));
    }
    if RESERVED.contains(&text) {
        return Err(Refusal::Malformed("must not be __proto__, constructor or prototype"));
    }
    Ok(())
}

fn workspace(text: &str) -> Result<(), Refusal> {
    let mut bytes = text.bytes();
    let head = bytes.next().is_some_and(|b| b.is_ascii_alphanumeric());
    let tail = bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if head && tail && text.len() <= 128 {
        Ok(())
    } else {
        Err(Refusal::Malformed("must match ^[A-Za-z0-9][A-Za-z0-9_-]{0,127}$"))
    }
}

fn token(text: &str, max: usize, extra: &[u8]) -> bool {
    !text.is_empty()
        && text.len() <= max
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || extra.contains(&b))
}

fn integration(text: &str) -> Result<(), Refusal> {
    let head = text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    if head && token(text, 64, b"_.-") {
        Ok(())
    } else {
        Err(Refusal::Malformed("must match ^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"))
    }
}

fn opaque_id(text: &str) -> Result<(), Refusal> {
    if token(text, 128, b"_.:-") {
        Ok(())
    } else {
        Err(Refusal::Malformed("must match ^[A-Za-z0-9_.:-]{1,128}$"))
    }
}

fn description(text: &str) -> Result<(), Refusal> {
    if text.chars().count() > 1_024 {
        return Err(Refusal::TooLarge("must have at most 1,024 characters"));
    }
    Ok(())
}

fn actor(text: &str) -> Result<(), Refusal> {
    // Zero-width characters, changes of writing direction, byte-order mark.
    let invisible = |c| matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
    let unclear = |c: char| c.is_control() || invisible(c);
    if text.is_empty() || text.chars().count() > 256 || text.chars().any(unclear) {
        return Err(Refusal::Malformed(
            "must have 1 to 256 characters, none of them a control character or invisible",
        ));
    }
    // Recorded where otherwise a proven id stands, so it must not look like one.
    let head = text.get(..9).unwrap_or_default();
    if text.trim() != text || head.eq_ignore_ascii_case("spiffe://") {
        return Err(Refusal::Malformed(
            "must not start or end with blanks, nor look like a SPIFFE id",
        ));
    }
    Ok(())
}

fn trace_label(text: &str) -> Result<(), Refusal> {
    if text.len() <= 128 && text.bytes().all(|b| b.is_ascii_graphic() || b == b' ') {
        Ok(())
    } else {
        Err(Refusal::Malformed("must have at most 128 printable ASCII characters"))
    }
}

fn trace_id(text: &str) -> Result<(), Refusal> {
    let hex = text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    if text.len() == 32 && hex && text.bytes().any(|b| b != b'0') {
        Ok(())
    } else {
        Err(Refusal::Malformed("must be 32 lower-case hex digits, not all zero"))
    }
}

fn caller_id(text: &str) -> Result<(), Refusal> {
    // SPIFFE-ID, section 2: scheme, trust domain, path; at most 2,048 bytes.
    let malformed = Err(Refusal::Malformed("must be a SPIFFE id: spiffe://trust-domain/path"));
    let Some(rest) = text.strip_prefix("spiffe://") else {
        return malformed;
    };
    let (domain, path) = rest.split_once('/').unwrap_or((rest, ""));
    let domain_ok = !domain.is_empty()
        && domain.len() <= 255
        && domain.bytes().all(|b| {
            b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_')
        });
    let segment_ok = |s: &str| {
        !s.is_empty()
            && s != "."
            && s != ".."
            && s.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
    };
    let path_ok = !rest.contains('/') || path.split('/').all(segment_ok);
    if domain_ok && path_ok && text.len() <= 2_048 { Ok(()) } else { malformed }
}

macro_rules! text_types {
    ($($(#[$doc:meta])* $name:ident, $check:expr;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Parses a text.
            ///
            /// # Errors
            /// The rule that it breaks.
            pub fn parse(text: &str) -> Result<Self, Refusal> {
                let check: fn(&str) -> Result<(), Refusal> = $check;
                check(text).map(|()| Self(text.into()))
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    )*};
}

text_types! {
    /// A workspace of the platform: `^[A-Za-z0-9][A-Za-z0-9_-]{0,127}$`.
    WorkspaceId, workspace;
    /// Name of a secret: `^[A-Za-z_][A-Za-z0-9_]{0,127}$`, case-sensitive.
    SecretName, identifier;
    /// Key of `context.secrets`; the same rule as a secret's name.
    Alias, identifier;
    /// An integration, such as `google_sheets`.
    Integration, integration;
    /// An integration's id of one connection.
    ConnectionId, opaque_id;
    /// Idempotency key (AIP-155).
    RequestId, opaque_id;
    /// Who holds a lease, as the caller tells it: best unique to one attempt.
    LeaseHolder, opaque_id;
    /// Free text for people, at most 1,024 characters.
    Description, description;
    /// The person behind a call, as the caller tells it; never trusted.
    Actor, actor;
    /// The caller: the SPIFFE id of its certificate.
    CallerId, caller_id;
    /// Workflow, for the audit stream. May be empty.
    WorkflowId, trace_label;
    /// Run, for the audit stream. May be empty.
    RunId, trace_label;
    /// W3C trace id.
    TraceId, trace_id;
    /// Deployment environment (`production`); part of every encryption context.
    Environment, integration;
}

impl CallerId {
    /// What the service does by itself. No certificate has this name: it is no
    /// SPIFFE id.
    pub fn service() -> Self {
        Self("workflow-secrets".into())
    }
}

impl Default for Description {
    fn default() -> Self {
        Self("".into())
    }
}

impl From<&SecretName> for Alias {
    fn from(name: &SecretName) -> Self {
        Self(Arc::clone(&name.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_follow_the_rule() {
        for good in ["A", "_", "_9", "STRIPE_KEY", "camelCase9", &"x".repeat(128)] {
            assert!(SecretName::parse(good).is_ok(), "{good}");
            assert!(Alias::parse(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "9A",
            "A-B",
            "A B",
            "Ä",
            "A\n",
            "a.b",
            "__proto__",
            "constructor",
            "prototype",
            &"x".repeat(129),
        ] {
            assert!(SecretName::parse(bad).is_err(), "{bad}");
            assert!(Alias::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn workspaces_follow_the_rule() {
        for good in ["a", "0", "ws_1", "0190b1d2-7c3e-7000-8000-000000000000", &"w".repeat(128)] {
            assert!(WorkspaceId::parse(good).is_ok(), "{good}");
        }
        for bad in ["", "_a", "-a", "a{b}", "a/b", "a b", "a\0", "é", &"w".repeat(129)] {
            assert!(WorkspaceId::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn descriptions_count_characters_not_bytes() {
        assert!(Description::parse(&"é".repeat(1_024)).is_ok());
        assert!(Description::parse("").is_ok());
        assert_eq!(
            Description::parse(&"a".repeat(1_025)),
            Err(Refusal::TooLarge("must have at most 1,024 characters"))
        );
    }

    #[test]
    fn caller_ids_are_spiffe_ids() {
        for good in ["spiffe://a.example/executor", "spiffe://td", "spiffe://td/ns/x/sa/y_1.-"] {
            assert!(CallerId::parse(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "https://a/b",
            "spiffe://",
            "spiffe:///x",
            "spiffe://TD/x",
            "spiffe://td/",
            "spiffe://td/a//b",
            "spiffe://td/../x",
            "spiffe://td/a?b",
            "spiffe://u@td/a",
            "spiffe://td:1/a",
            "spiffe://td/%41",
        ] {
            assert!(CallerId::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn actors_ids_and_labels() {
        assert!(Actor::parse("Zoë Müller <zoe@example.com>").is_ok());
        for bad in ["a\nb", " a", "a ", "SPIFFE://td/x", "spiffe://td/x", "a\u{202e}b", "\u{200b}"]
        {
            assert!(Actor::parse(bad).is_err(), "{bad:?}");
        }
        assert!(Actor::parse("").is_err());
        assert!(Actor::parse(&"a".repeat(257)).is_err());
        assert!(RunId::parse("").is_ok());
        assert!(RunId::parse("run\u{7f}").is_err());
        assert!(RunId::parse(&"r".repeat(129)).is_err());
        assert!(RequestId::parse("").is_err());
        assert!(RequestId::parse("0190b1d2-7c3e").is_ok());
        assert!(RequestId::parse("a b").is_err());
        assert!(TraceId::parse(&"0".repeat(32)).is_err());
        assert!(TraceId::parse("4bf92f3577b34da6a3ce929d0e0e4736").is_ok());
        assert!(Integration::parse("google_sheets").is_ok());
        assert!(Integration::parse("-x").is_err());
    }
}
