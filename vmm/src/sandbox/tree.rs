//! The jail as files: `<base>/<exec name>/<id>/root` with what the VMM needs in it, and the way back to nothing.
//!
//! ```text
//!   base/                        the caller's; checked, never changed
//!   └ yun-vmm/                   named after the exec file; shared by its jails
//!     └ vm-1/                    one jail's
//!       ├ jail.lock              who holds it, see `lock`
//!       └ root/                  the VMM's `/`
//!         ├ yun-vmm              the exec file, copied: a link would share its inode with every jail
//!         ├ yun-vmm.pid          if its process is not the jailer's own
//!         ├ dev/{kvm,net/tun,urandom}, and dev/vhost-net if asked for
//!         └ run/                 for the API's socket
//! ```
//! The directories may be there before, with images of the user's in them. They are taken into custody first (owner: the
//! jailer's user, mode 0700), so that nobody can swap anything in them meanwhile. When everything is in its place they are
//! opened to the VMM's group, and stay the jailer's: the VMM makes files in `/` and `/run`, and removes and renames there
//! what is its own (sticky bit); what it did not make, such as its pid file, by which others may go, stays what it is. Nodes
//! are added or replaced by nobody. What was there before gets its owner and mode back in the end. Exec file, nodes and pid file that are there already are replaced if they
//! are exactly what an earlier jailer leaves (that kind of file, one name); anything else in their place is refused.
//!
//! [`Tree::undo`] removes what was made here, in reverse, and nothing else: a directory goes only if it was made here and
//! is empty. Which of the root's directories were made is in the lock file before they are; the two above it have the sticky
//! bit, otherwise without meaning on them, if a jailer made them: `<base>/<exec name>` goes with the last of its jails.

use std::ffi::{OsStr, OsString};
use std::fs::{File, Permissions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::stat::FileStat;
use nix::unistd::{Gid, Uid};

use super::dir::{Dir, Kind, PathError, is_plain};
use super::lock::{self, Ledger, Lock, LockError, Process};
use crate::spec::InstanceId;

/// The VMM's `/`, beside the lock.
const ROOT: &str = "root";
/// Directories of the root, those that hold others first.
const DIRS: [&str; 3] = ["root/run", "root/dev", "root/dev/net"];
/// The one of them, and what is below it, in which the VMM makes nothing.
const DEV: &str = "root/dev";
/// Device nodes: path, and the numbers of the kernel's `admin-guide/devices.txt`.
const DEVICES: [(&str, (u32, u32)); 4] =
    [("root/dev/kvm", (10, 232)), ("root/dev/net/tun", (10, 200)), ("root/dev/urandom", (1, 9)), VHOST_NET];
/// The one of them that is there only if it is asked for.
const VHOST_NET: (&str, (u32, u32)) = ("root/dev/vhost-net", (10, 238));

/// Mode of the root and the directories in it, while they are filled.
const PRIVATE: u32 = 0o700;
/// Mode of those in which the VMM makes files: it removes and renames its own, and no others.
const SHARED: u32 = 0o1770;
/// Mode of those in which it makes none.
const SEALED: u32 = 0o750;
/// Mode of the directories above the root, in which nobody but the jailer's user makes anything.
const PASSABLE: u32 = 0o755;
/// The sticky bit: on a directory above the root, and on a cgroup, that a jailer made it.
pub(super) const MADE_BY_A_JAILER: u32 = 0o1000;
/// How often a janitor may remove a directory between our making it and our using it.
const ATTEMPTS: usize = 100;

/// What a tree is made of.
#[derive(Clone, Debug)]
pub struct TreeSpec<'a> {
    /// The directory that holds all jails.
    pub base: &'a Path,
    /// The VMM's executable.
    pub exec_file: &'a ExecFile,
    /// The microVM's name.
    pub id: &'a InstanceId,
    /// Who may make files in the root (the group) and has the device nodes (the user).
    pub owner: (Uid, Gid),
    /// The API's socket, as the VMM sees it.
    pub api_socket: &'a Path,
    /// Whether `/dev/vhost-net` is among the nodes.
    pub vhost_net: bool,
}

