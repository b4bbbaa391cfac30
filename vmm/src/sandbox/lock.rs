//! Who holds a jail: a lock file beside its root, which also says what an earlier holder made.
//!
//! The lock is taken (`flock`) by the jailer and kept by the janitor, to whom it comes through `fork`. Should a janitor be
//! killed, the file still names the process it watched, by number, start time and boot: a tree whose process lives is not
//! touched. The VMM itself holds no descriptor of it, since nothing from outside its jail belongs in there.

use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, fstat};

use super::dir::{Dir, Kind, PathError};

/// The lock's name, beside the root.
pub const NAME: &str = "jail.lock";

/// How long a janitor may take to clean up after its process ended, when the next jail of the same id waits for it.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// How long a process that still lives may take to end before its jail is refused: it may have been killed just now, and a
/// VMM's memory takes a while to be given back.
const DYING: Duration = Duration::from_secs(1);

/// Longest ledger that is read back: names of a handful of directories.
const LEDGER_LEN_MAX: u64 = 16 << 10;

/// A process, so that another with its number is not taken for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    boot: String,
    pid: i32,
    /// Clock ticks from boot to its start (proc(5), `starttime`).
    start: u64,
}

/// State (a letter) and start time of a process, from /proc.
fn stat_of(pid: i32) -> io::Result<(String, u64)> {
    let invalid = || io::Error::new(io::ErrorKind::InvalidData, "/proc/PID/stat is not understood");
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // "pid (name) state ...": the name may hold anything, so what follows its last parenthesis counts. The state is
    // field 3, the start time field 22.
    let mut fields = stat.rsplit_once(") ").ok_or_else(invalid)?.1.split(' ');
    let state = fields.next().ok_or_else(invalid)?.to_owned();
    let start = fields.nth(18).and_then(|field| field.parse().ok()).ok_or_else(invalid)?;
    Ok((state, start))
}

fn boot() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

impl Process {
    /// The process with this number, which must not have been waited for.
    ///
    /// # Errors
    /// If /proc does not show it.
    pub fn of(pid: i32) -> io::Result<Self> {
        Ok(Self { boot: boot()?, pid, start: stat_of(pid)?.1 })
    }

    /// One that was noted before.
    #[must_use]
    pub fn new(boot: String, pid: i32, start: u64) -> Self {
        Self { boot, pid, start }
    }

    /// Which boot of the host it belongs to.
    #[must_use]
    pub fn boot(&self) -> &str {
        &self.boot
    }

    /// Its number.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Clock ticks from boot to its start.
    #[must_use]
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Whether it has not ended. One that nobody waited for yet has.
    #[must_use]
    pub fn lives(&self) -> bool {
        let same =
            |(state, start): (String, u64)| start == self.start && !["Z", "X"].contains(&state.as_str());
        boot().is_ok_and(|boot| boot == self.boot) && stat_of(self.pid).is_ok_and(same)
    }
}

/// What the lock file says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    /// The process in the jail.
    pub process: Option<Process>,
    /// Directories that the jailer made, or was about to make.
    pub made: Vec<PathBuf>,
}

impl Ledger {
    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for path in &self.made {
            bytes.extend(b"made ");
            bytes.extend(path.as_os_str().as_bytes());
            bytes.push(b'\n');
        }
        // Last, so that recording it later only adds a line.
        if let Some(Process { boot, pid, start }) = &self.process {
            bytes.extend(format!("process {boot} {pid} {start}\n").bytes());
        }
        bytes
    }

    /// Reads what an earlier holder wrote. What is not understood is as if it had not been written: a torn file costs an
    /// empty directory that stays, nothing more.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let mut ledger = Self::default();
        for line in bytes.split(|byte| *byte == b'\n') {
            if let Some(path) = line.strip_prefix(b"made ") {
                ledger.made.push(std::ffi::OsString::from_vec(path.to_vec()).into());
            } else if let Some(process) = line.strip_prefix(b"process ") {
                let text = String::from_utf8_lossy(process);
                let mut words = text.split(' ');
                let parsed = (|| {
                    let boot = words.next()?.to_owned();
                    Some(Process {
                        boot,
                        pid: words.next()?.parse().ok()?,
                        start: words.next()?.parse().ok()?,
                    })
                })();
                ledger.process = parsed;
            }
        }
        ledger
    }
}

/// Why a jail could not be locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Its directory was removed meanwhile, by the janitor of an earlier jail: try again from there.
    #[error("{} was removed meanwhile", .0.display())]
    Gone(PathBuf),
    /// A process is in the jail.
    #[error("{} is in use: process {pid} lives in it; end that first, or take another id", path.display())]
    Live {
        /// The jail.
        path: PathBuf,
        /// The process, as its jailer saw it.
        pid: i32,
    },
    /// Somebody holds the lock, and no process is known to live in the jail.
    #[error("{} is in use: another jailer is making it or cleaning it up, for more than {} s", path.display(), PATIENCE.as_secs())]
    Busy {
        /// The jail.
        path: PathBuf,
    },
    /// The lock file can't be used.
    #[error(transparent)]
    Path(#[from] PathError),
    /// The host refuses.
    #[error("can't lock {}", path.display())]
    Host {
        /// The lock file.
        path: PathBuf,
        /// What the host says.
        source: io::Error,
    },
}

