//! The control group of a jail: made below `<mount>/<parent>/<id>`, given its values, joined, removed.
//!
//! Version 1 has a hierarchy per controller (or for a few of them), each mounted somewhere; the name before the first dot
//! of a file says which one is meant. Version 2 has one hierarchy, where a controller must be enabled in every directory
//! above the one that uses it. Where they are mounted is read from `/proc/self/mountinfo` by [`mounts()`]; everything else
//! works below whatever directories a [`Host`] names, such as those of a test.
//!
//! Directories on the way that are missing are made, with the sticky bit (which means nothing there) to say so: the last
//! jail to go removes them. Controllers that were enabled on the way stay enabled, since others may have come to use them.

use std::fmt;
use std::fs::{File, TryLockError};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::{FileStat, Mode};

use super::dir::{Dir, PathError, is_plain};
use super::tree::MADE_BY_A_JAILER;

mod mounts;
pub use mounts::{Mount, mounts};

/// How long the last process of a cgroup may take to leave it after its end, before the directory is left behind.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a cgroup may be in use when a jail is to have it: the one before may be ending just now.
const ENDING: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(5);
/// How often others may remove a directory between our making it and our using it.
const ATTEMPTS: usize = 100;
/// Longest value of a file that is read back, in bytes.
const VALUE_LEN_MAX: u64 = 64 << 10;
/// What a `cpuset` of version 1 needs before a process may join it; new directories have neither.
const CPUSET: [&str; 2] = ["cpuset.cpus", "cpuset.mems"];

/// Which cgroups.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Version {
    /// A hierarchy per controller; Firecracker's default.
    #[default]
    V1,
    /// One hierarchy.
    V2,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V1 => "1",
            Self::V2 => "2",
        })
    }
}

/// A value for one file of the cgroup, such as `memory.max=1073741824`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    file: String,
    value: String,
}

impl FromStr for Setting {
    type Err = CgroupError;

    fn from_str(text: &str) -> Result<Self, CgroupError> {
        let refused = |why| CgroupError::Setting { text: text.to_owned(), why };
        let (file, value) = text.split_once('=').ok_or_else(|| refused("there is no `=`"))?;
        let in_file = |c: char| c.is_ascii_alphanumeric() || ['_', '.', '-'].contains(&c);
        if !file.chars().all(in_file) || file.starts_with('.') || file.ends_with('.') || !file.contains('.') {
            return Err(refused("the file is named CONTROLLER.PROPERTY"));
        }
        if ["cgroup.procs", "cgroup.threads", "cgroup.subtree_control", "cgroup.kill", "cgroup.type"]
            .contains(&file)
        {
            return Err(refused("this file is the jailer's own business"));
        }
        if value.is_empty() || value.chars().any(char::is_control) {
            return Err(refused("the value is one line, not empty"));
        }
        Ok(Self { file: file.to_owned(), value: value.to_owned() })
    }
}

impl Setting {
    fn controller(&self) -> &str {
        self.file.split('.').next().unwrap_or(&self.file)
    }
}

/// What a jail is to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupSpec {
    /// Which cgroups.
    pub version: Version,
    /// Where, below the mount: plain names.
    pub parent: PathBuf,
    /// Values. Without any, the process joins `parent` itself, which must exist.
    pub settings: Vec<Setting>,
}

/// Where cgroups are, and what a new one has in it.
#[derive(Clone, Debug)]
pub struct Host {
    /// The mounted hierarchies.
    pub mounts: Vec<Mount>,
    /// Called for every directory that was made. The kernel fills it; a test does it here.
    pub on_new_dir: fn(&Dir),
}

impl Host {
    /// This machine's.
    ///
    /// # Errors
    /// If /proc can't be read.
    pub fn here() -> Result<Self, CgroupError> {
        let mountinfo = std::fs::read_to_string("/proc/self/mountinfo").map_err(CgroupError::Mounts)?;
        Ok(Self { mounts: mounts(&mountinfo), on_new_dir: |_| () })
    }
}

