//! The sink: knows where a failed write stopped, and follows log rotation.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::{
        fd::AsFd as _,
        unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _},
    },
    path::PathBuf,
};

use super::AuditSink;

pub(super) struct Output {
    sink: Box<dyn Write + Send>,
    /// The last byte written ended no line.
    torn: bool,
    file: Option<OpenFile>,
}

struct OpenFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Output {
    pub(super) fn open(sink: AuditSink) -> io::Result<Self> {
        match sink {
            // A duplicate of the descriptor: the handle of the standard library
            // buffers, and locks against everything else that prints.
            AuditSink::Stdout => {
                Ok(Self::stream(File::from(io::stdout().as_fd().try_clone_to_owned()?)))
            }
            AuditSink::File(path) => Self::file(path),
            AuditSink::Writer(writer) => Ok(Self::stream(writer)),
        }
    }

    fn stream(sink: impl Write + Send + 'static) -> Self {
        Self { sink: Box::new(sink), torn: false, file: None }
    }

    fn file(path: PathBuf) -> io::Result<Self> {
        let file =
            OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(&path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        let mut last = *b"\n";
        if let Some(end) = metadata.len().checked_sub(1) {
            file.read_at(&mut last, end)?;
        }
        let open = OpenFile { path, device: metadata.dev(), inode: metadata.ino() };
        Ok(Self { sink: Box::new(file), torn: last != *b"\n", file: Some(open) })
    }

    /// Writes whole lines.
    pub(super) fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        if lines.is_empty() {
            return Ok(());
        }
        self.follow_rotation()?;
        if self.torn { self.write_all(&[b"\n", lines].concat()) } else { self.write_all(lines) }
    }

    fn follow_rotation(&mut self) -> io::Result<()> {
        let Some(open) = &self.file else { return Ok(()) };
        let same = match fs::metadata(&open.path) {
            Ok(found) => (found.dev(), found.ino()) == (open.device, open.inode),
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(error),
        };
        if !same {
            *self = Self::file(open.path.clone())?;
        }
        Ok(())
    }

    /// As the standard library's, but knows where a failed write stopped.
    fn write_all(&mut self, mut rest: &[u8]) -> io::Result<()> {
        while !rest.is_empty() {
            let taken = match self.sink.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(taken) => taken,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let (done, left) = rest.split_at(taken.min(rest.len()));
            self.torn = done.last() != Some(&b'\n');
            rest = left;
        }
        Ok(())
    }
}
