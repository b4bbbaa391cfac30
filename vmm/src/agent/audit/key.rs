//! The host's signing key: 64 hexadecimal digits in a file that only its owner can read, made once.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use ed25519_dalek::SigningKey;

use super::chain::{from_hex, to_hex};
use super::files::sync_dir_of;

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Others could have read or written it.
    #[error("{} has mode {mode:03o} and owner {uid}; a key is a regular file with mode 600 whose owner is {me}", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
        /// Its owner.
        uid: u32,
        /// Who runs this.
        me: u32,
    },
    /// It holds something else.
    #[error("{} is not a key: 64 lower-case hexadecimal digits and a newline are; move it away to get a new key", .0.display())]
    Malformed(PathBuf),
    /// The host refuses.
    #[error("can't {op} {}", path.display())]
    Host {
        /// What was done.
        op: &'static str,
        /// The file.
        path: PathBuf,
        /// What the host says.
        source: io::Error,
    },
    /// The host has no random bytes.
    #[error("can't get random bytes for a key")]
    Random(#[source] getrandom::Error),
}

/// The key in the file `path`; if there is no such file, a new key, which is on the disk when this returns. Several callers
/// at once get the same.
///
/// # Errors
/// [`KeyError`]. A file that is there is never overwritten.
pub fn load_or_create_key(path: &Path) -> Result<SigningKey, KeyError> {
    match load(path)? {
        Some(key) => Ok(key),
        None => create(path),
    }
}

fn host<'a>(op: &'static str, path: &'a Path) -> impl Fn(io::Error) -> KeyError + use<'a> {
    move |source| KeyError::Host { op, path: path.to_owned(), source }
}

fn load(path: &Path) -> Result<Option<SigningKey>, KeyError> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(host("open", path))?,
    };
    check(&file, path)?;
    let mut text = Vec::new();
    file.take(66).read_to_end(&mut text).map_err(host("read", path))?;
    let digits = text.strip_suffix(b"\n").ok_or_else(|| KeyError::Malformed(path.to_owned()))?;
    let secret = from_hex(digits).map_err(|_| KeyError::Malformed(path.to_owned()))?;
    Ok(Some(SigningKey::from_bytes(&secret)))
}

/// Whether nobody else can have read or written the file, or can.
fn check(file: &File, path: &Path) -> Result<(), KeyError> {
    let stat = file.metadata().map_err(host("look at", path))?;
    let (mode, uid, me) = (stat.mode() & 0o7777, stat.uid(), nix::unistd::geteuid().as_raw());
    if stat.is_file() && mode & 0o077 == 0 && uid == me {
        return Ok(());
    }
    Err(KeyError::Exposed { path: path.to_owned(), mode, uid, me })
}

/// Makes the file under another name, and gives it its own when it is whole. The other name is a lock too: who waits for it
/// finds the key made, and what a killed one left is made anew.
fn create(path: &Path) -> Result<SigningKey, KeyError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let new = PathBuf::from(name);
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600);
    let mut file: File =
        options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(&new).map_err(host("create", &new))?;
    check(&file, &new)?;
    file.lock().map_err(host("lock", &new))?;
    // What was opened may be the key itself by now, which the holder before has renamed.
    if let Some(key) = load(path)? {
        let unneeded = fs::remove_file(&new);
        return match unneeded {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(host("remove", &new)(error)),
            _ => Ok(key),
        };
    }
    let mut secret = [0; 32];
    getrandom::fill(&mut secret).map_err(KeyError::Random)?;
    let text = to_hex(&secret) + "\n";
    let written =
        file.set_len(0).and_then(|()| file.write_all(text.as_bytes())).and_then(|()| file.sync_all());
    written.map_err(host("write", &new))?;
    fs::rename(&new, path).map_err(host("name", path))?;
    sync_dir_of(path).map_err(host("sync the directory of", path))?;
    Ok(SigningKey::from_bytes(&secret))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::thread;

    fn rig() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("host.key");
        (dir, path)
    }

    #[test]
    fn a_key_is_made_once_for_its_owner_only_and_nothing_is_left_beside_it() {
        let (dir, path) = rig();
        let key = load_or_create_key(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(load_or_create_key(&path).unwrap(), key);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        let (_dir, other) = rig();
        assert_ne!(load_or_create_key(&other).unwrap(), key);
    }

    #[test]
    fn many_at_once_get_the_same_key_even_after_one_that_was_killed() {
        let (dir, path) = rig();
        let new = dir.path().join("host.key.new");
        fs::write(&new, "half a ke").unwrap();
        let error = load_or_create_key(&path).unwrap_err();
        assert!(matches!(error, KeyError::Exposed { .. }), "{error}");
        fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).unwrap();
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let path = path.clone();
                thread::spawn(move || load_or_create_key(&path).unwrap().to_bytes())
            })
            .collect();
        let keys: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        assert!(keys.iter().all(|key| key == &keys[0]));
        assert_eq!(load_or_create_key(&path).unwrap().to_bytes(), keys[0]);
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let (_dir, path) = rig();
        load_or_create_key(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = load_or_create_key(&path).unwrap_err();
        assert!(matches!(error, KeyError::Exposed { mode: 0o640, .. }), "{error}");
    }

    #[test]
    fn a_link_and_a_file_that_is_no_key_are_refused_and_stay_as_they_are() {
        let (dir, path) = rig();
        for text in ["", "00\n", &"A".repeat(64), &("0".repeat(64) + "\n\n"), &("g".repeat(64) + "\n")] {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            let error = load_or_create_key(&path).unwrap_err();
            assert!(matches!(error, KeyError::Malformed(_)), "{error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        let target = dir.path().join("target");
        fs::rename(&path, &target).unwrap();
        symlink(&target, &path).unwrap();
        let error = load_or_create_key(&path).unwrap_err();
        assert!(matches!(error, KeyError::Host { op: "open", .. }), "{error}");
    }
}
