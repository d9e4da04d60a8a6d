//! Parsers of single settings that note each fault and go on.

use std::{fmt::Display, str::FromStr, time::Duration};

use tracing_subscriber::EnvFilter;

use crate::{
    domain::Refusal,
    telemetry::{LogFormat, OtlpConfig, TelemetryConfig},
};

/// What is wrong with the settings, a line each, naming flag or file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Faults(pub Vec<String>);

impl Faults {
    pub(super) fn note<T, E: Display>(&mut self, flag: &str, parsed: Result<T, E>) -> Option<T> {
        parsed.map_err(|error| self.0.push(format!("{flag}: {error}"))).ok()
    }

    pub(super) fn rule<T>(&mut self, flag: &str, parsed: Result<T, Refusal>) -> Option<T> {
        self.note(flag, parsed.map_err(Refusal::rule))
    }

    pub(super) fn required<'a>(
        &mut self,
        flag: &str,
        value: Option<&'a String>,
    ) -> Option<&'a str> {
        let value = value.map(String::as_str).filter(|value| !value.is_empty());
        if value.is_none() {
            self.0.push(format!("{flag}: is required"));
        }
        value
    }

    pub(super) fn not_empty(&mut self, flag: &str, value: Option<&String>) {
        if value.is_some_and(String::is_empty) {
            self.0.push(format!("{flag}: must not be empty"));
        }
    }

    pub(super) fn parsed<T: FromStr>(&mut self, flag: &str, text: &str, what: &str) -> Option<T> {
        self.note(flag, text.parse().map_err(|_| format!("must be {what}")))
    }

    pub(super) fn at_most(&mut self, flag: &str, text: &str, most: u32, what: &str) -> Option<u32> {
        let number = text.parse().ok().filter(|number| *number <= most);
        self.note(flag, number.ok_or_else(|| format!("must be {what}, at most {most}")))
    }

    pub(super) fn duration(&mut self, flag: &str, text: &str) -> Option<Duration> {
        let parsed = humantime::parse_duration(text);
        self.note(flag, parsed.map_err(|_| "must be a duration such as 500ms, 20s or 2m"))
    }

    pub(super) fn switch(&mut self, flag: &str, text: &str) -> Option<bool> {
        let parsed = match text.to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" | "1" => Ok(true),
            "false" | "no" | "off" | "0" => Ok(false),
            _ => Err("must be true or false"),
        };
        self.note(flag, parsed)
    }

    pub(super) fn telemetry(
        &mut self,
        log: &str,
        format: &str,
        otlp: OtlpConfig,
        scraped: bool,
    ) -> Option<TelemetryConfig> {
        let filter = EnvFilter::try_new(log)
            .map_err(|_| "must be log directives such as info,workflow_secrets=debug");
        let filter = self.note("--log", filter);
        let format = self.note(
            "--log-format",
            match format {
                "json" => Ok(LogFormat::Json),
                "text" => Ok(LogFormat::Text),
                _ => Err("must be json or text"),
            },
        );
        Some(TelemetryConfig { filter: filter?, format: format?, otlp, scraped })
    }

    pub(super) fn finish<T>(self, config: Option<T>) -> Result<T, Self> {
        match config {
            Some(config) if self.0.is_empty() => Ok(config),
            _ => Err(self),
        }
    }
}

/// Whether it is a URL of one of the schemes, with a host, and with a port only
/// if that is a number: [`http::Uri`] takes any text for a port.
pub(super) fn is_url(text: &str, schemes: &[&str]) -> bool {
    let uri = text.parse::<http::Uri>().unwrap_or_default();
    let host = uri.host().unwrap_or_default();
    let address = uri.authority().map_or("", |authority| authority.as_str());
    uri.scheme_str().is_some_and(|scheme| schemes.contains(&scheme))
        && !host.is_empty()
        && (address == host || uri.port().is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_have_a_host_and_a_numeric_port_or_none() {
        for url in ["http://kms", "http://kms:8080", "http://[::1]:2/x", "http://[::1]"] {
            assert!(is_url(url, &["http"]), "{url}");
        }
        assert!(is_url("https://kms", &["http", "https"]));
        let bad = ["", "kms:8080", "https://kms", "http://", "http://:80", "http://x:y"];
        for url in bad.into_iter().chain(["http://x:x", "http://x:", "http://x:65536"]) {
            assert!(!is_url(url, &["http"]), "{url}");
        }
    }
}
