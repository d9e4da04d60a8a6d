//! The floor rule of `src/lib.rs`, held over every path in every source file:
//! imports go strictly downward, foreign crates stay in their adapters, and
//! there are no globals and no prints.

use std::{fs, path::Path};

/// Floor of each module under `src/`.
const FLOORS: [(&str, u8); 17] = [
    ("admin", 5),
    ("domain", 0),
    ("kms", 1),
    ("matcher", 1),
    ("metrics", 0),
    ("store", 1),
    ("envelope", 2),
    ("service", 3),
    ("grpc", 4),
    ("app", 5),
    ("cli", 5),
    ("config", 5),
    ("main", 5),
    ("process", 5),
    ("telemetry", 5),
    ("template", 1),
    ("watch", 5),
];

/// Crates, by the start of their names, and the files that may name them, by
/// the start of their paths.
const ADAPTERS: [(&str, &[&str]); 24] = [
    ("aws_config", &["kms/aws"]),
    ("aws_credential", &["kms/aws"]),
    ("aws_runtime", &["kms/aws"]),
    ("aws_sdk", &["kms/aws"]),
    ("aws_sig", &["kms/aws"]),
    ("aws_smithy", &["kms/aws"]),
    ("aws_types", &["kms/aws"]),
    ("base64", &["matcher/encodings"]),
    ("clap", &["config.rs", "config/", "main.rs"]),
    ("clap_complete", &["config/"]),
    ("clap_mangen", &["config/"]),
    ("crc", &["store/redis"]),
    ("governor", &["domain/rates.rs"]),
    ("hyper", &["admin.rs", "cli/connect.rs", "grpc/"]),
    ("indicatif", &["cli/progress.rs"]),
    ("opentelemetry", &["metrics/", "telemetry"]),
    ("opentelemetry_otlp", &["telemetry"]),
    ("opentelemetry_sdk", &["telemetry"]),
    ("prometheus", &["telemetry"]),
    ("prost", &["cli/", "grpc/", "store/codec.rs", "store/codec/"]),
    ("redb", &["store/embedded"]),
    ("redis", &["store/redis"]),
    ("tonic", &["cli/", "grpc/"]),
    ("tracing_opentelemetry", &["telemetry"]),
];

/// What a client may know of the house: the API, and what names look like.
const CLIENT: &str = "cli";
const CLIENT_KNOWS: [&[&str]; 4] = [&["cli"], &["config"], &["domain"], &["grpc", "proto"]];

/// Macros that print, and names of mutable or lazy globals.
const MACROS: [&str; 5] = ["dbg", "eprint", "eprintln", "print", "println"];
const GLOBALS: [&str; 7] =
    ["LazyCell", "LazyLock", "OnceCell", "OnceLock", "lazy_static", "static", "thread_local"];

#[derive(Debug, Clone, PartialEq)]
enum Token {
    /// A name or keyword, without `r#`.
    Word(String),
    /// `::`
    Sep,
    Sign(char),
}

use Token::{Sep, Sign, Word};

/// Splits Rust source into tokens. Comments, literals and lifetimes are left
/// out: they hold no paths.
fn tokens(source: &str) -> Vec<Token> {
    let text: Vec<char> = source.chars().collect();
    let at = |i: usize| text.get(i).copied().unwrap_or('\0');
    let starts = |i: usize, with: &str| with.chars().enumerate().all(|(n, c)| at(i + n) == c);
    let name = |c: char| c.is_alphanumeric() || c == '_';
    let (mut found, mut i) = (vec![], 0);
    while i < text.len() {
        if starts(i, "//") {
            while i < text.len() && at(i) != '\n' {
                i += 1;
            }
        } else if starts(i, "/*") {
            let mut depth = 0;
            loop {
                depth += i32::from(starts(i, "/*")) - i32::from(starts(i, "*/"));
                i += if starts(i, "/*") || starts(i, "*/") { 2 } else { 1 };
                if depth == 0 || i >= text.len() {
                    break;
                }
            }
        } else if at(i) == '"' {
            i += 1;
            while i < text.len() && at(i) != '"' {
                i += if at(i) == '\\' { 2 } else { 1 };
            }
            i += 1;
        } else if at(i) == '\'' {
            // A lifetime, unless a quote follows its first character.
            let quoted = at(i + 1) == '\\' || at(i + 2) == '\'';
            i += if at(i + 1) == '\\' { 3 } else { 2 };
            while if quoted { at(i) != '\'' } else { name(at(i)) } {
                i += 1;
            }
            i += usize::from(quoted);
        } else if name(at(i)) {
            let start = i;
            while name(at(i)) {
                i += 1;
            }
            let word: String = text[start..i].iter().collect();
            let hashes = (i..).take_while(|&n| at(n) == '#').count();
            let raw = ["r", "br", "cr"].contains(&word.as_str());
            if raw && at(i + hashes) == '"' {
                let end = format!("\"{}", "#".repeat(hashes));
                i += hashes + 1;
                while i < text.len() && !starts(i, &end) {
                    i += 1;
                }
                i += end.len();
            } else if word == "r" && hashes == 1 {
                // `r#name`: the name follows.
                i += 1;
            } else if !(["b", "c"].contains(&word.as_str()) && ['"', '\''].contains(&at(i))) {
                found.push(Word(word));
            }
        } else if starts(i, "::") {
            found.push(Sep);
            i += 2;
        } else {
            if !at(i).is_whitespace() {
                found.push(Sign(at(i)));
            }
            i += 1;
        }
    }
    found
}