/// Why a cgroup could not be had.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// A value that can't be understood.
    #[error(
        "{text:?} is no cgroup setting: {why}; accepted is CONTROLLER.PROPERTY=VALUE, such as memory.max=1073741824"
    )]
    Setting {
        /// What was given.
        text: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A parent that leaves the hierarchy.
    #[error("the parent cgroup {} is refused: accepted are names with `/` between them, without `..`, `.` or a leading `/`", .0.display())]
    Parent(PathBuf),
    /// /proc does not say what is mounted.
    #[error("can't read /proc/self/mountinfo")]
    Mounts(#[source] io::Error),
    /// No such hierarchy is mounted.
    #[error("no cgroup hierarchy of version {version} {}is mounted; there is {offered}",
            controller.as_ref().map(|name| format!("with the controller {name} ")).unwrap_or_default())]
    NotMounted {
        /// Of this version.
        version: Version,
        /// With this controller; `None` in version 2.
        controller: Option<String>,
        /// What is mounted.
        offered: String,
    },
    /// A controller that the hierarchy does not have, or has not passed down to here.
    #[error("the controller {controller} is not available in {}: it has {offered:?}", path.display())]
    Unavailable {
        /// The controller.
        controller: String,
        /// Where.
        path: PathBuf,
        /// What is available there.
        offered: String,
    },
    /// A file that the cgroup does not have.
    #[error("there is no file {file} in {}", path.display())]
    NoSuchFile {
        /// The file.
        file: String,
        /// The cgroup.
        path: PathBuf,
    },
    /// The kernel does not take a value.
    #[error("can't write {value:?} to {}", path.display())]
    Write {
        /// The value.
        value: String,
        /// The file.
        path: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
    /// A file of the cgroup can't be read.
    #[error("can't read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
    /// A directory is refused.
    #[error(transparent)]
    Path(#[from] PathError),
    /// Another jail has it: the same id under another base directory, say.
    #[error(
        "the cgroup {} is in use by another jail: accepted is an id, or a parent cgroup, that no other jail has, \
         in whatever base directory it is", .0.display()
    )]
    InUse(PathBuf),
    /// Others kept removing the directories.
    #[error("{} was removed {ATTEMPTS} times while a cgroup was made in it", .0.display())]
    Unstable(PathBuf),
}

impl CgroupError {
    /// Whether a directory on the way has just been removed by somebody.
    fn is_vanished(&self) -> bool {
        let errno = match self {
            Self::Path(error) => error.errno(),
            Self::Write { source, .. } | Self::Read { source, .. } => {
                source.raw_os_error().map(Errno::from_raw)
            }
            _ => None,
        };
        matches!(errno, Some(Errno::ENOENT | Errno::ENODEV))
    }
}

/// A jail's cgroup: one directory in each hierarchy that it uses. It stays when this is dropped: removing it is
/// [`Group::undo`].
#[derive(Debug)]
pub struct Group {
    branches: Vec<Branch>,
}

/// A jail's directory in one hierarchy.
#[derive(Debug)]
struct Branch {
    /// From the mount down: a directory, and the name of the next one in it.
    above: Vec<(Dir, std::ffi::OsString)>,
    leaf: Dir,
}

impl Group {
    /// Makes the cgroup `id` below the parent, with its values. Nobody is in it yet.
    ///
    /// # Errors
    /// [`CgroupError`]; then every directory that was made is gone again.
    pub fn make(host: &Host, spec: &CgroupSpec, id: &str) -> Result<Self, CgroupError> {
        if !is_plain(&spec.parent) {
            return Err(CgroupError::Parent(spec.parent.clone()));
        }
        let mut group = Self { branches: Vec::new() };
        match group.fill(host, spec, id) {
            Ok(()) => Ok(group),
            Err(error) => {
                group.undo();
                Err(error)
            }
        }
    }

    fn fill(&mut self, host: &Host, spec: &CgroupSpec, id: &str) -> Result<(), CgroupError> {
        if spec.settings.is_empty() {
            let mount = find(host, spec.version, None)?;
            // As Firecracker's: somebody has prepared the cgroup, and the process just joins it.
            let leaf = Dir::open(&mount.path)?.dir(&spec.parent)?;
            self.branches.push(Branch { above: Vec::new(), leaf });
            return Ok(());
        }
        let mut used: Vec<(&Mount, Vec<&Setting>)> = Vec::new();
        for setting in &spec.settings {
            let mount = find(host, spec.version, Some(setting.controller()))?;
            match used.iter_mut().find(|(other, _)| other.path == mount.path) {
                Some((_, settings)) => settings.push(setting),
                None => used.push((mount, vec![setting])),
            }
        }
        let path = spec.parent.join(id);
        for (mount, settings) in used {
            let branch = Branch::make(host, mount, spec.version, &path, &settings)?;
            // From here on it is undone with the others.
            self.branches.push(branch);
            let leaf = &self.branches.last().expect("just pushed").leaf;
            for setting in settings {
                write(leaf, &setting.file, &setting.value)?;
            }
        }
        Ok(())
    }

