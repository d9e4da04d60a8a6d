//! An event as a line of JSON.

use std::io::{self, Write};

use serde::Serialize;

use super::AuditEvent;
use crate::domain::{
    Actor, Alias, LeaseHolder, RunId, SecretName, TraceId, WorkflowId, WorkspaceId,
};

/// Bytes of most lines, or less.
pub(super) const LINE: usize = 512;

pub(super) fn encode(event: &AuditEvent, lines: &mut Vec<u8>) -> Result<(), serde_json::Error> {
    let number = |number: Option<u64>| number.map(|number| number.to_string());
    let (version, matches) = (number(event.version), number(event.matches));
    lines.extend_from_slice(b"{\"time\":\"");
    // To memory, which takes it all.
    write!(lines, "{}", event.time).map_err(serde_json::Error::io)?;
    lines.push(b'"');
    let actor = event.actor.as_ref().map(Actor::as_str);
    let workspace = event.workspace.as_ref().map(WorkspaceId::as_str);
    let secret = event.secret.as_ref().map(SecretName::as_str);
    let alias = event.alias.as_ref().map(Alias::as_str);
    let workflow_id = event.workflow_id.as_ref().map(WorkflowId::as_str);
    let run_id = event.run_id.as_ref().map(RunId::as_str);
    let holder = event.holder.as_ref().map(LeaseHolder::as_str);
    let trace_id = event.trace_id.as_ref().map(TraceId::as_str);
    text(lines, "action", Some(event.action.as_str()))?;
    text(lines, "outcome", Some(event.outcome))?;
    text(lines, "caller", Some(event.caller.as_str()))?;
    text(lines, "actor", actor)?;
    text(lines, "workspace", workspace)?;
    text(lines, "secret", secret)?;
    member(lines, "version", version.as_deref());
    text(lines, "alias", alias)?;
    member(lines, "matches", matches.as_deref());
    text(lines, "workflow_id", workflow_id)?;
    text(lines, "run_id", run_id)?;
    text(lines, "holder", holder)?;
    text(lines, "trace_id", trace_id)?;
    lines.extend_from_slice(b"}\n");
    Ok(())
}

/// A member, if there is a value; this is JSON already.
fn member(lines: &mut Vec<u8>, name: &str, value: Option<&str>) {
    if let Some(value) = value {
        for part in [",\"", name, "\":", value] {
            lines.extend_from_slice(part.as_bytes());
        }
    }
}

/// A member whose value is text. Most texts stand there as they are; the library would
/// look at each byte of them, and write each sign of JSON by itself.
fn text(lines: &mut Vec<u8>, name: &str, text: Option<&str>) -> Result<(), serde_json::Error> {
    let Some(text) = text else { return Ok(()) };
    let plain = |byte| matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\');
    if text.bytes().all(plain) {
        for part in [",\"", name, "\":\"", text, "\""] {
            lines.extend_from_slice(part.as_bytes());
        }
        return Ok(());
    }
    member(lines, name, Some(""));
    text.serialize(&mut serde_json::Serializer::with_formatter(lines, Ascii))
}

/// Escapes what is not ASCII: a line separator (U+2028) or a change of writing
/// direction in an actor's name would mislead readers of the stream.
struct Ascii;

impl serde_json::ser::Formatter for Ascii {
    fn write_string_fragment<W: Write + ?Sized>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        if fragment.is_ascii() {
            return writer.write_all(fragment.as_bytes());
        }
        for character in fragment.chars() {
            if character.is_ascii() {
                write!(writer, "{character}")?;
            } else {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    write!(writer, "\\u{unit:04x}")?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        domain::{CallerId, Deadline, Timestamp},
        service::{access::Caller, audit::Action},
    };
    use proptest::prelude::*;
    use serde_json::Value;

    fn event() -> AuditEvent {
        let id = CallerId::parse("spiffe://td/executor").unwrap();
        let caller = Caller { id, actor: None, trace_id: None, deadline: Deadline::NONE };
        let time = Timestamp::new(1_700_000_000, 123_000_000).unwrap();
        AuditEvent::new(time, &caller, Action::List, "INVALID_FIELD")
    }

    fn line(event: &AuditEvent) -> String {
        let mut lines = Vec::new();
        encode(event, &mut lines).unwrap();
        String::from_utf8(lines).unwrap()
    }

    #[test]
    fn a_line_has_what_is_known() {
        assert_eq!(
            line(&event()),
            "{\"time\":\"2023-11-14T22:13:20.123Z\",\"action\":\"list\",\
             \"outcome\":\"INVALID_FIELD\",\"caller\":\"spiffe://td/executor\"}\n"
        );
        let full = AuditEvent {
            actor: Some(Actor::parse("Zoë \"Z\" \\ \u{1f511}").unwrap()),
            workspace: Some(WorkspaceId::parse("ws_1").unwrap()),
            secret: Some(SecretName::parse("KEY").unwrap()),
            version: Some(u64::MAX),
            action: Action::Resolve,
            outcome: "ok",
            alias: Some(Alias::parse("k").unwrap()),
            matches: Some(3),
            workflow_id: Some(WorkflowId::parse("wf").unwrap()),
            run_id: Some(RunId::parse("run").unwrap()),
            holder: Some(LeaseHolder::parse("pod-1").unwrap()),
            trace_id: Some(TraceId::parse("4bf92f3577b34da6a3ce929d0e0e4736").unwrap()),
            ..event()
        };
        assert_eq!(
            line(&full),
            "{\"time\":\"2023-11-14T22:13:20.123Z\",\"action\":\"resolve\",\"outcome\":\"ok\",\
             \"caller\":\"spiffe://td/executor\",\
             \"actor\":\"Zo\\u00eb \\\"Z\\\" \\\\ \\ud83d\\udd11\",\
             \"workspace\":\"ws_1\",\"secret\":\"KEY\",\"version\":18446744073709551615,\
             \"alias\":\"k\",\"matches\":3,\"workflow_id\":\"wf\",\"run_id\":\"run\",\"holder\":\"pod-1\",\
             \"trace_id\":\"4bf92f3577b34da6a3ce929d0e0e4736\"}\n"
        );
    }

    proptest! {
        #[test]
        fn whatever_a_text_holds_is_read_again_and_a_line_is_ascii(
            actor in r#"[ -~\u{7f}-\u{10ffff}"\\\\]{1,20}"#,
            label in r#"[ -~"\\\\]{0,20}"#,
        ) {
            let actor = Actor::parse(&actor).ok();
            let workflow_id = WorkflowId::parse(&label).ok();
            let line = line(&AuditEvent { actor: actor.clone(), workflow_id, ..event() });
            prop_assert!(line.is_ascii() && line.ends_with('\n'));
            prop_assert_eq!(line.lines().count(), 1);
            let read: Value = serde_json::from_str(&line).unwrap();
            prop_assert_eq!(read["actor"].as_str(), actor.as_ref().map(Actor::as_str));
            prop_assert_eq!(read["workflow_id"].as_str(), Some(label.as_str()));
        }
    }
}
