//! Parsing and rendering the configuration of an action: 20 KiB of JSON with
//! five references. No more than the CPU is asked.
#![allow(clippy::unwrap_used, reason = "a bench fails loudly")]

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use workflow_secrets::{
    domain::Plaintext,
    template::{Format, Template},
};

const BYTES: usize = 20 * 1024;

/// An action with settings, nested fields, escapes and text of some length.
fn action() -> String {
    let mut fields = String::new();
    let mut number = 0;
    while fields.len() < BYTES - 800 {
        number += 1;
        fields.push_str(&format!(
            r#"{{"id": "field_{number}", "label": "Müller \u0026 S\u00f6hne", "type": "text", "required": true, "order": {number}, "default": "line one\nline \"two\" {{{{ $json.items[{number}].name }}}}", "options": [1, 2.5, null]}}, "#
        ));
    }
    format!(
        r#"{{"url": "https://{{{{secrets.HOST}}}}/v1/charges?key={{{{ secrets.API_KEY }}}}", "headers": {{"Authorization": "Bearer {{{{secrets.TOKEN}}}}", "X-Api-Key": "{{{{secrets.API_KEY}}}}"}}, "fields": [{fields}{{}}], "body": "{{\"password\": \"{{{{secrets.PASSWORD}}}}\"}}"}}"#
    )
}

fn template(criterion: &mut Criterion) {
    let action = action();
    let value = Plaintext::parse("sk_live_51H8wJqKZvFm0pXbN2cT7".to_owned()).ok().unwrap();
    let parse = |source| Template::parse(Format::Json, source).ok().unwrap();
    let parsed = parse(action.clone());
    assert_eq!(parsed.references().count(), 5);

    let mut group = criterion.benchmark_group("template");
    group.throughput(Throughput::Bytes(action.len() as u64));
    group.bench_function("parse", |bench| {
        bench.iter_batched(|| action.clone(), parse, BatchSize::SmallInput);
    });
    group.bench_function("render", |bench| {
        bench.iter(|| black_box(&parsed).render(|_| Some(&value)));
    });
    group.bench_function("parse and render", |bench| {
        let both = |source| parse(source).render(|_| Some(&value));
        bench.iter_batched(|| action.clone(), both, BatchSize::SmallInput);
    });
    group.finish();
}

criterion_group!(benches, template);
criterion_main!(benches);
