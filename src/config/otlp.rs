//! The standard variables of OpenTelemetry. The SDK reads them itself, and
//! passes over what it does not understand; here that is a fault.

use std::{ffi::OsString, fs, path::Path, str::FromStr};

use super::faults::{Faults, is_url};
use crate::telemetry::{OtlpConfig, Transport};

const GENERAL: &str = "OTEL_EXPORTER_OTLP";
const SIGNALS: [&str; 2] = ["TRACES", "METRICS"];

const SAMPLERS: [&str; 6] = [
    "always_on",
    "always_off",
    "traceidratio",
    "parentbased_always_on",
    "parentbased_always_off",
    "parentbased_traceidratio",
];

/// What is sent, and how: nothing, unless an endpoint is set.
pub(super) fn parse(f: &mut Faults, variable: impl Fn(&str) -> Option<OsString>) -> OtlpConfig {
    let mut get = |name: &str| -> Option<String> {
        // The SDK takes an empty variable for one that is not set.
        let text = variable(name)?.into_string();
        let text = f.note(name, text.map_err(|_| "must be UTF-8"))?;
        Some(text).filter(|text| !text.is_empty())
    };
    let disabled = get("OTEL_SDK_DISABLED");
    let ca = get(&format!("{GENERAL}_CERTIFICATE"));
    let mut found = vec![];
    for signal in SIGNALS {
        let of = |what: &str| [format!("{GENERAL}_{signal}_{what}"), format!("{GENERAL}_{what}")];
        let mut first =
            |what: &str| of(what).into_iter().find_map(|name| get(&name).map(|text| (name, text)));
        let endpoint = first("ENDPOINT");
        let rules = [
            (first("PROTOCOL"), "grpc", "grpc: no other protocol is spoken"),
            (first("COMPRESSION"), "none", "none: no compression is supported"),
        ];
        let timeout = first("TIMEOUT");
        let exporter = get(&format!("OTEL_{signal}_EXPORTER"));
        found.push((signal, endpoint, rules, timeout, exporter));
    }
    let sampler = get("OTEL_TRACES_SAMPLER");
    let ratio = get("OTEL_TRACES_SAMPLER_ARG");
    let numbers = [
        "OTEL_METRIC_EXPORT_INTERVAL",
        "OTEL_BSP_SCHEDULE_DELAY",
        "OTEL_BSP_MAX_QUEUE_SIZE",
        "OTEL_BSP_MAX_EXPORT_BATCH_SIZE",
    ]
    .map(|name| (name, get(name)));

    for (name, text) in numbers {
        number(f, name, text.as_deref());
    }
    let disabled = match disabled.map(|text| text.to_ascii_lowercase()).as_deref() {
        None | Some("false") => false,
        Some("true") => true,
        Some(_) => {
            f.0.push("OTEL_SDK_DISABLED: must be true or false".to_owned());
            false
        }
    };
    if sampler.is_some_and(|sampler| !SAMPLERS.contains(&sampler.as_str())) {
        f.0.push(format!("OTEL_TRACES_SAMPLER: must be one of {}", SAMPLERS.join(", ")));
    }
    let in_range = |text: &String| f64::from_str(text).is_ok_and(|r| (0.0..=1.0).contains(&r));
    if ratio.is_some_and(|ratio| !in_range(&ratio)) {
        f.0.push("OTEL_TRACES_SAMPLER_ARG: must be a number from 0 to 1".to_owned());
    }
    let ca = ca.and_then(|path| {
        f.note(
            &format!("{GENERAL}_CERTIFICATE"),
            super::store::check_certificates(Path::new(&path)),
        )?;
        f.note(&format!("{GENERAL}_CERTIFICATE"), fs::read(path).map_err(|e| e.to_string()))
    });
    let [traces, metrics] = found
        .into_iter()
        .map(|(signal, endpoint, rules, timeout, exporter)| {
            for (set, wanted, rule) in rules {
                if let Some((name, _)) = set.filter(|(_, text)| text != wanted) {
                    f.0.push(format!("{name}: must be {rule}"));
                }
            }
            if let Some((name, text)) = timeout {
                number(f, &name, Some(&text));
            }
            let on = match exporter.as_deref() {
                None | Some("otlp") => true,
                Some("none") => false,
                Some(_) => {
                    f.0.push(format!("OTEL_{signal}_EXPORTER: must be otlp or none"));
                    false
                }
            };
            let (name, url) = endpoint?;
            if !is_url(&url, &["http", "https"]) {
                f.0.push(format!("{name}: must be an http:// or https:// URL of a collector"));
            }
            let secure = url.starts_with("https:");
            let to = if secure { Transport::Tls(ca.clone()) } else { Transport::Plain };
            (on && !disabled).then_some(to)
        })
        .collect::<Vec<_>>()
        .try_into()
        .unwrap_or_default();
    OtlpConfig { traces, metrics }
}

fn number(f: &mut Faults, name: &str, text: Option<&str>) {
    if text.is_some_and(|text| text.parse::<u32>().map_or(true, |number| number == 0)) {
        f.0.push(format!("{name}: must be a whole number above 0 (times in milliseconds)"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(set: &[(&str, &str)]) -> Result<OtlpConfig, Vec<String>> {
        let mut faults = Faults::default();
        let get = |name: &str| set.iter().find(|(key, _)| *key == name).map(|(_, v)| v.into());
        let config = parse(&mut faults, get);
        faults.finish(Some(config)).map_err(|faults| faults.0)
    }

    #[test]
    fn nothing_is_sent_unless_an_endpoint_is_set() {
        const ALL: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4317");
        let plain = || Some(Transport::Plain);
        let (none, both) =
            (OtlpConfig::default(), OtlpConfig { traces: plain(), metrics: plain() });
        let traces = OtlpConfig { traces: plain(), metrics: None };
        assert_eq!(parsed(&[]), Ok(none.clone()));
        assert_eq!(parsed(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "")]), Ok(none.clone()));
        assert_eq!(parsed(&[ALL]), Ok(both));
        let one = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://collector");
        assert_eq!(parsed(&[one]), Ok(traces.clone()));
        assert_eq!(parsed(&[ALL, ("OTEL_METRICS_EXPORTER", "none")]), Ok(traces));
        assert_eq!(parsed(&[ALL, ("OTEL_SDK_DISABLED", "true")]), Ok(none));
        let secure = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://collector");
        let tls = OtlpConfig { traces: Some(Transport::Tls(None)), metrics: plain() };
        assert_eq!(parsed(&[ALL, secure]), Ok(tls));
    }

    #[test]
    fn all_that_the_sdk_would_pass_over_is_a_fault() {
        for (name, text) in [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317"),
            ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
            ("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "gzip"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s"),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nowhere"),
            ("OTEL_SDK_DISABLED", "yes"),
            ("OTEL_TRACES_EXPORTER", "jaeger"),
            ("OTEL_TRACES_SAMPLER", "half"),
            ("OTEL_TRACES_SAMPLER_ARG", "2"),
            ("OTEL_METRIC_EXPORT_INTERVAL", "0"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "-1"),
        ] {
            let faults = parsed(&[(name, text)]).unwrap_err();
            assert!(faults.iter().all(|fault| fault.starts_with(name)), "{faults:?}");
        }
    }
}
