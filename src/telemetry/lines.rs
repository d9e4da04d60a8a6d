//! What log lines tell of the call they belong to.

use std::fmt::{self, Debug};

use tracing::{
    field::{Field, Visit},
    span::Record,
};
use tracing_subscriber::{
    field::RecordFields,
    fmt::{FormatFields, FormattedFields, format::Writer},
};

/// The fields of a span that lines tell: all others are for traces.
const TOLD: [&str; 2] = ["rpc.method", "trace_id"];

/// Writes them as members of a JSON object, when the span begins. The library's
/// own formatter writes all fields, and reads and writes them anew whenever one is
/// added: this takes as long as all else that a call does.
pub(super) struct CallFields;

impl<'w> FormatFields<'w> for CallFields {
    fn format_fields<R: RecordFields>(&self, mut writer: Writer<'w>, fields: R) -> fmt::Result {
        // At once, with room for a method and a trace: the writer's own would grow and grow.
        let mut members = Members::new(String::with_capacity(192), "{");
        fields.record(&mut members);
        writer.write_str(&members.end("{}")?)
    }

    fn add_fields(
        &self,
        current: &'w mut FormattedFields<Self>,
        fields: &Record<'_>,
    ) -> fmt::Result {
        // Its closing brace gives way to what is added.
        let separator = if current.fields.len() > 2 { "," } else { "" };
        let mut members = Members::new(String::new(), separator);
        fields.record(&mut members);
        let added = members.end("")?;
        if !added.is_empty() {
            current.fields.pop();
            current.fields.push_str(&added);
        }
        Ok(())
    }
}

/// Members of an object, up to its end.
struct Members {
    text: String,
    separator: &'static str,
    outcome: fmt::Result,
}

impl Members {
    fn new(text: String, separator: &'static str) -> Self {
        Self { text, separator, outcome: Ok(()) }
    }

    fn add(&mut self, name: &str, value: &str) {
        self.text.extend([self.separator, "\"", name, "\":"]);
        self.separator = ",";
        let plain = |byte| matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\');
        if value.bytes().all(plain) {
            self.text.extend(["\"", value, "\""]);
            return;
        }
        match serde_json::to_string(value) {
            Ok(value) => self.text.push_str(&value),
            Err(_) => self.outcome = Err(fmt::Error),
        }
    }

    /// `none` if there are none.
    fn end(mut self, none: &str) -> Result<String, fmt::Error> {
        self.text.push_str(if self.text.is_empty() { none } else { "}" });
        self.outcome.map(|()| self.text)
    }
}

impl Visit for Members {
    fn record_str(&mut self, field: &Field, value: &str) {
        if TOLD.contains(&field.name()) {
            self.add(field.name(), value);
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if TOLD.contains(&field.name()) {
            self.add(field.name(), &format!("{value:?}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    use serde_json::{Value, json};
    use tracing_subscriber::{fmt::MakeWriter, layer::SubscriberExt as _};

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl MakeWriter<'_> for Written {
        type Writer = Self;

        fn make_writer(&self) -> Self {
            self.clone()
        }
    }

    /// The span of the one line that is written in there.
    fn told(within: impl FnOnce()) -> Value {
        let written = Written::default();
        let lines = tracing_subscriber::fmt::layer().with_writer(written.clone());
        let lines = lines.json().with_span_list(false).fmt_fields(CallFields);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(lines), within);
        let written = written.0.lock().unwrap();
        let line: Value = serde_json::from_slice(&written).unwrap();
        line["span"].clone()
    }

    #[test]
    fn lines_tell_method_and_trace_and_nothing_else_of_a_span() {
        let span = told(|| {
            let span = tracing::info_span!(
                "call",
                "otel.kind" = "server",
                "rpc.method" = "a\"b",
                "error.type" = tracing::field::Empty,
                trace_id = tracing::field::Empty,
            );
            span.record("error.type", "INTERNAL");
            span.record("trace_id", tracing::field::display("4bf9"));
            span.in_scope(|| tracing::info!("line"));
        });
        assert_eq!(span, json!({"name": "call", "rpc.method": "a\"b", "trace_id": "4bf9"}));
    }

    #[test]
    fn what_is_added_to_nothing_is_told_too() {
        let span = told(|| {
            let span = tracing::info_span!("call", other = 1, trace_id = tracing::field::Empty);
            span.record("trace_id", "4bf9");
            span.in_scope(|| tracing::info!("line"));
        });
        assert_eq!(span, json!({"name": "call", "trace_id": "4bf9"}));
        let span = told(|| tracing::info_span!("call").in_scope(|| tracing::info!("line")));
        assert_eq!(span, json!({"name": "call"}));
    }
}
