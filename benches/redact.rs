//! What redacting a log costs: values of a usual make, all encodings.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a bench fails loudly")]

use std::{hint::black_box, sync::Arc};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use workflow_secrets::{
    domain::{Plaintext, SecretName},
    matcher::{Matcher, MatcherOptions, Named, Redactor},
};

const TEXT: usize = 4 * 1024 * 1024;
const CHUNK: usize = 16 * 1024;

/// Numbers that look random and are the same in each run (xorshift64*).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) % end
    }

    fn token(&mut self, length: u64) -> String {
        let letter = |n| char::from_digit(u32::try_from(n % 36).unwrap(), 36).unwrap();
        let case = |n, c: char| if n < 36 { c } else { c.to_ascii_uppercase() };
        (0..length).map(|_| self.below(62)).map(|n| case(n, letter(n))).collect()
    }
}

/// A PEM, three JWTs, and API keys of 20 to 60 bytes.
fn values(count: u64) -> Vec<(SecretName, Plaintext)> {
    let mut numbers = Numbers(7);
    let value = |n| match n {
        0 => {
            let lines: Vec<String> = (0..26).map(|_| numbers.token(64)).collect();
            let lines = lines.join("\n");
            format!("-----BEGIN PRIVATE KEY-----\n{lines}\n-----END PRIVATE KEY-----\n")
        }
        1..=3 => {
            let (claims, mac) = (numbers.token(200), numbers.token(43));
            format!("eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.{claims}.{mac}")
        }
        _ if n % 2 == 0 => format!("sk_live_{}", numbers.token(12 + n % 41)),
        _ => numbers.token(20 + n % 41),
    };
    let name = |n| SecretName::parse(&format!("SECRET_{n}")).unwrap();
    let parse = |value| Plaintext::parse(value).unwrap_or_else(|_| panic!("too long"));
    (0..count).map(name).zip((0..count).map(value).map(parse)).collect()
}

/// Lines of JSON; one in 200 holds a value.
fn log(values: &[(SecretName, Plaintext)]) -> String {
    let mut numbers = Numbers(11);
    let (mut text, mut secrets) = (String::new(), values.iter().cycle());
    for line in 0.. {
        if text.len() >= TEXT {
            break;
        }
        let (run, customer) = (numbers.token(24), numbers.below(100_000));
        let (minute, milliseconds) = (line / 60 % 60, numbers.below(2_000));
        text += &format!(
            r#"{{"level":"info","ts":"2026-01-01T00:{minute:02}:{:02}Z","run":"{run}","node":"http","msg":"step finished","url":"https://api.example.com/v1/customers/{customer}?expand=invoices&limit=100","status":200,"ms":{milliseconds}"#,
            line % 60,
        );
        if line % 200 == 0 {
            let value = secrets.next().unwrap().1.expose().replace('\n', "\\n");
            text += &format!(r#","authorization":"Bearer {value}""#);
        }
        text += "}\n";
    }
    text
}

fn prepare(values: &[(SecretName, Plaintext)]) -> Matcher {
    let named = values.iter().map(|(name, value)| Named { name, value });
    Matcher::new(named, MatcherOptions::default()).unwrap_or_else(|_| panic!("too large"))
}

fn redact(matcher: &Arc<Matcher>, text: &str, out: &mut Vec<u8>) -> u64 {
    let mut redactor = Redactor::new(Arc::clone(matcher));
    for chunk in text.as_bytes().chunks(CHUNK) {
        out.clear();
        redactor.push(black_box(chunk), out);
    }
    redactor.finish(out);
    redactor.tally().map(|(_, _, count)| count).sum()
}

fn benches(criterion: &mut Criterion) {
    for count in [10, 1_000] {
        let values = values(count);
        let text = log(&values);
        let matcher = Arc::new(prepare(&values));
        let mut out = Vec::with_capacity(2 * CHUNK);
        assert!(redact(&matcher, &text, &mut out) > 10);

        let mut group = criterion.benchmark_group("redact");
        group.throughput(Throughput::Bytes(u64::try_from(text.len()).unwrap()));
        group.bench_function(BenchmarkId::new("log", count), |bencher| {
            bencher.iter(|| redact(&matcher, &text, &mut out));
        });
        group.throughput(Throughput::Elements(count));
        group.bench_function(BenchmarkId::new("prepare", count), |bencher| {
            bencher.iter(|| prepare(&values));
        });
        group.finish();
    }
}

criterion_group!(all, benches);
criterion_main!(all);
