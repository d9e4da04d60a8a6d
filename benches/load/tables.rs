//! Results as Markdown.

use std::{fs, path::Path};

/// A table, and in which file it stands where.
pub(crate) struct Table {
    name: &'static str,
    file: &'static str,
    lines: Vec<String>,
}

impl Table {
    pub(crate) fn new(name: &'static str, head: &[&str]) -> Self {
        let rule = head.iter().map(|_| "---|").collect::<String>();
        let file = "README.md";
        Self { name, file, lines: vec![format!("| {} |", head.join(" | ")), format!("|{rule}")] }
    }

    /// The same, in another file than the README.
    pub(crate) fn of(self, file: &'static str) -> Self {
        Self { file, ..self }
    }

    pub(crate) fn row(&mut self, cells: &[String]) {
        let line = format!("| {} |", cells.join(" | "));
        eprintln!("{line}");
        self.lines.push(line);
    }

    pub(crate) fn text(&self) -> String {
        self.lines.join("\n") + "\n"
    }

    /// Between `<!-- bench: NAME -->` and the next empty line.
    pub(crate) fn put_into_file(&self) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(self.file);
        let text = fs::read_to_string(&path).unwrap();
        let mark = format!("<!-- bench: {} -->\n", self.name);
        let (before, rest) = text.split_once(&mark).unwrap();
        let (_, after) = rest.split_once("\n\n").unwrap();
        fs::write(path, format!("{before}{mark}{}\n{after}", self.text())).unwrap();
    }
}