/// Leaves out items under `#[cfg(test)]`: tests may look anywhere.
fn without_tests(tokens: &[Token]) -> Vec<Token> {
    let marker = self::tokens("#[cfg(test)]");
    let (mut kept, mut i) = (vec![], 0);
    while i < tokens.len() {
        if !tokens[i..].starts_with(&marker) {
            kept.push(tokens[i].clone());
            i += 1;
            continue;
        }
        let mut depth = 0;
        loop {
            let token = &tokens[i];
            i += 1;
            match token {
                Sign('{' | '(' | '[') => depth += 1,
                Sign('}' | ')' | ']') => depth -= 1,
                _ => {}
            }
            let end = matches!(token, Sign('}' | ';')) && depth == 0;
            if end || i == tokens.len() {
                break;
            }
        }
    }
    kept
}

/// Every path of two or more parts, groups spread out: `a::{b::C, d}` gives
/// `a::b::C` and `a::d`. Names that `use` takes alone count too.
fn paths(tokens: &[Token]) -> Vec<Vec<String>> {
    let (mut found, mut i) = (vec![], 0);
    while i < tokens.len() {
        let back = |n| i.checked_sub(n).map(|n| &tokens[n]);
        let taken = |token: Option<&Token>| token == Some(&Word("use".to_owned()));
        let first = match (back(2), back(1)) {
            // `::name` starts a path, unless it goes on from a name or type.
            (Some(Word(_) | Sign('>')), Some(Sep)) => taken(back(2)),
            (_, before) => before == Some(&Sep) || taken(before) || tokens.get(i + 1) == Some(&Sep),
        };
        match &tokens[i] {
            Word(word) if first && word != "use" => i = tree(tokens, i, &[], &mut found),
            _ => i += 1,
        }
    }
    found
}

/// Reads one path with its groups from `i`; returns where it ends.
fn tree(tokens: &[Token], mut i: usize, head: &[String], found: &mut Vec<Vec<String>>) -> usize {
    let mut path = head.to_vec();
    loop {
        match tokens.get(i) {
            Some(Word(word)) => path.push(word.clone()),
            Some(Sign('*')) => path.push("*".to_owned()),
            Some(Sign('{')) => {
                i += 1;
                while i < tokens.len() && tokens[i] != Sign('}') {
                    i = tree(tokens, i, &path, found);
                    // A comma, or `as name`.
                    while i < tokens.len() && ![Sign(','), Sign('}')].contains(&tokens[i]) {
                        i += 1;
                    }
                    i += usize::from(tokens.get(i) == Some(&Sign(',')));
                }
                return i + 1;
            }
            // Generic arguments, `::<T>`: they are looked at on their own.
            _ => break,
        }
        i += 1;
        if tokens.get(i) != Some(&Sep) {
            break;
        }
        i += 1;
    }
    found.push(path);
    i
}

fn floor(module: &str) -> Option<u8> {
    FLOORS.iter().find(|(name, _)| *name == module).map(|(_, floor)| *floor)
}

/// The modules that lead to a file, from its path under `src/`.
fn modules(file: &str) -> Vec<String> {
    let stem = file.strip_suffix(".rs").unwrap();
    let stem = stem.strip_suffix("/mod").unwrap_or(stem);
    stem.split('/').map(str::to_owned).collect()
}

