//! Directories held open, and what is done below them by descriptor: no path is resolved twice, no link is followed.
//!
//! A [`Dir`] is a descriptor and, for messages only, the path it once had. Every operation takes a path of plain names
//! below it. The kernel resolves the way there in one step with `openat2` (`RESOLVE_BENEATH`, `RESOLVE_NO_SYMLINKS`,
//! `RESOLVE_NO_MAGICLINKS`); the last name is made, looked at or removed by calls that don't follow links either. So who
//! can rename things below a directory can make an operation fail, but not make it happen somewhere else.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, fstatat, makedev, mkdirat, mknodat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, fchownat, linkat, unlinkat};

/// A directory, by descriptor.
#[derive(Debug)]
pub struct Dir {
    fd: OwnedFd,
    path: PathBuf,
}

/// What something in a directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A Unix socket.
    Socket,
    /// A character device with this major and minor number.
    Device(u32, u32),
}

/// Why something below a directory could not be done.
#[derive(Debug, thiserror::Error)]
pub enum PathError {
    /// The path leaves the directory, or is no path of plain names.
    #[error("{} is refused: only plain names below a directory are accepted, without `..`, `.` or a leading `/`", .0.display())]
    NotBelow(PathBuf),
    /// A symbolic link is in the way.
    #[error("{} is refused: it is a symbolic link, or one is on the way to it", .0.display())]
    Link(PathBuf),
    /// The file has other names too, perhaps somewhere that must not be written.
    #[error("{} is refused: it has {links} hard links, 1 is accepted", path.display())]
    HardLinked {
        /// Where.
        path: PathBuf,
        /// How many names it has.
        links: u64,
    },
    /// Something else is in its place.
    #[error("{} is refused: it is not {}", path.display(), expected.name())]
    WrongKind {
        /// Where.
        path: PathBuf,
        /// What would be accepted.
        expected: Kind,
    },
    /// The host refuses.
    #[error("can't {doing} {}", path.display())]
    Host {
        /// To do what, a verb.
        doing: &'static str,
        /// With what.
        path: PathBuf,
        /// What the host says.
        source: io::Error,
    },
}

impl PathError {
    /// The host's error, if it is one.
    #[must_use]
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Host { source, .. } => source.raw_os_error().map(Errno::from_raw),
            Self::NotBelow(_) | Self::Link(_) | Self::HardLinked { .. } | Self::WrongKind { .. } => None,
        }
    }
}

impl Kind {
    /// Whether `stat` is of this kind.
    #[must_use]
    pub fn is(self, stat: &FileStat) -> bool {
        let format = stat.st_mode & libc::S_IFMT;
        match self {
            Self::Directory => format == libc::S_IFDIR,
            Self::File => format == libc::S_IFREG,
            Self::Socket => format == libc::S_IFSOCK,
            Self::Device(major, minor) => {
                format == libc::S_IFCHR && stat.st_rdev == makedev(u64::from(major), u64::from(minor))
            }
        }
    }

    /// Refuses what `stat` says is at `path` unless it is of this kind, and has this name alone.
    ///
    /// # Errors
    /// [`PathError::Link`], [`PathError::WrongKind`] and [`PathError::HardLinked`].
    pub fn check(self, stat: &FileStat, path: PathBuf) -> Result<(), PathError> {
        if stat.st_mode & libc::S_IFMT == libc::S_IFLNK {
            return Err(PathError::Link(path));
        }
        if !self.is(stat) {
            return Err(PathError::WrongKind { path, expected: self });
        }
        if self != Kind::Directory && stat.st_nlink != 1 {
            return Err(PathError::HardLinked { path, links: stat.st_nlink });
        }
        Ok(())
    }

    fn name(self) -> String {
        match self {
            Self::Directory => "a directory".to_owned(),
            Self::File => "a regular file".to_owned(),
            Self::Socket => "a socket".to_owned(),
            Self::Device(major, minor) => format!("the character device {major}:{minor}"),
        }
    }
}

/// Whether `path` consists of plain names, at least one.
#[must_use]
pub fn is_plain(path: &Path) -> bool {
    // Components swallow "a/./b" and "a//b": the text must be what they say.
    let rebuilt: PathBuf = path.components().collect();
    !path.as_os_str().is_empty()
        && rebuilt.as_os_str() == path.as_os_str()
        && path.components().all(|component| matches!(component, Component::Normal(_)))
}

impl Dir {
    /// Opens the directory that a caller named. Links on the way to it are the caller's own choice and are followed; from
    /// here on none is.
    ///
    /// # Errors
    /// [`PathError::Host`].
    pub fn open(path: &Path) -> Result<Self, PathError> {
        let flags = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let fd = open(path, flags, Mode::empty()).map_err(|error| host("open the directory", path, error))?;
        Ok(Self { fd, path: path.to_owned() })
    }

