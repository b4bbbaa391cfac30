//! A file that somebody named: it is what it is said to be, or refused at once.

use std::fs::{File, FileType, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use super::FileError;

fn kind(file_type: FileType) -> &'static str {
    if file_type.is_symlink() {
        "a symbolic link"
    } else if file_type.is_dir() {
        "a directory"
    } else if file_type.is_fifo() {
        "a FIFO"
    } else if file_type.is_socket() {
        "a socket"
    } else {
        "a device"
    }
}

fn check(path: &Path, metadata: &Metadata) -> Result<(), FileError> {
    if metadata.is_file() {
        return Ok(());
    }
    Err(FileError::NotRegular { path: path.to_owned(), found: kind(metadata.file_type()) })
}

/// Opens the regular file at `path` for reading, and for writing if `write`. Never waits for somebody at the other end, and
/// opens nothing that opening does something to: it looks first, and afterwards whether it got what it had seen.
///
/// # Errors
/// [`FileError::Relative`], [`FileError::NotRegular`] (a symbolic link too, if it is the last name), [`FileError::Host`].
pub fn open(path: &Path, write: bool) -> Result<File, FileError> {
    if !path.is_absolute() {
        return Err(FileError::Relative(path.to_owned()));
    }
    let seen = path.symlink_metadata().map_err(FileError::host("open", path))?;
    check(path, &seen)?;
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = OpenOptions::new().read(true).write(write).custom_flags(flags).open(path);
    let file = file.map_err(FileError::host("open", path))?;
    let got = file.metadata().map_err(FileError::host("look at", path))?;
    check(path, &got)?;
    if (got.dev(), got.ino()) != (seen.dev(), seen.ino()) {
        let why = io::Error::new(io::ErrorKind::ResourceBusy, "it was replaced meanwhile");
        return Err(FileError::host("open", path)(why));
    }
    Ok(file)
}
