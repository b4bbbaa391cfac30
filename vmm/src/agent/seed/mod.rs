//! The cloud-init NoCloud disk: how a guest learns its name, its addresses, and whom to let in.
//!
//! A FAT file system of 1 MiB with the label `CIDATA` and the files `meta-data`, `user-data` and, if there is one,
//! `network-config`, as cloud-init's NoCloud data source looks for them. Attach it to a VM as a read-only drive.
//!
//! The same [`Seed`] makes the same bytes, whenever and wherever: no time of day and nothing random goes in.

use std::fs::{self, OpenOptions};
use std::io::{self, Cursor, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use fatfs::{Date, DateTime, FatType, FileSystem, FormatVolumeOptions, FsOptions, Time, TimeProvider};
use serde_json::json;

use super::files::{FileError, staged, sync_dir};

/// Bytes of the disk: what the files may have together, and the file system's own tables.
pub const DISK_BYTES: usize = 1 << 20;
/// Bytes of user-data at the most.
pub const USER_DATA_BYTES_MAX: usize = 512 << 10;
/// Bytes of network-config at the most: a hundred interfaces' worth.
pub const NETWORK_CONFIG_BYTES_MAX: usize = 64 << 10;
/// Keys at the most.
pub const SSH_KEYS_MAX: usize = 64;
/// Bytes of a key at the most: twice an RSA key of 16384 bits with a comment.
pub const SSH_KEY_BYTES_MAX: usize = 8 << 10;
/// Bytes of all keys together at the most.
pub const SSH_KEYS_BYTES_MAX: usize = 64 << 10;
/// Characters of an instance id at the most.
pub const INSTANCE_ID_LEN_MAX: usize = 128;
/// Characters of a host name at the most (hostname(7)), dots included.
pub const HOSTNAME_LEN_MAX: usize = 64;

const LABEL: [u8; 11] = *b"CIDATA     ";
const SECTOR: usize = 512;
/// Bytes between two looks for what need not be written.
const BLOCK: usize = 4096;
/// What a guest is told that there is no user-data: an empty file would do, but gets a warning.
const NO_USER_DATA: &str = "#cloud-config\n{}\n";

/// What the disk says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seed {
    /// Which incarnation of the guest's disk it is for: cloud-init does its first boot's work when this changes. 1 to 128
    /// letters, digits and `.`, `_`, `-`.
    pub instance_id: String,
    /// The guest's name: labels of letters, digits and `-`, with dots between them, 64 characters at the most.
    pub hostname: String,
    /// User-data as cloud-init takes it, 512 KiB at the most.
    pub user_data: Option<String>,
    /// Network configuration, version 1 or 2, in YAML or JSON, 64 KiB at the most.
    pub network_config: Option<String>,
    /// Public keys of those who may log in as the image's default user, each a line as in `authorized_keys`.
    pub ssh_keys: Vec<String>,
}