    /// Where it was when it was opened: for messages.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory `below` this one.
    ///
    /// # Errors
    /// [`PathError`].
    pub fn dir(&self, below: impl AsRef<Path>) -> Result<Self, PathError> {
        let below = below.as_ref();
        let fd = self.resolve("open the directory", below, OFlag::O_DIRECTORY, Mode::empty())?;
        Ok(Self { fd, path: self.path.join(below) })
    }

    /// Opens a file `below` this directory, never through a link.
    ///
    /// # Errors
    /// [`PathError`].
    pub fn open_file(&self, below: impl AsRef<Path>, flags: OFlag, mode: Mode) -> Result<File, PathError> {
        Ok(self.resolve("open", below.as_ref(), flags | OFlag::O_NOFOLLOW, mode)?.into())
    }

    /// Makes a new file `below` this directory, for writing.
    ///
    /// # Errors
    /// [`PathError`]: something is there already, for one.
    pub fn create(&self, below: impl AsRef<Path>, mode: u32) -> Result<File, PathError> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW;
        Ok(self.resolve("make", below.as_ref(), flags, Mode::from_bits_truncate(mode))?.into())
    }

    /// Makes a directory `below` this one; whether it had to.
    ///
    /// # Errors
    /// [`PathError`]; something else in its place is found out when it is opened.
    pub fn make_dir(&self, below: impl AsRef<Path>, mode: u32) -> Result<bool, PathError> {
        let below = below.as_ref();
        let (parent, name) = self.parent_of(below)?;
        match mkdirat(parent.as_fd(), name, Mode::from_bits_truncate(mode)) {
            Ok(()) => Ok(true),
            Err(Errno::EEXIST) => Ok(false),
            Err(error) => Err(self.failed("make the directory", below, error)),
        }
    }

    /// Makes a character device `below` this directory, readable and writable for `owner` alone.
    ///
    /// # Errors
    /// [`PathError`]: something is there already, for one.
    pub fn make_device(
        &self,
        below: impl AsRef<Path>,
        (major, minor): (u32, u32),
        owner: (Uid, Gid),
    ) -> Result<(), PathError> {
        let below = below.as_ref();
        let (parent, name) = self.parent_of(below)?;
        let mode = Mode::S_IRUSR | Mode::S_IWUSR;
        let device = makedev(u64::from(major), u64::from(minor));
        mknodat(parent.as_fd(), name, SFlag::S_IFCHR, mode, device)
            .map_err(|error| self.failed("make the device", below, error))?;
        self.give_device(below, (major, minor), owner)
    }

    /// Gives the device `below` this directory to `owner`, if it is that one.
    fn give_device(
        &self,
        below: &Path,
        (major, minor): (u32, u32),
        (uid, gid): (Uid, Gid),
    ) -> Result<(), PathError> {
        // By descriptor: whose directory this is may put a file there meanwhile that is not to be its own.
        let doing = "give away the device";
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW;
        let node = self.resolve(doing, below, flags, Mode::empty())?;
        let stat = fstat(&node).map_err(|error| self.failed(doing, below, error))?;
        Kind::Device(major, minor).check(&stat, self.path.join(below))?;
        fchownat(&node, "", Some(uid), Some(gid), AtFlags::AT_EMPTY_PATH)
            .map_err(|error| self.failed(doing, below, error))
    }

    /// Gives `from` a second name `to`, which must be free.
    ///
    /// # Errors
    /// [`PathError`].
    pub fn link(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<(), PathError> {
        let (old, old_name) = self.parent_of(from.as_ref())?;
        let (new, new_name) = self.parent_of(to.as_ref())?;
        linkat(old.as_fd(), old_name, new.as_fd(), new_name, AtFlags::empty())
            .map_err(|error| self.failed("make", to.as_ref(), error))
    }

    /// What is `below` this directory under that name, not following a link; `None` if nothing is.
    ///
    /// # Errors
    /// [`PathError`].
    pub fn look(&self, below: impl AsRef<Path>) -> Result<Option<FileStat>, PathError> {
        let below = below.as_ref();
        let found = self.parent_of(below).and_then(|(parent, name)| {
            fstatat(parent.as_fd(), name, AtFlags::AT_SYMLINK_NOFOLLOW)
                .map_err(|error| self.failed("look at", below, error))
        });
        match found {
            Ok(stat) => Ok(Some(stat)),
            Err(error) if error.errno() == Some(Errno::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether there is nothing `below` this directory under that name; if something is, it must be of this kind, and have
    /// this name alone.
    ///
    /// # Errors
    /// [`PathError::Link`], [`PathError::WrongKind`] and [`PathError::HardLinked`] for what is there, or the host's.
    pub fn is_free(&self, below: impl AsRef<Path>, or_is: Kind) -> Result<bool, PathError> {
        let below = below.as_ref();
        let Some(stat) = self.look(below)? else { return Ok(true) };
        or_is.check(&stat, self.path.join(below)).map(|()| false)
    }

    /// Removes the file, device or socket `below` this directory if it is one of that kind.
    ///
    /// # Errors
    /// The host's; that there is none, or something else, is no error.
    pub fn remove(&self, below: impl AsRef<Path>, kind: Kind) -> Result<(), PathError> {
        let below = below.as_ref();
        if !self.look(below)?.is_some_and(|stat| kind.is(&stat)) {
            return Ok(());
        }
        let (parent, name) = self.parent_of(below)?;
        match unlinkat(parent.as_fd(), name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(error) => Err(self.failed("remove", below, error)),
        }
    }

    /// Removes the directory `below` this one.
    ///
    /// # Errors
    /// [`PathError::Host`]: with ENOTEMPTY if it is in use, for one.
    pub fn remove_dir(&self, below: impl AsRef<Path>) -> Result<(), PathError> {
        let below = below.as_ref();
        let (parent, name) = self.parent_of(below)?;
        unlinkat(parent.as_fd(), name, UnlinkatFlags::RemoveDir)
            .map_err(|error| self.failed("remove the directory", below, error))
    }

    /// Whose it is, and its mode.
    ///
    /// # Errors
    /// [`PathError::Host`].
    pub fn stat(&self) -> Result<FileStat, PathError> {
        fstat(&self.fd).map_err(|error| host("look at", &self.path, error))
    }

    /// Gives it to `uid` and `gid`, with this mode.
    ///
    /// # Errors
    /// [`PathError::Host`].
    pub fn give_to(&self, (uid, gid): (Uid, Gid), mode: u32) -> Result<(), PathError> {
        fchown(&self.fd, Some(uid), Some(gid))
            .map_err(|error| host("give away the directory", &self.path, error))?;
        self.set_mode(mode)
    }

    /// Sets its mode, whatever the umask is.
    ///
    /// # Errors
    /// [`PathError::Host`].
    pub fn set_mode(&self, mode: u32) -> Result<(), PathError> {
        fchmod(&self.fd, Mode::from_bits_truncate(mode))
            .map_err(|error| host("set the mode of", &self.path, error))
    }

    /// Opens the directory in which the last name of `below` is, and says that name.
    fn parent_of<'a>(&self, below: &'a Path) -> Result<(Parent<'_>, &'a OsStr), PathError> {
        if !is_plain(below) {
            return Err(PathError::NotBelow(below.to_owned()));
        }
        let name = below.file_name().expect("a plain path ends in a name");
        match below.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            Some(parent) => Ok((Parent::Opened(self.dir(parent)?), name)),
            None => Ok((Parent::Itself(self), name)),
        }
    }

    fn resolve(
        &self,
        doing: &'static str,
        below: &Path,
        flags: OFlag,
        mode: Mode,
    ) -> Result<OwnedFd, PathError> {
        if !is_plain(below) {
            return Err(PathError::NotBelow(below.to_owned()));
        }
        let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC).mode(mode).resolve(
            ResolveFlag::RESOLVE_BENEATH
                | ResolveFlag::RESOLVE_NO_SYMLINKS
                | ResolveFlag::RESOLVE_NO_MAGICLINKS,
        );
        openat2(&self.fd, below, how).map_err(|error| self.failed(doing, below, error))
    }

    fn failed(&self, doing: &'static str, below: &Path, error: Errno) -> PathError {
        let path = self.path.join(below);
        match error {
            // RESOLVE_NO_SYMLINKS and O_NOFOLLOW say ELOOP; RESOLVE_BENEATH says EXDEV.
            Errno::ELOOP | Errno::EXDEV => PathError::Link(path),
            error => host(doing, &path, error),
        }
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Dir {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

fn host(doing: &'static str, path: &Path, error: Errno) -> PathError {
    PathError::Host { doing, path: path.to_owned(), source: error.into() }
}

/// The directory that holds a name: this one, or one opened on the way.
enum Parent<'a> {
    Itself(&'a Dir),
    Opened(Dir),
}

impl AsFd for Parent<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Itself(dir) => dir.as_fd(),
            Self::Opened(dir) => dir.as_fd(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn rig() -> (tempfile::TempDir, Dir) {
        let temporary = tempfile::tempdir().unwrap();
        let dir = Dir::open(temporary.path()).unwrap();
        (temporary, dir)
    }

    proptest! {
        #[test]
        fn only_paths_of_plain_names_are_plain(path in "[a./]{0,8}") {
            let plain = !path.is_empty() && path.split('/').all(|name| !["", ".", ".."].contains(&name));
            prop_assert_eq!(is_plain(Path::new(&path)), plain);
        }
    }

    #[test]
    fn what_leaves_the_directory_is_refused_by_every_operation() {
        let (_temporary, dir) = rig();
        for path in ["..", "../x", "/etc", "a/../b", "", ".", "a//b", "a/"] {
            let refused = |result: Result<(), PathError>| {
                assert!(matches!(result, Err(PathError::NotBelow(_))), "{path:?}: {result:?}");
            };
            refused(dir.dir(path).map(drop));
            refused(dir.open_file(path, OFlag::O_RDONLY, Mode::empty()).map(drop));
            refused(dir.create(path, 0o600).map(drop));
            refused(dir.make_dir(path, 0o700).map(drop));
            refused(dir.make_device(path, (1, 9), (Uid::current(), Gid::current())));
            refused(dir.look(path).map(drop));
            refused(dir.is_free(path, Kind::File).map(drop));
            refused(dir.remove(path, Kind::File));
            refused(dir.remove_dir(path));
            refused(dir.link("x", path));
            refused(dir.link(path, "x"));
        }
    }

    #[test]
    fn no_operation_follows_a_link_on_its_way_and_what_it_points_to_stays() {
        let (temporary, dir) = rig();
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("precious"), "precious").unwrap();
        symlink(outside.path(), temporary.path().join("link")).unwrap();
        let refused = |result: Result<(), PathError>| {
            assert!(matches!(result, Err(PathError::Link(_))), "{result:?}");
        };
        refused(dir.dir("link").map(drop).map_err(|error| match error.errno() {
            // O_DIRECTORY is looked at first by some kernels.
            Some(Errno::ENOTDIR) => PathError::Link(PathBuf::new()),
            _ => error,
        }));
        refused(dir.open_file("link/precious", OFlag::O_RDONLY, Mode::empty()).map(drop));
        refused(dir.create("link/new", 0o600).map(drop));
        refused(dir.make_dir("link/new", 0o700).map(drop));
        refused(dir.look("link/precious").map(drop));
        refused(dir.remove("link/precious", Kind::File));
        refused(dir.is_free("link", Kind::Directory).map(drop));
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
    }

    #[test]
    fn the_last_name_is_not_followed_either() {
        let (temporary, dir) = rig();
        let target = temporary.path().join("target");
        symlink(&target, temporary.path().join("link")).unwrap();
        assert_eq!(dir.create("link", 0o600).unwrap_err().errno(), Some(Errno::EEXIST));
        assert!(!target.exists());
        dir.remove("link", Kind::File).unwrap();
        assert!(temporary.path().join("link").symlink_metadata().is_ok(), "a link is not a file");
    }

    #[test]
    fn what_is_in_the_way_is_named_by_kind_and_number_of_names() {
        let (temporary, dir) = rig();
        assert!(dir.is_free("file", Kind::File).unwrap());
        fs::write(temporary.path().join("file"), "x").unwrap();
        assert!(!dir.is_free("file", Kind::File).unwrap());
        let error = dir.is_free("file", Kind::Device(10, 232)).unwrap_err().to_string();
        assert!(error.ends_with("file is refused: it is not the character device 10:232"), "{error}");
        fs::hard_link(temporary.path().join("file"), temporary.path().join("other")).unwrap();
        let error = dir.is_free("file", Kind::File).unwrap_err().to_string();
        assert!(error.ends_with("file is refused: it has 2 hard links, 1 is accepted"), "{error}");
        dir.remove("file", Kind::Socket).unwrap();
        assert!(temporary.path().join("file").exists(), "only what is of the kind is removed");
    }

    #[test]
    fn what_was_put_in_a_devices_place_is_not_given_away() {
        let (temporary, dir) = rig();
        let owner = (Uid::current(), Gid::current());
        fs::write(temporary.path().join("file"), "precious").unwrap();
        symlink("file", temporary.path().join("link")).unwrap();
        for name in ["file", "link"] {
            assert!(dir.give_device(Path::new(name), (10, 232), owner).is_err(), "{name}");
        }
    }

    #[test]
    fn a_directory_that_was_moved_is_still_the_one_that_is_worked_on() {
        let (temporary, dir) = rig();
        fs::create_dir(temporary.path().join("a")).unwrap();
        let a = dir.dir("a").unwrap();
        fs::rename(temporary.path().join("a"), temporary.path().join("b")).unwrap();
        symlink("/etc", temporary.path().join("a")).unwrap();
        a.create("new", 0o600).unwrap();
        assert!(temporary.path().join("b/new").exists());
    }
}
