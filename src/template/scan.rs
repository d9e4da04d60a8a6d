//! The grammar of a reference, over decoded text.

use std::ops::Range;

use crate::domain::SecretName;

/// What the scanner reads from. A test counts what is read through it.
pub(super) trait Text {
    /// The byte there, if there is one.
    fn byte(&self, at: usize) -> Option<u8>;
    /// The first `{` from there on.
    fn brace(&self, from: usize) -> Option<usize>;
}

impl Text for str {
    fn byte(&self, at: usize) -> Option<u8> {
        self.as_bytes().get(at).copied()
    }

    fn brace(&self, from: usize) -> Option<usize> {
        self.get(from..)?.find('{').map(|further| from + further)
    }
}

/// What a find is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A reference to that secret.
    Reference(SecretName),
    /// Begins like a reference and is none.
    Malformed,
    /// Made literal by a backslash.
    Escaped,
}

/// A place where `{{`, blanks and `secrets` stand.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// What rendering replaces: backslashes that only escape, and the
    /// reference; of a malformed one, its opening up to `secrets`.
    pub(super) range: Range<usize>,
    /// Where the `{{` stands.
    pub(super) opening: usize,
    pub(super) kind: Kind,
}

/// Finds every reference, malformed one and escape, in order.
///
/// It never goes back further than over one run of backslashes, which no other
/// find shares, so its work is linear in the text.
pub(super) struct Scanner<'t, T: ?Sized> {
    text: &'t T,
    at: usize,
}

impl<'t, T: Text + ?Sized> Scanner<'t, T> {
    pub(super) fn new(text: &'t T) -> Self {
        Self { text, at: 0 }
    }

    /// The end of the run of such bytes that starts there.
    fn run(&self, mut from: usize, belongs: impl Fn(u8) -> bool) -> usize {
        while self.text.byte(from).is_some_and(&belongs) {
            from += 1;
        }
        from
    }

    fn starts(&self, from: usize, with: &str) -> bool {
        with.bytes().enumerate().all(|(n, byte)| self.text.byte(from + n) == Some(byte))
    }

    /// Name and end of the reference whose word `secrets` ends there.
    fn reference(&self, word_end: usize) -> Option<(SecretName, usize)> {
        let start = (self.text.byte(word_end)? == b'.').then_some(word_end + 1)?;
        let end = self.run(start, is_word);
        let close = self.run(end, is_blank);
        if !self.starts(close, "}}") {
            return None;
        }
        let name: String =
            (start..end).filter_map(|at| self.text.byte(at)).map(char::from).collect();
        SecretName::parse(&name).ok().map(|name| (name, close + 2))
    }

    /// How many backslashes end there.
    fn backslashes(&self, end: usize) -> usize {
        let before = |n: &usize| end.checked_sub(*n).and_then(|at| self.text.byte(at));
        (1..).take_while(|n| before(n) == Some(b'\\')).count()
    }
}

impl<T: Text + ?Sized> Iterator for Scanner<'_, T> {
    type Item = Found;

    fn next(&mut self) -> Option<Found> {
        loop {
            let braces = self.text.brace(self.at)?;
            self.at = self.run(braces, |byte| byte == b'{');
            // Of more than two braces, the innermost two.
            let Some(opening) = self.at.checked_sub(2).filter(|opening| *opening >= braces) else {
                continue;
            };
            let word = self.run(self.at, is_blank);
            self.at = word;
            if !self.starts(word, "secrets") {
                continue;
            }
            self.at = word + "secrets".len();
            if self.text.byte(self.at).is_some_and(is_word) {
                continue;
            }
            let backslashes = self.backslashes(opening);
            let start = opening - backslashes.div_ceil(2);
            if backslashes % 2 == 1 {
                return Some(Found { range: start..opening, opening, kind: Kind::Escaped });
            }
            return Some(match self.reference(self.at) {
                Some((name, end)) => {
                    Found { range: start..end, opening, kind: Kind::Reference(name) }
                }
                None => Found { range: start..self.at, opening, kind: Kind::Malformed },
            });
        }
    }
}

fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn found(text: &str) -> Vec<(Range<usize>, usize, String)> {
        let told = |kind| match kind {
            Kind::Reference(name) => name.to_string(),
            Kind::Malformed => "malformed".to_owned(),
            Kind::Escaped => "escaped".to_owned(),
        };
        Scanner::new(text).map(|f| (f.range, f.opening, told(f.kind))).collect()
    }

    fn one(range: Range<usize>, opening: usize, kind: &str) -> Vec<(Range<usize>, usize, String)> {
        vec![(range, opening, kind.to_owned())]
    }

    #[test]
    fn references() {
        for (text, range, name) in [
            ("{{secrets.A}}", 0..13, "A"),
            ("{{ \t secrets._9\t }}", 0..19, "_9"),
            ("x{{{secrets.key}}}", 2..17, "key"),
            ("{{{{{{secrets.A}}", 4..17, "A"),
            ("{{ {{secrets.A}} }}", 3..16, "A"),
            ("{{secretsX{{secrets.A}}", 10..23, "A"),
            ("é{{secrets.secrets}}", 2..21, "secrets"),
        ] {
            assert_eq!(found(text), one(range.clone(), range.start, name), "{text}");
        }
        let long = "x".repeat(128);
        assert_eq!(found(&format!("{{{{secrets.{long}}}}}")), one(0..140, 0, &long));
        assert_eq!(found("{{secrets.A}}{{secrets.B}}").len(), 2);
    }

    #[test]
    fn whatever_else_stands_in_braces_is_none_of_ours() {
        for text in [
            "",
            "{",
            "{{",
            "{{ ",
            "{{}}",
            "{{ $json.id }}",
            "{{secretsmanager.x}}",
            "{{secrets9.x}}",
            "{{secrets_.x}}",
            "{{ \"a\" + secrets.X }}",
            "{{Secrets.A}}",
            "{{.secrets.A}}",
            "{{\nsecrets.A}}",
            "{{\u{a0}secrets.A}}",
            "{{secret",
            "{ {secrets.A}}",
            "{secrets.A}",
            "secrets.A}}",
            "\\\\{{x}}",
        ] {
            assert_eq!(found(text), [], "{text}");
        }
    }

    #[test]
    fn malformed_ones_reach_to_the_end_of_the_word() {
        for text in [
            "{{secrets",
            "{{secrets}}",
            "{{secrets.}}",
            "{{secrets.9A}}",
            "{{secrets.A-B}}",
            "{{secrets.A.b}}",
            "{{secrets.A B}}",
            "{{secrets. A}}",
            "{{secrets .A}}",
            "{{secrets[\"A\"]}}",
            "{{secrets.A",
            "{{secrets.A}",
            "{{secrets.A} }",
            "{{secrets.A\n}}",
            "{{secrets.Ä}}",
            "{{secretsé}}",
            "{{secrets-manager.x}}",
            "{{secrets.__proto__}}",
        ] {
            assert_eq!(found(text), one(0..9, 0, "malformed"), "{text}");
        }
        assert_eq!(found("{{{ secrets }}}"), one(1..11, 1, "malformed"));
        let long = format!("{{{{secrets.{}}}}}", "x".repeat(129));
        assert_eq!(found(&long), one(0..9, 0, "malformed"));
        // What follows one is looked at in its own right.
        let mut both = one(0..9, 0, "malformed");
        both.extend(one(10..23, 10, "A"));
        assert_eq!(found("{{secrets.{{secrets.A}}"), both);
    }

    #[test]
    fn backslashes_count_only_directly_before() {
        for (text, range, opening, kind) in [
            (r"\{{secrets.A}}", 0..1, 1, "escaped"),
            (r"\\{{secrets.A}}", 1..15, 2, "A"),
            (r"\\\{{secrets.A}}", 1..3, 3, "escaped"),
            (r"\\\\{{secrets.A}}", 2..17, 4, "A"),
            (r"\{{secrets}}", 0..1, 1, "escaped"),
            (r"\\{{secrets}}", 1..11, 2, "malformed"),
            (r"\{{{secrets.A}}}", 2..15, 2, "A"),
            (r"\ {{secrets.A}}", 2..15, 2, "A"),
            (r"x\{{secrets.A}}", 1..2, 2, "escaped"),
        ] {
            assert_eq!(found(text), one(range, opening, kind), "{text}");
        }
        let mut both = one(0..1, 1, "escaped");
        both.extend(one(11..24, 11, "A"));
        assert_eq!(found(r"\{{secrets.{{secrets.A}}"), both);
    }

    /// Counts every byte looked at.
    struct Counted<'t>(&'t str, Cell<usize>);

    impl Text for Counted<'_> {
        fn byte(&self, at: usize) -> Option<u8> {
            self.1.set(self.1.get() + 1);
            self.0.byte(at)
        }

        fn brace(&self, from: usize) -> Option<usize> {
            let found = self.0.brace(from);
            self.1.set(self.1.get() + found.unwrap_or(self.0.len()) - from + 1);
            found
        }
    }

    #[test]
    fn work_is_linear() {
        for part in [
            "{",
            "{{ ",
            "{{",
            " ",
            "\\",
            "\\{{secrets",
            "{{secrets.",
            "{{secrets.A}}",
            "\\\\{{secrets.A}}",
            "{{secrets.A  ",
            "{{   secrets",
            "x",
        ] {
            for (before, after) in
                [("", ""), ("{{secrets.", ""), ("{{secrets.A", "}}"), ("", "{{secrets.A}}")]
            {
                let text = format!("{before}{}{after}", part.repeat(50_000));
                let counted = Counted(&text, Cell::new(0));
                let finds = Scanner::new(&counted).count();
                let looked_at = counted.1.get();
                assert!(looked_at >= text.len(), "{part}: {looked_at}");
                assert!(looked_at <= 8 * text.len(), "{part}: {looked_at} for {finds}");
            }
        }
    }
}
