#![no_main]
//! Text of any kind parses; it renders unless a reference is malformed.

use libfuzzer_sys::fuzz_target;
use workflow_secrets_fuzz::{nasty, parse, template::Format, value};

fuzz_target!(|data: &[u8]| {
    let Ok(source) = std::str::from_utf8(data) else { return };
    let template = parse(Format::Text, data).expect("any text parses");
    for location in template.references().map(|r| r.location).chain(template.malformed()) {
        // Where it is told to be, there it is.
        let place = location.place().to_string();
        let (line, column) = place.split_once(':').expect("line:column");
        let line = source.split('\n').nth(line.parse::<usize>().expect("a line") - 1);
        let column = column.parse::<usize>().expect("a column") - 1;
        let found: String = line.expect("that line").chars().skip(column).collect();
        assert!(found.starts_with("{{"));
    }
    let nasty = nasty();
    let Ok(rendered) = template.render(|_| Some(&nasty)) else {
        assert!(template.malformed().len() > 0);
        return;
    };
    assert_eq!(template.malformed().len(), 0);
    // Values that hold no reference leave none but those that were escaped.
    let plain = value("x");
    let rendered_plain = template.render(|_| Some(&plain)).expect("it renders");
    let growth = template.references().count() * (nasty.expose().len() - 1);
    assert_eq!(rendered.len(), rendered_plain.len() + growth);
    if !source.contains("secrets") {
        assert_eq!(*rendered, source);
    }
});