/// Why there is no disk.
#[derive(Debug, thiserror::Error)]
pub enum SeedError {
    /// A field is not as it must be.
    #[error("{field} {value:?} is refused: {accepted} is accepted")]
    Field {
        /// Which one.
        field: &'static str,
        /// What it was, shortened.
        value: String,
        /// What would be accepted.
        accepted: &'static str,
    },
    /// There is too much of something.
    #[error("{field} is refused: it has {got} {unit}, at most {max} are accepted")]
    TooMuch {
        /// Which field.
        field: &'static str,
        /// How much.
        got: usize,
        /// Of what.
        unit: &'static str,
        /// How much would be accepted.
        max: usize,
    },
    /// The file system could not be made, which no content should bring about.
    #[error("can't make the file system of {}", path.display())]
    FileSystem {
        /// Of which disk.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// The file can't be written.
    #[error(transparent)]
    File(#[from] FileError),
}

impl Seed {
    /// Accepts what a disk can be made of.
    ///
    /// # Errors
    /// [`SeedError::Field`] and [`SeedError::TooMuch`].
    pub fn check(&self) -> Result<(), SeedError> {
        let refuse = |field, value: &str, accepted| {
            let value = value.chars().take(INSTANCE_ID_LEN_MAX).collect();
            Err(SeedError::Field { field, value, accepted })
        };
        let id = &self.instance_id;
        let in_id = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if id.is_empty() || id.len() > INSTANCE_ID_LEN_MAX || !id.chars().all(in_id) {
            return refuse("instance_id", id, "a text of 1 to 128 letters, digits and `.`, `_`, `-`");
        }
        let is_label = |label: &str| {
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
        };
        if self.hostname.len() > HOSTNAME_LEN_MAX || !self.hostname.split('.').all(is_label) {
            let accepted =
                "a name of 1 to 64 characters, of labels of letters, digits and inner `-` with dots between,";
            return refuse("hostname", &self.hostname, accepted);
        }
        for key in &self.ssh_keys {
            let printable = key.chars().all(|c| !c.is_control());
            if !printable || key.trim().is_empty() || key.len() > SSH_KEY_BYTES_MAX {
                return refuse("ssh_keys", key, "one line of 1 to 8192 bytes");
            }
        }
        let size = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        let keys_bytes = self.ssh_keys.iter().map(String::len).sum();
        for (field, got, unit, max) in [
            ("user_data", size(&self.user_data), "bytes", USER_DATA_BYTES_MAX),
            ("network_config", size(&self.network_config), "bytes", NETWORK_CONFIG_BYTES_MAX),
            ("ssh_keys", self.ssh_keys.len(), "keys", SSH_KEYS_MAX),
            ("ssh_keys", keys_bytes, "bytes", SSH_KEYS_BYTES_MAX),
        ] {
            if got > max {
                return Err(SeedError::TooMuch { field, got, unit, max });
            }
        }
        Ok(())
    }

    /// The files, in the order in which they are made. JSON is YAML too, and leaves nothing to quote.
    fn files(&self) -> Vec<(&'static str, String)> {
        let meta_data = json!({
            "instance-id": self.instance_id,
            "local-hostname": self.hostname,
            "public-keys": self.ssh_keys,
        });
        let user_data = self.user_data.as_deref().unwrap_or(NO_USER_DATA);
        let mut files = vec![("meta-data", format!("{meta_data:#}\n")), ("user-data", user_data.to_owned())];
        files.extend(self.network_config.clone().map(|text| ("network-config", text)));
        files
    }
}

/// The only time there is on these disks, for the same bytes at any time.
#[derive(Debug)]
struct Fixed;

impl TimeProvider for Fixed {
    fn get_current_date(&self) -> Date {
        Date { year: 1980, month: 1, day: 1 }
    }

    fn get_current_date_time(&self) -> DateTime {
        DateTime { date: self.get_current_date(), time: Time { hour: 0, min: 0, sec: 0, millis: 0 } }
    }
}

/// The disk's bytes.
fn image(seed: &Seed) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; DISK_BYTES];
    // The id is as fixed as the time: nothing tells one of these disks from another but its content.
    let options =
        FormatVolumeOptions::new().volume_label(LABEL).volume_id(0x1980_0101).fat_type(FatType::Fat12);
    fatfs::format_volume(Cursor::new(&mut bytes[..]), options.bytes_per_cluster(2048))?;
    let disk = Cursor::new(&mut bytes[..]);
    let file_system = FileSystem::new(disk, FsOptions::new().time_provider(&Fixed))?;
    for (name, content) in seed.files() {
        let mut file = file_system.root_dir().create_file(name)?;
        file.write_all(content.as_bytes())?;
        file.flush()?;
    }
    file_system.unmount()?;
    Ok(bytes)
}

/// Makes the disk of `seed` at `path`, an absolute one whose directory is there, in place of an earlier one. Only its owner
/// may read it: user-data may hold secrets.
///
/// It is made as `path` with `.part` behind it. One thread at a time may make a disk at a path; what was cut short is
/// replaced by the next.
///
/// # Errors
/// [`SeedError::Field`], [`SeedError::TooMuch`]; [`SeedError::File`], with [`FileError::Full`] for one: what was at `path` is
/// still there, and nothing else. [`SeedError::FileSystem`] would be a mistake of ours.
pub fn write(path: &Path, seed: &Seed) -> Result<(), SeedError> {
    seed.check()?;
    let (Some(dir), true) = (path.parent(), path.is_absolute()) else {
        return Err(FileError::Relative(path.to_owned()).into());
    };
    let bytes = image(seed).map_err(|source| SeedError::FileSystem { path: path.to_owned(), source })?;
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    staged::remove(&part)?;
    let written = write_file(&part, path, &bytes)
        .and_then(|()| fs::rename(&part, path).map_err(FileError::host("rename a new disk to", path)));
    if written.is_err() {
        staged::remove(&part)?;
    }
    written?;
    Ok(sync_dir(dir)?)
}

/// Writes `bytes`, all but blocks of zeros, to the new file `part`, which errors call `named`.
fn write_file(part: &Path, named: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(part);
    let file = file.map_err(FileError::host("make", named))?;
    let write = || -> io::Result<()> {
        file.set_len(bytes.len() as u64)?;
        for (block, offset) in bytes.chunks(BLOCK).zip((0..).step_by(BLOCK)) {
            if block.iter().any(|byte| *byte != 0) {
                file.write_all_at(block, offset)?;
            }
        }
        file.sync_all()
    };
    write().map_err(FileError::growing("write", named, &file, bytes.len() as u64))
}

/// So that it is a disk, and everything fits.
const _: () = assert!(
    DISK_BYTES.is_multiple_of(SECTOR)
        && USER_DATA_BYTES_MAX + NETWORK_CONFIG_BYTES_MAX + 3 * SSH_KEYS_BYTES_MAX + (32 << 10) < DISK_BYTES
);

#[cfg(test)]
#[path = "seed_tests.rs"]
mod tests;