/// A held lock. It goes when the last process that has it open closes it or ends.
#[derive(Debug)]
pub struct Lock {
    file: File,
    path: PathBuf,
    before: Ledger,
}

impl Lock {
    /// Takes the lock in `dir`. While a janitor cleans up after a process that ended, waits for it, for [`PATIENCE`]; for a
    /// process that may be about to end, for a second.
    ///
    /// # Errors
    /// [`LockError`].
    pub fn take(dir: &Dir) -> Result<Self, LockError> {
        Self::take_within(dir, PATIENCE)
    }

    fn take_within(dir: &Dir, patience: Duration) -> Result<Self, LockError> {
        dir.is_free(NAME, Kind::File)?;
        let mode = Mode::S_IRUSR | Mode::S_IWUSR;
        // Whose directory this is may put something else there meanwhile, such as a FIFO, which must not be waited for.
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_NONBLOCK;
        match dir.open_file(NAME, flags, mode) {
            Err(error) if error.errno() == Some(Errno::ENOENT) => Err(LockError::Gone(dir.path().to_owned())),
            other => Self::hold(dir, other?, patience),
        }
    }

    /// Takes the lock that `file` is, opened in `dir`.
    fn hold(dir: &Dir, mut file: File, patience: Duration) -> Result<Self, LockError> {
        const PAUSE: Duration = Duration::from_millis(5);
        let path = dir.path().join(NAME);
        let host = |source| LockError::Host { path: path.clone(), source };
        let (began, deadline) = (Instant::now(), Instant::now() + patience);
        loop {
            let taken = match file.try_lock() {
                Ok(()) => true,
                Err(fs::TryLockError::WouldBlock) => false,
                Err(fs::TryLockError::Error(source)) => return Err(host(source)),
            };
            let before = read(&mut file).map_err(host)?;
            let alive = before.process.as_ref().filter(|process| process.lives());
            if let Some(process) = alive.filter(|_| began.elapsed() > DYING) {
                return Err(LockError::Live { path: dir.path().to_owned(), pid: process.pid });
            }
            if alive.is_none() && taken {
                // The janitor before us may have removed the file after we opened it, and who can write to the directory
                // may have put a second name of some precious file there: what is written to has no other name.
                return match dir.look(NAME)? {
                    Some(stat) if is_same(&file, stat.st_dev, stat.st_ino) => {
                        Kind::File.check(&stat, path.clone())?;
                        Ok(Self { file, path, before })
                    }
                    _ => Err(LockError::Gone(dir.path().to_owned())),
                };
            }
            if alive.is_none() && Instant::now() > deadline {
                return Err(LockError::Busy { path: dir.path().to_owned() });
            }
            thread::sleep(PAUSE);
        }
    }

    /// What the holder before wrote, who has not cleaned up; empty if there was none.
    #[must_use]
    pub fn before(&self) -> &Ledger {
        &self.before
    }

