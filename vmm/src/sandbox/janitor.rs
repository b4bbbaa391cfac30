//! The process that cleans up after a VMM: it waits for the VMM's end, removes what the jailer made, and ends.
//!
//! It is a grandchild of the jailer, made before the jailer changes: in the caller's namespaces and cgroups, as the
//! caller's user, in a session of its own, so that neither a terminal nor a `kill` of the caller's process group reaches
//! it. It keeps the directories it will work in, a pidfd and its end of the link to the jailer; above all not the caller's
//! standard output, for whose end somebody may wait. It is no child of the VMM's, which need not know of it.
//!
//! ```text
//!   jailer                                 janitor
//!     │ hire ────────── fork, fork ──────────▶ watches the jailer, who is to become the VMM
//!     │ watch(pid) ──────── 'w' pid ─────────▶ watches the child that is to become the VMM instead
//!     │ undo ────────────── 'u' ─────────────▶ removes everything at once: the jailer failed, and waits to say so
//!     │ execve, or end ──── (closed) ────────▶ waits for the end of whom it watches, and removes everything then
//! ```

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, chdir, fork, getpid, setsid};

use super::cgroup::Group;
use super::descriptors;
use super::tree::Tree;

const WATCH: u8 = b'w';
const UNDO: u8 = b'u';
/// The answer to an order that was carried out.
const DONE: u8 = b'.';
const ORDER_LEN: usize = 5;

/// The jailer's end of the link. Dropped, or closed by `execve`, it leaves the janitor to its waiting.
#[derive(Debug)]
pub struct Janitor {
    link: UnixStream,
}

impl Janitor {
    /// Makes the process that will undo `tree` and `group` once this process has ended.
    ///
    /// This process must have no other threads.
    ///
    /// # Errors
    /// What the host says; then there is no janitor.
    pub fn hire(tree: &Tree, group: Option<&Group>) -> io::Result<Self> {
        // Of this process by itself: nobody else can have its number.
        let pid = getpid();
        let watched = pidfd_open(pid)?;
        let (ours, theirs) = UnixStream::pair()?;
        let null = descriptors::null()?;
        // SAFETY: there is no other thread whose locks the child could find taken.
        match unsafe { fork() }? {
            ForkResult::Parent { child } => {
                drop(theirs);
                // It is there to leave the janitor an orphan. Somebody who ignores SIGCHLD has had it waited for.
                let _ = waitpid(child, None);
                let mut janitor = Self { link: ours };
                janitor.expect_done()?;
                Ok(janitor)
            }
            ForkResult::Child => {
                let status = i32::from(detach().is_err());
                if status == 0 {
                    Work { link: theirs, watched, pid, other: false, tree, group }.begin(&null);
                }
                // SAFETY: nothing of the parent's is to be run again, neither destructors nor what is registered for exit.
                unsafe { libc::_exit(status) }
            }
        }
    }

    /// Watches the process `pid` instead of this one. It must be a child that nobody has waited for.
    ///
    /// # Errors
    /// What the host says, or that the janitor is no more.
    pub fn watch(&mut self, pid: i32) -> io::Result<()> {
        self.order(WATCH, pid)?;
        self.expect_done()
    }

    /// Has everything removed, and waits for it. Cgroups that this process is in itself go once it has ended.
    pub fn undo(mut self) {
        let ordered = self.order(UNDO, 0).and_then(|()| self.expect_done());
        if let Err(error) = ordered {
            // It will see this process end.
            log::debug!("the janitor does not answer: {error}");
        }
    }

    fn order(&mut self, what: u8, pid: i32) -> io::Result<()> {
        let mut order = [what; ORDER_LEN];
        order[1..].copy_from_slice(&pid.to_le_bytes());
        self.link.write_all(&order)
    }

    fn expect_done(&mut self) -> io::Result<()> {
        let mut answer = [0];
        self.link.read_exact(&mut answer)?;
        if answer == [DONE] { Ok(()) } else { Err(io::Error::other("the janitor could not")) }
    }
}

/// Lets the caller go on in a grandchild, which belongs to nobody; the child in between ends here.
fn detach() -> nix::Result<()> {
    setsid()?;
    // SAFETY: this process, just forked, has one thread.
    match unsafe { fork() }? {
        ForkResult::Child => Ok(()),
        ForkResult::Parent { .. } => {
            // SAFETY: as in `hire`.
            unsafe { libc::_exit(0) }
        }
    }
}

/// A janitor at work.
struct Work<'a> {
    link: UnixStream,
    watched: OwnedFd,
    /// The number of the process it watches.
    pid: Pid,
    /// Whether it watches another process than the one that gives orders.
    other: bool,
    tree: &'a Tree,
    group: Option<&'a Group>,
}

impl Work<'_> {
    fn begin(mut self, null: &std::fs::File) {
        // Who ends everything in the caller's cgroup means the VMM: cleaning up comes after that.
        let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None);
        let mut keep = vec![self.link.as_raw_fd(), self.watched.as_raw_fd(), null.as_raw_fd()];
        keep.extend(self.tree.descriptors());
        keep.extend(self.group.iter().flat_map(|group| group.descriptors()));
        let ready = descriptors::close_all_but(&keep).is_ok()
            && descriptors::redirect_to(null).is_ok()
            // No file system of the caller's is kept from being unmounted.
            && chdir("/").is_ok();
        let _ = nix::sys::prctl::set_name(c"yun-janitor");
        if ready && self.link.write_all(&[DONE]).is_ok() {
            self.serve();
        }
    }

    fn serve(&mut self) {
        let mut order = [0; ORDER_LEN];
        while self.link.read_exact(&mut order).is_ok() {
            let [what, pid @ ..] = order;
            match what {
                WATCH => match pidfd_open(Pid::from_raw(i32::from_le_bytes(pid))) {
                    Ok(pidfd) => {
                        self.watched = pidfd;
                        self.pid = Pid::from_raw(i32::from_le_bytes(pid));
                        self.other = true;
                        let _ = self.link.write_all(&[DONE]);
                    }
                    Err(_) => {
                        let _ = self.link.write_all(&[0]);
                    }
                },
                _ => {
                    if self.other {
                        self.undo_group();
                    }
                    self.tree.undo(Some(self.pid.as_raw()));
                    let _ = self.link.write_all(&[DONE]);
                    self.wait();
                    self.undo_group();
                    return;
                }
            }
        }
        self.wait();
        // With the tree goes the lock: the next jail of this id has a cgroup of the same name.
        self.undo_group();
        self.tree.undo(Some(self.pid.as_raw()));
    }

    fn undo_group(&self) {
        if let Some(group) = self.group {
            group.undo();
        }
    }

    /// Waits until the process has ended; whether its parent has waited for it does not matter.
    fn wait(&self) {
        let mut fds = [PollFd::new(self.watched.as_fd(), PollFlags::POLLIN)];
        while poll(&mut fds, PollTimeout::NONE) == Err(Errno::EINTR) {}
    }
}

/// A descriptor of a process, readable once it has ended (pidfd_open(2)).
fn pidfd_open(pid: Pid) -> io::Result<OwnedFd> {
    // SAFETY: the call takes two numbers, and no memory.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
    let fd = libc::c_int::try_from(Errno::result(fd)?).expect("a descriptor");
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