    /// Puts the process `pid` in it.
    ///
    /// # Errors
    /// [`CgroupError::Write`].
    pub fn join(&self, pid: u32) -> Result<(), CgroupError> {
        self.branches.iter().try_for_each(|branch| write(&branch.leaf, "cgroup.procs", &pid.to_string()))
    }

    /// Removes the directories that jailers made and nobody uses, waiting a bounded time for processes that have ended to
    /// leave.
    pub fn undo(&self) {
        for branch in &self.branches {
            branch.undo(PATIENCE);
        }
    }

    /// The descriptors that [`Group::undo`] needs.
    pub fn descriptors(&self) -> impl Iterator<Item = RawFd> + '_ {
        let above =
            self.branches.iter().flat_map(|branch| branch.above.iter().map(|(dir, _)| dir.as_raw_fd()));
        above.chain(self.branches.iter().map(|branch| branch.leaf.as_raw_fd()))
    }
}

impl Branch {
    /// Makes `path` in a hierarchy.
    fn make(
        host: &Host,
        mount: &Mount,
        version: Version,
        path: &Path,
        settings: &[&Setting],
    ) -> Result<Self, CgroupError> {
        for _ in 0..ATTEMPTS {
            let mut branch = Self { above: Vec::new(), leaf: Dir::open(&mount.path)? };
            match branch.descend(host, version, path, settings).and_then(|()| branch.claim()) {
                Ok(()) => return Ok(branch),
                // It is not ours to remove, though nobody may be in it yet.
                Err(error @ CgroupError::InUse(_)) => return Err(error),
                // The last jail of this parent has just gone, and has taken it along.
                Err(error) if error.is_vanished() => {}
                Err(error) => {
                    branch.undo(Duration::ZERO);
                    return Err(error);
                }
            }
        }
        Err(CgroupError::Unstable(mount.path.join(path)))
    }

    fn descend(
        &mut self,
        host: &Host,
        version: Version,
        path: &Path,
        settings: &[&Setting],
    ) -> Result<(), CgroupError> {
        for name in path {
            if version == Version::V2 {
                enable(&self.leaf, settings)?;
            }
            let made = self.leaf.make_dir(name, 0o755 | MADE_BY_A_JAILER)?;
            let next = self.leaf.dir(name)?;
            let above = std::mem::replace(&mut self.leaf, next);
            self.above.push((above, name.to_owned()));
            if made {
                self.leaf.set_mode(0o755 | MADE_BY_A_JAILER)?;
                (host.on_new_dir)(&self.leaf);
            }
            let inherits =
                version == Version::V1 && settings.iter().any(|setting| setting.controller() == "cpuset");
            if let (true, Some((above, _))) = (inherits, self.above.last()) {
                inherit_cpuset(above, &self.leaf)?;
            }
        }
        Ok(())
    }

    /// Takes the leaf for this jail alone. The lock (`flock`) is the janitor's, too, and goes when both have closed the
    /// directory; should a janitor be killed, the process that is still in the cgroup holds it.
    fn claim(&self) -> Result<(), CgroupError> {
        let path = || self.leaf.path().to_owned();
        let failed = |source| CgroupError::Read { path: path(), source };
        let handle = File::from(self.leaf.as_fd().try_clone_to_owned().map_err(failed)?);
        let deadline = Instant::now() + ENDING;
        loop {
            let locked = match handle.try_lock() {
                Ok(()) => true,
                Err(TryLockError::WouldBlock) => false,
                Err(TryLockError::Error(source)) => return Err(failed(source)),
            };
            let (stat, found) = (self.leaf.stat()?, self.find_leaf()?);
            if found.is_none_or(|found| (found.st_dev, found.st_ino) != (stat.st_dev, stat.st_ino)) {
                return Err(failed(Errno::ENOENT.into()));
            }
            // What an administrator made may have others in it; that is their business.
            let exclusive = stat.st_mode & MADE_BY_A_JAILER != 0;
            if locked && !(exclusive && is_populated(&self.leaf)?) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(CgroupError::InUse(path()));
            }
            thread::sleep(PAUSE);
        }
    }

    /// What is in the leaf's place.
    fn find_leaf(&self) -> Result<Option<FileStat>, PathError> {
        self.above.last().map_or_else(|| self.leaf.stat().map(Some), |(above, name)| above.look(name))
    }

    fn undo(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        for (depth, (above, name)) in self.above.iter().enumerate().rev() {
            match above.look(name) {
                // Somebody was faster.
                Ok(None) => continue,
                Ok(Some(stat)) if stat.st_mode & MADE_BY_A_JAILER != 0 => {}
                _ => return,
            }
            let is_leaf = depth + 1 == self.above.len();
            loop {
                match above.remove_dir(name) {
                    Ok(()) => break,
                    Err(error) if error.errno() == Some(Errno::ENOENT) => break,
                    // A process that has ended may take a moment to leave. Above, it is other jails: they stay.
                    Err(error)
                        if is_leaf && error.errno() == Some(Errno::EBUSY) && Instant::now() < deadline =>
                    {
                        thread::sleep(PAUSE);
                    }
                    Err(_) => return,
                }
            }
        }
    }
}