/// A path from the crate's root without `crate`, `self` and `super`; `None`
/// for one that starts with a crate, a type or a local name.
fn inside(path: &[String], file: &str) -> Option<Vec<String>> {
    let mut from = match path[0].as_str() {
        "crate" | "workflow_secrets" => vec![],
        "self" | "super" => modules(file),
        _ => return None,
    };
    for part in path {
        match part.as_str() {
            "crate" | "workflow_secrets" | "self" => {}
            "super" => drop(from.pop()),
            _ => from.push(part.clone()),
        }
    }
    Some(from)
}

/// What one file, by its path under `src/`, does against the rules.
fn violations(file: &str, source: &str) -> Vec<String> {
    let tokens = without_tests(&tokens(source));
    let mut found = vec![];
    let own = modules(file).remove(0);
    for path in paths(&tokens) {
        let told = path.join("::");
        if let Some(path) = inside(&path, file) {
            let target = path.first().map_or("", String::as_str);
            let downward = match (floor(&own), floor(target)) {
                (Some(own), Some(target)) => target < own || (target, own) == (5, 5),
                // A name in the root; it has none but modules.
                _ => false,
            };
            if !(downward || target == own || own == "lib") {
                found.push(format!("{file}: {told} is not below"));
            }
            let generated = path.len() > 1 && path[..2] == ["grpc", "proto"];
            if generated && ![CLIENT, "grpc"].contains(&own.as_str()) {
                found.push(format!("{file}: {told}: API types stay in grpc"));
            }
            let known = |known: &&[&str]| {
                path.len() >= known.len() && path.iter().zip(*known).all(|(a, b)| a == b)
            };
            if own == CLIENT && !CLIENT_KNOWS.iter().any(known) {
                found.push(format!("{file}: {told}: not for a client of the API"));
            }
        }
        for (name, allowed) in ADAPTERS {
            if path[0].starts_with(name) && !allowed.iter().any(|start| file.starts_with(start)) {
                found.push(format!("{file}: {told} outside its adapter"));
            }
        }
    }
    // The one global that a program may have, and only by this attribute.
    let allocator = self::tokens("#[global_allocator] static");
    for (i, pair) in tokens.windows(2).enumerate() {
        let Word(word) = &pair[0] else { continue };
        if file == "main.rs" && tokens[..=i].ends_with(&allocator) {
            continue;
        }
        let print = MACROS.contains(&word.as_str()) && pair[1] == Sign('!');
        let foreign = word == "extern" && pair[1] == Word("crate".to_owned());
        if print || foreign || GLOBALS.contains(&word.as_str()) {
            found.push(format!("{file}: {word}"));
        }
    }
    if source.contains("workflowsecrets.storage.v1") && file != "store/codec.rs" {
        found.push(format!("{file}: stored messages stay in the codec"));
    }
    found
}

fn sources(directory: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|end| end == "rs") {
            found.push(path.to_str().unwrap().to_owned());
        }
    }
}

#[test]
fn the_house_keeps_its_rules() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/src/");
    let mut files = vec![];
    sources(Path::new(root), &mut files);
    let (mut looked_at, mut found) = (0, vec![]);
    for path in &files {
        let file = path.strip_prefix(root).unwrap();
        // Test modules in files of their own, under `#[cfg(test)]`.
        if file.ends_with("/tests.rs") {
            continue;
        }
        assert!(file == "lib.rs" || floor(&modules(file)[0]).is_some(), "{file} has no floor");
        let source = fs::read_to_string(path).unwrap();
        looked_at += paths(&tokens(&source)).len();
        found.extend(violations(file, &source));
    }
    assert!(found.is_empty(), "{found:#?}");
    assert!(files.len() > 50 && looked_at > 1_000, "{} files, {looked_at} paths", files.len());
}