    /// Replaces what the lock file says.
    ///
    /// # Errors
    /// [`LockError::Host`].
    pub fn write(&self, ledger: &Ledger) -> Result<(), LockError> {
        // Never empty in between: who is killed here leaves either the old lines or the new ones, perhaps with rests of old
        // ones after them.
        let bytes = ledger.to_bytes();
        let len = u64::try_from(bytes.len()).expect("a length in memory");
        let written = self.file.write_all_at(&bytes, 0).and_then(|()| self.file.set_len(len));
        written.map_err(|source| LockError::Host { path: self.path.clone(), source })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl AsRawFd for Lock {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

fn read(file: &mut File) -> io::Result<Ledger> {
    let mut bytes = Vec::new();
    file.rewind()?;
    Read::by_ref(file).take(LEDGER_LEN_MAX).read_to_end(&mut bytes)?;
    Ok(Ledger::from_bytes(&bytes))
}

fn is_same(file: &File, device: u64, inode: u64) -> bool {
    fstat(file).is_ok_and(|stat| (stat.st_dev, stat.st_ino) == (device, inode))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::process::Command;

    fn rig() -> (tempfile::TempDir, Dir) {
        let temporary = tempfile::tempdir().unwrap();
        let dir = Dir::open(temporary.path()).unwrap();
        (temporary, dir)
    }

    fn me() -> Process {
        Process::of(i32::try_from(std::process::id()).unwrap()).unwrap()
    }

    #[test]
    fn a_process_lives_until_it_ends_even_if_nobody_waited_for_it() {
        let mut child = Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let process = Process::of(i32::try_from(child.id()).unwrap()).unwrap();
        assert!(process.lives() && me().lives());
        assert!(!Process { start: process.start + 1, ..process.clone() }.lives(), "another with its number");
        assert!(
            !Process { boot: "before".to_owned(), ..process.clone() }.lives(),
            "one from before the boot"
        );
        drop(child.stdin.take());
        while process.lives() {
            thread::sleep(Duration::from_millis(1));
        }
        assert!(child.wait().unwrap().success());
    }

    #[test]
    fn a_ledger_is_read_back_as_it_was_written_and_a_torn_one_as_far_as_it_goes() {
        let ledger = Ledger { process: Some(me()), made: vec!["root".into(), "root/run".into()] };
        assert_eq!(Ledger::from_bytes(&ledger.to_bytes()), ledger);
        assert_eq!(
            Ledger::from_bytes(b"process x\nmade root\nmad"),
            Ledger { process: None, made: vec!["root".into()] }
        );
        assert_eq!(Ledger::from_bytes(&[0xff, 0, 7]), Ledger::default());
    }

    #[test]
    fn a_lock_is_held_by_one_and_tells_the_next_what_was_made() {
        let (_temporary, dir) = rig();
        let first = Lock::take(&dir).unwrap();
        assert_eq!(first.before(), &Ledger::default());
        let ledger = Ledger { process: None, made: vec!["root".into()] };
        first.write(&ledger).unwrap();
        let error = Lock::take_within(&dir, Duration::ZERO).unwrap_err();
        assert!(matches!(error, LockError::Busy { .. }), "{error}");
        drop(first);
        assert_eq!(Lock::take(&dir).unwrap().before(), &ledger);
    }

    #[test]
    fn a_jail_whose_process_lives_is_refused_even_if_nobody_holds_the_lock() {
        let (temporary, dir) = rig();
        let lock = Lock::take(&dir).unwrap();
        lock.write(&Ledger { process: Some(me()), made: Vec::new() }).unwrap();
        let text = format!(
            "{} is in use: process {} lives in it; end that first, or take another id",
            temporary.path().display(),
            std::process::id()
        );
        assert_eq!(Lock::take(&dir).unwrap_err().to_string(), text);
        drop(lock);
        assert_eq!(Lock::take(&dir).unwrap_err().to_string(), text);
    }

    #[test]
    fn a_lock_that_is_a_link_or_has_other_names_is_refused() {
        let (temporary, dir) = rig();
        let precious = temporary.path().join("precious");
        fs::write(&precious, "precious").unwrap();
        symlink(&precious, temporary.path().join(NAME)).unwrap();
        assert!(matches!(Lock::take(&dir), Err(LockError::Path(PathError::Link(_)))));
        fs::remove_file(temporary.path().join(NAME)).unwrap();
        fs::hard_link(&precious, temporary.path().join(NAME)).unwrap();
        assert!(matches!(Lock::take(&dir), Err(LockError::Path(PathError::HardLinked { links: 2, .. }))));
        assert_eq!(fs::read_to_string(&precious).unwrap(), "precious");
    }

    #[test]
    fn another_file_put_in_the_locks_place_before_it_was_opened_is_refused() {
        let (temporary, dir) = rig();
        let path = temporary.path().join(NAME);
        let precious = temporary.path().join("precious");
        fs::write(&precious, "precious").unwrap();
        fs::hard_link(&precious, &path).unwrap();
        let opened = File::options().read(true).write(true).open(&path).unwrap();
        let error = Lock::hold(&dir, opened, Duration::ZERO).unwrap_err();
        assert!(matches!(error, LockError::Path(PathError::HardLinked { links: 2, .. })), "{error}");
        assert_eq!(fs::read_to_string(&precious).unwrap(), "precious");
        fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, Mode::S_IRWXU).unwrap();
        let flags = OFlag::O_RDWR | OFlag::O_NONBLOCK;
        let opened = dir.open_file(NAME, flags, Mode::empty()).unwrap();
        assert!(Lock::hold(&dir, opened, Duration::ZERO).is_err());
    }

    #[test]
    fn a_lock_file_removed_by_the_holder_before_does_not_count() {
        let (temporary, dir) = rig();
        let first = Lock::take(&dir).unwrap();
        let path = temporary.path().join(NAME);
        let waiter = thread::spawn(move || Lock::take(&dir).map(drop));
        // However far the waiter is: it gets a lock that counts, or is told that it does not.
        thread::sleep(Duration::from_millis(20));
        fs::remove_file(&path).unwrap();
        drop(first);
        match waiter.join().unwrap() {
            Ok(()) => assert!(path.exists()),
            Err(error) => assert!(matches!(error, LockError::Gone(_)), "{error}"),
        }
    }
}