fn find<'a>(host: &'a Host, version: Version, controller: Option<&str>) -> Result<&'a Mount, CgroupError> {
    let wanted = |mount: &&Mount| match (version, &mount.controllers, controller) {
        (Version::V2, None, _) => true,
        (Version::V1, Some(mounted), Some(controller)) => mounted.iter().any(|name| name == controller),
        _ => false,
    };
    host.mounts.iter().find(wanted).ok_or_else(|| {
        let list = |mount: &Mount| match &mount.controllers {
            None => "version 2".to_owned(),
            Some(controllers) => format!("version 1 with {}", controllers.join(",")),
        };
        let offered: Vec<String> = host.mounts.iter().map(list).collect();
        let offered = if offered.is_empty() { "none".to_owned() } else { offered.join("; ") };
        let controller = controller.filter(|_| version == Version::V1).map(str::to_owned);
        CgroupError::NotMounted { version, controller, offered }
    })
}

/// Lets the directories in `dir` use the controllers of these settings.
fn enable(dir: &Dir, settings: &[&Setting]) -> Result<(), CgroupError> {
    let (available, enabled) = (read(dir, "cgroup.controllers")?, read(dir, "cgroup.subtree_control")?);
    let has = |list: &str, controller: &str| list.split_whitespace().any(|name| name == controller);
    let mut missing = Vec::new();
    for setting in settings {
        let controller = setting.controller();
        // Files of the cgroup itself need no controller.
        if controller == "cgroup" || has(&enabled, controller) {
            continue;
        }
        if !has(&available, controller) {
            let (controller, path) = (controller.to_owned(), dir.path().to_owned());
            return Err(CgroupError::Unavailable { controller, path, offered: available.trim().to_owned() });
        }
        missing.push(format!("+{controller}"));
    }
    if missing.is_empty() { Ok(()) } else { write(dir, "cgroup.subtree_control", &missing.join(" ")) }
}

/// Whether a process is in `dir`.
fn is_populated(dir: &Dir) -> Result<bool, CgroupError> {
    Ok(!read(dir, "cgroup.procs")?.trim().is_empty())
}

/// Gives a new `cpuset` the processors and memory nodes of the one above.
fn inherit_cpuset(above: &Dir, dir: &Dir) -> Result<(), CgroupError> {
    for file in CPUSET {
        if read(dir, file)?.trim().is_empty() {
            write(dir, file, read(above, file)?.trim())?;
        }
    }
    Ok(())
}

fn read(dir: &Dir, file: &str) -> Result<String, CgroupError> {
    let failed = |source| CgroupError::Read { path: dir.path().join(file), source };
    let mut text = String::new();
    let opened = dir.open_file(file, OFlag::O_RDONLY, Mode::empty())?;
    opened.take(VALUE_LEN_MAX).read_to_string(&mut text).map_err(failed)?;
    Ok(text)
}

fn write(dir: &Dir, file: &str, value: &str) -> Result<(), CgroupError> {
    let opened = dir.open_file(file, OFlag::O_WRONLY | OFlag::O_TRUNC, Mode::empty());
    let mut opened = opened.map_err(|error| match error.errno() {
        Some(Errno::ENOENT) => CgroupError::NoSuchFile { file: file.to_owned(), path: dir.path().to_owned() },
        _ => error.into(),
    })?;
    // In one call: the kernel takes each write for a value of its own.
    opened.write_all(value.as_bytes()).map_err(|source| CgroupError::Write {
        value: value.to_owned(),
        path: dir.path().join(file),
        source,
    })
}

#[cfg(test)]
mod tests;