#[test]
fn planted_violations_are_found() {
    for (file, source) in [
        ("domain/x.rs", "use crate::store::Key;"),
        ("domain/x.rs", "fn f() { crate::envelope::seal() }"),
        ("kms/aws.rs", "use crate::{domain::A, store};"),
        ("matcher/mod.rs", "use crate::store::Key;"),
        ("matcher/table.rs", "use base64::Engine as _;"),
        ("kms/aws/classify.rs", "use super::super::super::store::Key;"),
        ("store/mod.rs", "use crate::{\n    domain::{A, B},\n    kms::{\n        Kms,\n    },\n};"),
        ("store/redis/x.rs", "type T = Vec<crate::kms::KmsError>;"),
        ("envelope/seal.rs", "use crate::{domain::{self, X as Y}, service as s};"),
        ("service/get.rs", "use crate::grpc::proto::Secret;"),
        ("service/get.rs", "impl From<E> for tonic::Status {}"),
        ("service/mod.rs", "use super::config;"),
        ("grpc/mod.rs", "use crate::app::run;"),
        ("app.rs", "use crate::grpc::{self, proto::Secret};"),
        ("cli/keys.rs", "use crate::service::Secrets;"),
        ("cli/keys.rs", "use super::super::store::Key;"),
        ("cli/import/plan.rs", "use crate::grpc::{proto::Secret, convert};"),
        ("cli/import/plan.rs", "use crate::telemetry;"),
        ("cli/keys.rs", "use crate::grpc;"),
        ("cli/keys.rs", "use indicatif::ProgressBar;"),
        ("cli/keys.rs", "fn f() { println!() }"),
        ("config/client.rs", "use tonic::transport::Endpoint;"),
        ("envelope/keyring.rs", "use aws_sdk_kms as sdk;"),
        ("kms/local.rs", "let c = aws_config::load().await;"),
        ("app.rs", "use redis::Client;"),
        ("store/embedded.rs", "use ::redis::Client;"),
        ("service/mod.rs", "use redb;"),
        ("domain/secret.rs", "#[derive(prost::Message)] struct S;"),
        ("grpc/convert.rs", r#"include!("workflowsecrets.storage.v1.rs");"#),
        ("app.rs", "use clap::Parser;"),
        ("grpc/observe.rs", "use opentelemetry::KeyValue;"),
        ("metrics/mod.rs", "use opentelemetry_sdk::metrics::SdkMeterProvider;"),
        ("metrics/mod.rs", "use crate::domain::WorkspaceId;"),
        ("app.rs", "extern crate redis;"),
        ("grpc/tls.rs", "fn f() { println!(\"{}\", 'x') }"),
        ("grpc/tls.rs", "fn f<'a>(x: &'a str) { dbg!(x); }"),
        ("watch.rs", "static mut COUNT: u8 = 0;"),
        ("main.rs", "static COUNT: u8 = 0;"),
        ("app.rs", "#[global_allocator] static A: System = System;"),
        ("watch.rs", "const X: OnceLock<u8> = OnceLock::new();"),
        ("watch.rs", "#[cfg(test)] mod tests { fn f() {} }\nthread_local! {}"),
        ("store/mod.rs", "const A: &str = r#\"\"#; use crate::kms::Kms;"),
        ("store/mod.rs", "const A: char = '\"'; use crate::kms::Kms; const B: char = '\"';"),
        ("store/mod.rs", "/* /* */ */ use crate::kms::Kms;"),
    ] {
        assert!(!violations(file, source).is_empty(), "{file}: {source}");
    }
}

#[test]
fn what_is_allowed_is_not_found() {
    for (file, source) in [
        ("store/redis.rs", "use redis::{Cmd, Value}; use super::{Key, Store};"),
        ("store/redis/link.rs", "use super::connection; use crate::domain::Clock;"),
        ("kms/aws/classify.rs", "use aws_sdk_kms::error::SdkError; use super::super::KmsError;"),
        ("service/get.rs", "use crate::{domain::*, envelope, store::redis};"),
        ("service/get.rs", "fn f(redis: u8) -> &'static str { \"redis::Client println!\" }"),
        ("service/get.rs", "// use crate::grpc;\n/// redis::Client\nfn f() {}"),
        ("service/get.rs", "#[cfg(test)]\nmod tests { use crate::grpc; }"),
        ("app.rs", "use crate::{store::{Store, redis::RedisStore}, watch::Watch};"),
        ("main.rs", "use clap::Parser as _; use workflow_secrets::{app, config::Cli};"),
        ("main.rs", "#[global_allocator] static A: System = System;"),
        ("cli/probe.rs", "use tonic_health::pb::HealthCheckRequest; use super::connect::channel;"),
        ("cli/keys.rs", "use crate::{config::Server, domain::Actor, grpc::proto::{Secret, self}};"),
        ("watch.rs", "fn f(x: &'static str) -> char { '\\'' }"),
    ] {
        assert_eq!(violations(file, source), Vec::<String>::new(), "{file}: {source}");
    }
}
