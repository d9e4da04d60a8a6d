//! The file of the local key, 40 bytes: `WFSKEK1\n`, 32 key bytes.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind, Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use aws_lc_rs::rand;
use rustix::{fs::OFlags, io::Errno, process::geteuid};
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::domain::KeyMaterial;

const MAGIC: &[u8; 8] = b"WFSKEK1\n";
const FILE_BYTES: usize = MAGIC.len() + 32;

/// Why a local key cannot be used. Holds its path, never its bytes.
#[derive(Debug, thiserror::Error)]
pub enum LocalKmsError {
    /// It cannot be read or made.
    #[error("cannot open the local key {path}: {source}")]
    Io {
        /// The key file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A symbolic link, which whoever owns it could point elsewhere, a
    /// directory or a device.
    #[error("the local key {0} is no regular file (symbolic links are refused)")]
    NotAFile(PathBuf),
    /// Others may have changed it.
    #[error("the local key {path} belongs to user {owner}, not to the user of this process")]
    Owner {
        /// The key file.
        path: PathBuf,
        /// Its owner's user id.
        owner: u32,
    },
    /// Others may have read it.
    #[error("the local key {path} has mode {mode:04o}; allow only its owner: chmod 600")]
    Mode {
        /// The key file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Not written by this program, or damaged.
    #[error("the local key {0} holds no key of this program")]
    Malformed(PathBuf),
    /// The system's source of randomness or the cipher failed.
    #[error("the cryptographic library failed")]
    Crypto,
}

/// Reads the key, or makes one. Never replaces what is there.
pub(super) fn read_or_create(path: &Path) -> Result<KeyMaterial, LocalKmsError> {
    match read(path) {
        Err(LocalKmsError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {
            let mut content = Zeroizing::new([0; FILE_BYTES]);
            let (magic, key) = content.split_at_mut(MAGIC.len());
            magic.copy_from_slice(MAGIC);
            rand::fill(key).map_err(|_| LocalKmsError::Crypto)?;
            write_new(path, content.as_slice())
                .map_err(|source| LocalKmsError::Io { path: path.to_owned(), source })?;
            read(path)
        }
        other => other,
    }
}

/// Reads the key. All checks are made on the open file, so that it cannot be
/// exchanged between check and use.
fn read(path: &Path) -> Result<KeyMaterial, LocalKmsError> {
    let owned = || path.to_owned();
    let io = |source| LocalKmsError::Io { path: owned(), source };
    // Not to follow a link, and not to wait for the other end of a pipe.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let flags = flags.bits().cast_signed();
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Err(error) if Errno::from_io_error(&error) == Some(Errno::LOOP) => {
            return Err(LocalKmsError::NotAFile(owned()));
        }
        other => other.map_err(io)?,
    };
    let metadata = file.metadata().map_err(io)?;
    if !metadata.is_file() {
        return Err(LocalKmsError::NotAFile(owned()));
    }
    if metadata.uid() != geteuid().as_raw() {
        return Err(LocalKmsError::Owner { path: owned(), owner: metadata.uid() });
    }
    if metadata.mode() & 0o077 != 0 {
        return Err(LocalKmsError::Mode { path: owned(), mode: metadata.mode() & 0o7777 });
    }
    // One byte more than a key file has, to see that it is not longer.
    let mut content = Zeroizing::new([0; FILE_BYTES + 1]);
    let mut length = 0;
    while let Some(rest) = content.get_mut(length..).filter(|rest| !rest.is_empty()) {
        match (&file).read(rest) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(io(error)),
        }
    }
    let content = content.get_mut(..length).unwrap_or_default();
    match content.split_at_mut_checked(MAGIC.len()) {
        Some((magic, key)) if magic == MAGIC => KeyMaterial::take(key).ok(),
        _ => None,
    }
    .ok_or_else(|| LocalKmsError::Malformed(owned()))
}

/// Writes a whole file that is on the disk when it appears under `path`. Does
/// nothing if something is there already.
fn write_new(path: &Path, content: &[u8]) -> io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let draft = directory.join(format!(".local-key-{}", Uuid::new_v4()));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
    let linked = file
        .write_all(content)
        .and_then(|()| file.sync_all())
        // Unlike a rename, a link never replaces what is there.
        .and_then(|()| match fs::hard_link(&draft, path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
            other => other,
        });
    fs::remove_file(&draft)?;
    linked?;
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, chown, symlink};

    use super::*;

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn refusal(path: &Path) -> LocalKmsError {
        read_or_create(path).err().unwrap()
    }

    #[test]
    fn a_key_others_can_reach_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kek");
        read_or_create(&path).unwrap();
        for mode in [0o640, 0o620, 0o610, 0o604, 0o602, 0o601] {
            set_mode(&path, mode);
            let error = refusal(&path);
            assert!(matches!(error, LocalKmsError::Mode { mode: m, .. } if m == mode), "{error}");
        }
        set_mode(&path, 0o400);
        assert!(read_or_create(&path).is_ok());

        if geteuid().is_root() {
            chown(&path, Some(65_534), None).unwrap();
            assert!(matches!(refusal(&path), LocalKmsError::Owner { owner: 65_534, .. }));
        }
    }

    #[test]
    fn what_is_no_key_file_is_refused_and_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kek");
        let whole = [&MAGIC[..], &[7; 32]].concat();
        for content in [
            vec![],
            whole[..8].to_vec(),
            whole[..39].to_vec(),
            [&*whole, &[7]].concat(),
            [&b"WFSKEK2\n"[..], &[7; 32]].concat(),
        ] {
            fs::write(&path, &content).unwrap();
            set_mode(&path, 0o600);
            assert!(matches!(refusal(&path), LocalKmsError::Malformed(_)), "{}", content.len());
            assert_eq!(fs::read(&path).unwrap(), content);
        }

        fs::write(&path, &whole).unwrap();
        assert!(read_or_create(&path).is_ok());
        let link = directory.path().join("link");
        symlink(&path, &link).unwrap();
        assert!(matches!(refusal(&link), LocalKmsError::NotAFile(_)));
        let dangling = directory.path().join("dangling");
        symlink(directory.path().join("nowhere"), &dangling).unwrap();
        assert!(matches!(refusal(&dangling), LocalKmsError::NotAFile(_)));
        assert!(!directory.path().join("nowhere").exists());
        assert!(matches!(refusal(directory.path()), LocalKmsError::NotAFile(_)));
        assert!(matches!(refusal(&path.join("x")), LocalKmsError::Io { .. }));
    }
}
