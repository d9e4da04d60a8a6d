//! An event as a line of JSON.

use std::io::{self, Write};

use serde::{Serialize, Serializer};

use super::AuditEvent;
use crate::domain::{
    Actor, Alias, LeaseHolder, RunId, SecretName, Timestamp, TraceId, WorkflowId, WorkspaceId,
};

/// Bytes of most lines, or less.
pub(super) const LINE: usize = 512;

fn text<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(time)
}

pub(super) fn encode(event: &AuditEvent, lines: &mut Vec<u8>) -> Result<(), serde_json::Error> {
    #[derive(Serialize)]
    struct Line<'a> {
        #[serde(serialize_with = "text")]
        time: Timestamp,
        action: &'static str,
        outcome: &'static str,
        caller: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        actor: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        workspace: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        secret: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        version: Option<u64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        alias: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        matches: Option<u64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        workflow_id: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        run_id: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        holder: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        trace_id: Option<&'a str>,
    }
    let line = Line {
        time: event.time,
        action: event.action.as_str(),
        outcome: event.outcome,
        caller: event.caller.as_str(),
        actor: event.actor.as_ref().map(Actor::as_str),
        workspace: event.workspace.as_ref().map(WorkspaceId::as_str),
        secret: event.secret.as_ref().map(SecretName::as_str),
        version: event.version,
        alias: event.alias.as_ref().map(Alias::as_str),
        matches: event.matches,
        workflow_id: event.workflow_id.as_ref().map(WorkflowId::as_str),
        run_id: event.run_id.as_ref().map(RunId::as_str),
        holder: event.holder.as_ref().map(LeaseHolder::as_str),
        trace_id: event.trace_id.as_ref().map(TraceId::as_str),
    };
    line.serialize(&mut serde_json::Serializer::with_formatter(&mut *lines, Ascii))?;
    lines.push(b'\n');
    Ok(())
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
        domain::{CallerId, Deadline},
        service::{access::Caller, audit::Action},
    };

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
}
