//! The API's socket as a file: how it appears, and how it goes away.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use crate::host::socket::SocketFile;

/// A listening socket whose file is removed when this is dropped, if it is still the same file.
#[derive(Debug)]
pub struct ApiSocket {
    listener: UnixListener,
    file: SocketFile,
}

/// Why a socket could not be had.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another process listens on it.
    #[error("the API socket {} is in use: another process answers on it", .0.display())]
    Live(PathBuf),
    /// Something else is in its place.
    #[error("the API socket {} can't be made: there is a file that is not a socket", .0.display())]
    NotASocket(PathBuf),
    /// The host refuses.
    #[error("the API socket {} can't be made: {source}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// What the host says.
        source: io::Error,
    },
}

impl ApiSocket {
    /// Listens on `path`. A socket that a dead process left behind is reclaimed.
    ///
    /// The socket is made under another name, given `mode` (0600: its owner only), and only then renamed to `path`: nobody
    /// can connect before its mode is set, whatever the umask is.
    ///
    /// # Errors
    /// [`SocketError`]; then whatever was at `path` is still there.
    pub fn bind(path: &Path, mode: u32) -> Result<Self, SocketError> {
        let io_error = |source| SocketError::Io { path: path.to_owned(), source };
        match fs::symlink_metadata(path) {
            Ok(metadata) if !metadata.file_type().is_socket() => {
                return Err(SocketError::NotASocket(path.to_owned()));
            }
            Ok(_) => match UnixStream::connect(path) {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Ok(_) => return Err(SocketError::Live(path.to_owned())),
                // A full backlog: somebody has it open.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(SocketError::Live(path.to_owned()));
                }
                Err(error) => return Err(io_error(error)),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io_error(error)),
        }
        let private = private_name(path);
        let listener = UnixListener::bind(&private).map_err(io_error)?;
        let made = (|| {
            fs::set_permissions(&private, fs::Permissions::from_mode(mode))?;
            listener.set_nonblocking(true)?;
            let file = SocketFile::of(&private, path)?;
            fs::rename(&private, path)?;
            Ok(file)
        })();
        let file = made.map_err(|error| {
            let _ = fs::remove_file(&private);
            io_error(error)
        })?;
        Ok(Self { listener, file })
    }

    pub(super) fn into_parts(self) -> (UnixListener, SocketFile) {
        (self.listener, self.file)
    }
}

/// A name beside `path`, so short that it fits where `path` does not quite (a socket's path has at most 107 bytes).
fn private_name(path: &Path) -> PathBuf {
    path.with_file_name(format!(".{:x}", std::process::id()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.sock");
        (dir, path)
    }

    #[test]
    fn a_socket_is_private_and_goes_away_with_its_owner_leaving_nothing() {
        let (dir, path) = dir();
        let socket = ApiSocket::bind(&path, 0o600).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        UnixStream::connect(&path).unwrap();
        drop(socket);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_stale_socket_is_reclaimed_and_a_live_one_refused() {
        let (_dir, path) = dir();
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "std leaves the file behind, as a killed process does");
        let socket = ApiSocket::bind(&path, 0o600).unwrap();
        let error = ApiSocket::bind(&path, 0o600).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("the API socket {} is in use: another process answers on it", path.display())
        );
        drop(socket);
    }

    #[test]
    fn a_file_that_is_no_socket_is_left_alone() {
        let (_dir, path) = dir();
        fs::write(&path, "precious").unwrap();
        assert!(matches!(ApiSocket::bind(&path, 0o600), Err(SocketError::NotASocket(_))));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn a_missing_directory_is_refused_with_what_the_host_says() {
        let error = ApiSocket::bind(Path::new("/nowhere/api.sock"), 0o600).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the API socket /nowhere/api.sock can't be made: No such file or directory (os error 2)"
        );
    }

    #[test]
    fn a_socket_that_someone_replaced_is_not_removed() {
        let (_dir, path) = dir();
        let ours = ApiSocket::bind(&path, 0o600).unwrap();
        fs::remove_file(&path).unwrap();
        let theirs = UnixListener::bind(&path).unwrap();
        drop(ours);
        UnixStream::connect(&path).unwrap();
        drop(theirs);
    }
}