/// Why a tree could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// Others may rename what is in a directory.
    #[error(
        "{} belongs to user {owner} and has mode {mode:o}: accepted is one of user {accepted} that others can't write to, \
         or with the sticky bit", path.display()
    )]
    Exposed {
        /// The directory.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Its mode.
        mode: u32,
        /// Who may own it.
        accepted: String,
    },
    /// Nobody can execute that.
    #[error("the exec file {} {why}", path.display())]
    ExecFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what would be right.
        why: &'static str,
    },
    /// The host refuses the exec file.
    #[error("can't {doing} the exec file {}", path.display())]
    ExecFileHost {
        /// To do what.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// What the host says.
        source: io::Error,
    },
    /// Other jails' janitors kept removing the directories above.
    #[error("{} was removed {ATTEMPTS} times while this jail was made", .0.display())]
    Unstable(PathBuf),
    /// Something below the base directory is in the way.
    #[error(transparent)]
    Path(#[from] PathError),
    /// Somebody holds the jail.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The host does not write the pid file.
    #[error("can't write the pid file")]
    PidFile(#[source] io::Error),
}

/// The VMM's executable, opened.
#[derive(Debug)]
pub struct ExecFile {
    file: File,
    path: PathBuf,
    name: OsString,
}

impl ExecFile {
    /// Opens the exec file that a caller named, following links; its name is that of the file they lead to.
    ///
    /// # Errors
    /// [`TreeError::ExecFile`], [`TreeError::ExecFileHost`].
    pub fn open(path: &Path) -> Result<Self, TreeError> {
        let failed = |doing, source| TreeError::ExecFileHost { doing, path: path.to_owned(), source };
        let refused = |why| TreeError::ExecFile { path: path.to_owned(), why };
        let found = path.canonicalize().map_err(|error| failed("find", error))?;
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let file = File::options().read(true).custom_flags(flags).open(&found);
        let file = file.map_err(|error| failed("open", error))?;
        let metadata = file.metadata().map_err(|error| failed("look at", error))?;
        if !metadata.is_file() {
            return Err(refused("is no regular file"));
        }
        if metadata.permissions().mode() & 0o111 == 0 {
            return Err(refused("is not executable: nobody has permission to"));
        }
        let name = found.file_name().ok_or_else(|| refused("has no name"))?.to_owned();
        if ["run", "dev"].iter().any(|taken| *taken == name) {
            return Err(refused(
                "has the name of a directory in the jail: any but `run` and `dev` is accepted",
            ));
        }
        Ok(Self { file, path: found, name })
    }

    /// Its name, in the jail too.
    #[must_use]
    pub fn name(&self) -> &OsStr {
        &self.name
    }
}

/// A jail's files, and the right to remove them. They stay when this is dropped: removing them is [`Tree::undo`].
#[derive(Debug)]
pub struct Tree {
    base: Dir,
    shared: Dir,
    exec_name: OsString,
    /// Name of the jail's directory in `shared`.
    name: OsString,
    jail: Dir,
    lock: Lock,
    process: Option<Process>,
    /// Below `jail`, in the order in which it came to be.
    made: Vec<(PathBuf, Kind)>,
    /// The API's socket, below `jail`.
    socket: Option<PathBuf>,
    /// Directories that were there before, below `jail` or that itself (an empty path), as they were.
    found: Vec<(PathBuf, FileStat)>,
}

impl Tree {
    /// Makes the tree, or completes one that a user began or an earlier jailer left.
    ///
    /// # Errors
    /// [`TreeError`]; then everything that was made is gone again.
    pub fn make(spec: &TreeSpec<'_>) -> Result<Self, TreeError> {
        let mut tree = Self::claim(spec)?;
        match tree.fill(spec) {
            Ok(()) => Ok(tree),
            Err(error) => {
                tree.undo(None);
                Err(error)
            }
        }
    }

    /// The VMM's `/`.
    ///
    /// # Errors
    /// [`TreeError::Path`] if somebody has put something else in its place.
    pub fn root(&self) -> Result<Dir, TreeError> {
        Ok(self.jail.dir(ROOT)?)
    }

    /// Opens or makes the directories above the root, and locks the jail.
    fn claim(spec: &TreeSpec<'_>) -> Result<Self, TreeError> {
        let base = Dir::open(spec.base)?;
        let us = Uid::effective();
        check_trusted(&base, &[us])?;
        let exec_name = spec.exec_file.name.clone();
        let id = OsString::from(spec.id.as_str());
        let mut removed = base.path().to_owned();
        for _ in 0..ATTEMPTS {
            let attempt = (|| {
                let shared = open_or_make(&base, &exec_name)?;
                check_trusted(&shared, &[us])?;
                let jail = open_or_make(&shared, &id)?;
                // A user's own directory is as good: its user can harm only its own VMM, until it is taken into custody.
                check_trusted(&jail, &[us, spec.owner.0])?;
                Ok((Lock::take(&jail)?, shared, jail))
            })();
            match attempt {
                Ok((lock, shared, jail)) => {
                    let (process, socket, made, found) = (None, None, Vec::new(), Vec::new());
                    let name = id;
                    return Ok(Self {
                        base,
                        shared,
                        exec_name,
                        name,
                        jail,
                        lock,
                        process,
                        made,
                        socket,
                        found,
                    });
                }
                Err(TreeError::Lock(LockError::Gone(path))) => removed = path,
                Err(TreeError::Path(PathError::Host { path, source, .. }))
                    if source.raw_os_error() == Some(libc::ENOENT) =>
                {
                    removed = path;
                }
                Err(error) => {
                    // What was made here is empty; what others use is not.
                    if let Ok(shared) = base.dir(&exec_name) {
                        remove_if_ours(&shared, &id);
                        remove_if_ours(&base, &exec_name);
                    }
                    return Err(error);
                }
            }
        }
        Err(TreeError::Unstable(removed))
    }

    /// Puts everything in its place.
    fn fill(&mut self, spec: &TreeSpec<'_>) -> Result<(), TreeError> {
        let ours = (Uid::effective(), Gid::effective());
        let left = self.lock.before().made.clone();
        let stat = self.jail.stat()?;
        if stat.st_uid != ours.0.as_raw() {
            self.found.push((PathBuf::new(), stat));
            self.jail.give_to(ours, PASSABLE)?;
        }
        let mut dirs = vec![PathBuf::from(ROOT)];
        dirs.extend(DIRS.map(PathBuf::from));
        // Before the first of them is made: a jailer that is killed here leaves no directory that nobody knows of.
        for path in &dirs {
            if self.jail.is_free(path, Kind::Directory)? || left.contains(path) {
                self.made.push((path.clone(), Kind::Directory));
            }
        }
        self.write_ledger()?;
        for path in &dirs {
            let new = self.jail.make_dir(path, PRIVATE)?;
            let dir = self.jail.dir(path)?;
            let stat = dir.stat()?;
            dir.give_to(ours, PRIVATE)?;
            if !new {
                self.found.push((path.clone(), stat));
            }
        }
        self.copy_exec_file(spec.exec_file)?;
        for (path, numbers) in DEVICES {
            let kind = Kind::Device(numbers.0, numbers.1);
            self.clear(Path::new(path), kind)?;
            if path == VHOST_NET.0 && !spec.vhost_net {
                continue;
            }
            self.made.push((path.into(), kind));
            self.jail.make_device(path, numbers, spec.owner)?;
        }
        for path in self.pid_files() {
            self.clear(&path, Kind::File)?;
        }
        let before = self.lock.before().process.as_ref().map(Process::pid);
        self.socket = Some(spec.api_socket.strip_prefix("/").unwrap_or(spec.api_socket))
            .filter(|path| is_plain(path))
            .map(|path| Path::new(ROOT).join(path));
        self.remove_sockets(before);
        for path in dirs.iter().rev() {
            let mode = if path.starts_with(DEV) { SEALED } else { SHARED };
            self.jail.dir(path)?.give_to((ours.0, spec.owner.1), mode)?;
        }
        Ok(())
    }

    /// Removes what an earlier jailer left there; anything else is refused.
    fn clear(&self, path: &Path, kind: Kind) -> Result<(), TreeError> {
        if !self.jail.is_free(path, kind)? {
            self.jail.remove(path, kind)?;
        }
        Ok(())
    }

    fn copy_exec_file(&mut self, exec: &ExecFile) -> Result<(), TreeError> {
        let path = Path::new(ROOT).join(&self.exec_name);
        self.clear(&path, Kind::File)?;
        self.made.push((path.clone(), Kind::File));
        let mut copy = self.jail.create(&path, PRIVATE)?;
        let failed = |source| TreeError::ExecFileHost { doing: "copy", path: exec.path.clone(), source };
        io::copy(&mut &exec.file, &mut copy).map_err(failed)?;
        // Its user may run it, and not write it.
        copy.set_permissions(Permissions::from_mode(0o555)).map_err(failed)
    }

    /// The pid file's name while it is written, and its name.
    fn pid_files(&self) -> [PathBuf; 2] {
        let mut name = self.exec_name.clone();
        name.push(".pid");
        let mut hidden = OsString::from(".");
        hidden.push(&name);
        [Path::new(ROOT).join(hidden), Path::new(ROOT).join(name)]
    }

    /// Writes the pid file. It appears with its content: who waits for it can read it.
    ///
    /// # Errors
    /// [`TreeError`].
    pub fn write_pid_file(&mut self, pid: i32) -> Result<(), TreeError> {
        let [hidden, path] = self.pid_files();
        for path in [&hidden, &path] {
            self.made.push((path.clone(), Kind::File));
        }
        let mut file = self.jail.create(&hidden, 0o600)?;
        write!(file, "{pid}").map_err(TreeError::PidFile)?;
        file.set_permissions(Permissions::from_mode(0o644)).map_err(TreeError::PidFile)?;
        self.jail.link(&hidden, &path)?;
        Ok(self.jail.remove(&hidden, Kind::File)?)
    }

    /// The files that [`Tree::write_pid_file`] will have made: for who undoes the tree in another process.
    pub fn expect_pid_file(&mut self) {
        for path in self.pid_files() {
            self.made.push((path, Kind::File));
        }
    }

    /// Records which process lives in the jail.
    ///
    /// # Errors
    /// [`TreeError::Lock`].
    pub fn record(&mut self, process: Process) -> Result<(), TreeError> {
        self.process = Some(process);
        self.write_ledger()
    }

    fn write_ledger(&self) -> Result<(), TreeError> {
        let dirs = self.made.iter().filter(|(_, kind)| *kind == Kind::Directory);
        let made = dirs.map(|(path, _)| path.clone()).collect();
        Ok(self.lock.write(&Ledger { process: self.process.clone(), made })?)
    }

    /// Removes the API's socket, which a VMM that is killed leaves behind, and the one it is before it has its name.
    fn remove_sockets(&self, vmm: Option<i32>) {
        let Some(socket) = &self.socket else { return };
        let _ = self.jail.remove(socket, Kind::Socket);
        // As `api::socket` names it: by the pid that the VMM sees, which is 1 in a namespace of its own.
        for pid in [vmm, Some(1)].into_iter().flatten() {
            let _ = self.jail.remove(socket.with_file_name(format!(".{pid:x}")), Kind::Socket);
        }
    }

    /// Removes what was made, and what the VMM, whose pid is `vmm` if there was one, left of its socket. What can't be
    /// removed, or is not empty, stays. What was there before gets its owner and mode back.
    pub fn undo(&self, vmm: Option<i32>) {
        self.remove_sockets(vmm);
        for (path, kind) in self.made.iter().rev() {
            let _ = match kind {
                Kind::Directory => self.jail.remove_dir(path),
                kind => self.jail.remove(path, *kind),
            };
        }
        // Those inside others first, while nobody else can rename them.
        for (path, stat) in self.found.iter().rev() {
            let owner = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
            let mode = stat.st_mode & 0o7777;
            let _ = match path.as_os_str().is_empty() {
                true => self.jail.give_to(owner, mode),
                false => self.jail.dir(path).and_then(|dir| dir.give_to(owner, mode)),
            };
        }
        // While the lock is held nobody else gets in; who waits for it finds it gone, and makes another.
        let _ = self.jail.remove(lock::NAME, Kind::File);
        remove_if_ours(&self.shared, &self.name);
        remove_if_ours(&self.base, &self.exec_name);
    }

    /// The descriptors that [`Tree::undo`] needs.
    #[must_use]
    pub fn descriptors(&self) -> [RawFd; 4] {
        [self.base.as_raw_fd(), self.shared.as_raw_fd(), self.jail.as_raw_fd(), self.lock.as_raw_fd()]
    }
}

/// Opens a directory above the root, or makes it and says so by its mode.
fn open_or_make(above: &Dir, name: &OsStr) -> Result<Dir, PathError> {
    let made = above.make_dir(name, PASSABLE | MADE_BY_A_JAILER)?;
    let dir = above.dir(name)?;
    if made {
        dir.set_mode(PASSABLE | MADE_BY_A_JAILER)?;
    }
    Ok(dir)
}

/// Removes a directory above the root, if a jailer made it and nothing is in it.
fn remove_if_ours(above: &Dir, name: &OsStr) {
    if above.look(name).is_ok_and(|stat| stat.is_some_and(|s| s.st_mode & MADE_BY_A_JAILER != 0)) {
        match above.remove_dir(name) {
            Ok(()) => {}
            Err(error) if error.errno() == Some(Errno::ENOTEMPTY) => {}
            Err(error) => log::debug!("{error}"),
        }
    }
}

/// Refuses a directory in which somebody else could rename a jail away and put another in its place. The descriptors held
/// here would not be fooled, but whoever looks for a VM's socket by its path would.
fn check_trusted(dir: &Dir, owners: &[Uid]) -> Result<(), TreeError> {
    let stat = dir.stat()?;
    let mode = stat.st_mode & 0o7777;
    let owned = stat.st_uid == 0 || owners.iter().any(|owner| owner.as_raw() == stat.st_uid);
    let writable = mode & 0o022 != 0 && mode & libc::S_ISVTX == 0;
    if owned && !writable {
        return Ok(());
    }
    let accepted: Vec<String> = owners.iter().map(Uid::to_string).collect();
    let (path, accepted) = (dir.path().to_owned(), accepted.join(" or "));
    Err(TreeError::Exposed { path, owner: stat.st_uid, mode, accepted })
}

#[cfg(test)]
mod tests;
