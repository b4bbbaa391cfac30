//! What a VMM sees: a mount namespace with its root alone, no other's IPC, host name or cgroups, the network it is meant
//! to have.

use std::ffi::CStr;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{chdir, fchdir, pivot_root};

use super::dir::Dir;

/// The network that a VMM has.
#[derive(Debug, Default)]
pub enum Network {
    /// The caller's.
    #[default]
    Callers,
    /// That of an opened namespace.
    Joined(OwnedFd),
    /// An empty one, in which not even the loopback interface is up.
    Empty,
}

/// Why a namespace could not be entered.
#[derive(Debug, thiserror::Error)]
#[error("can't {doing}")]
pub struct NamespaceError {
    /// To do what.
    pub doing: &'static str,
    /// What the kernel says.
    pub source: io::Error,
}

fn failed<E: Into<io::Error>>(doing: &'static str) -> impl FnOnce(E) -> NamespaceError {
    move |error| NamespaceError { doing, source: error.into() }
}

/// Moves this process into namespaces of its own, with `root` as its `/` and nothing else of the file system in reach.
///
/// Of the mount namespaces above nothing comes in any more, and nothing goes out. The root is mounted without `nosuid`
/// programs. Device nodes work in it, whatever the mount below it says: the VMM needs those that it was given, and a drive may
/// be one that root put there. It can make none itself, whatever directory it owns: that takes CAP_MKNOD of the first user
/// namespace, which no process in a jail has or can get.
///
/// # Errors
/// [`NamespaceError`]. The process may have been moved half way and must end.
pub fn enter(root: &Dir, network: &Network) -> Result<(), NamespaceError> {
    // Whose working directory this is when the mount namespace is copied: the copy finds it at the same place, where it
    // can be mounted; through the descriptor it would be a foreign namespace's.
    fchdir(root).map_err(failed("change into the jail"))?;
    let mut flags = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWCGROUP;
    match network {
        Network::Callers => {}
        Network::Joined(namespace) => setns(namespace, CloneFlags::CLONE_NEWNET).map_err(failed(
            "join the network namespace, which must be one that `ip netns` or /proc/PID/ns/net names",
        ))?,
        Network::Empty => flags |= CloneFlags::CLONE_NEWNET,
    }
    unshare(flags).map_err(failed("make new namespaces"))?;
    // Slave, so that nothing done here is seen outside, and no unmounting outside is held up by us meanwhile.
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_SLAVE | MsFlags::MS_REC, None::<&str>)
        .map_err(failed("detach the mounts from those outside"))?;
    let tree = clone_mount_of_working_dir().map_err(failed("clone the jail's mount"))?;
    set_mount_flags(&tree).map_err(failed("set the jail's mount flags"))?;
    move_to_working_dir(&tree).map_err(failed("mount the jail"))?;
    fchdir(&tree).map_err(failed("change into the mounted jail"))?;
    // The old root ends up mounted over the new one (pivot_root(2)), from where it goes.
    pivot_root(".", ".").map_err(failed("make the jail the root"))?;
    umount2(".", MntFlags::MNT_DETACH).map_err(failed("unmount the old root"))?;
    chdir("/").map_err(failed("change into the new root"))
}

/// Moves this process into a user namespace of its own in which its user and group exist, and no others.
///
/// To be called as that user and group, with `proc` as a descriptor of the `/proc` outside. Where unprivileged users may
/// not make user namespaces this is refused.
///
/// # Errors
/// [`NamespaceError`].
pub fn enter_user_namespace(proc: &OwnedFd, uid: u32, gid: u32) -> Result<(), NamespaceError> {
    unshare(CloneFlags::CLONE_NEWUSER)
        .map_err(failed("make a user namespace (the host may forbid it: see user.max_user_namespaces)"))?;
    // The files in /proc belong to root while a process that changed its user is not dumpable.
    let dumpable = nix::sys::prctl::get_dumpable().map_err(failed("ask for the dumpable flag"))?;
    nix::sys::prctl::set_dumpable(true).map_err(failed("set the dumpable flag"))?;
    let maps = [
        // Without this an unprivileged process may not map a group (user_namespaces(7)).
        ("self/setgroups", "deny".to_owned()),
        ("self/uid_map", format!("{uid} {uid} 1")),
        ("self/gid_map", format!("{gid} {gid} 1")),
    ];
    for (path, text) in maps {
        let flags = nix::fcntl::OFlag::O_WRONLY | nix::fcntl::OFlag::O_CLOEXEC;
        let file = nix::fcntl::openat(proc, path, flags, nix::sys::stat::Mode::empty());
        let written = file.and_then(|file| nix::unistd::write(&file, text.as_bytes()));
        written.map_err(failed("map the user and group of the user namespace"))?;
    }
    nix::sys::prctl::set_dumpable(dumpable).map_err(failed("set the dumpable flag"))
}

/// `open_tree(2)`: a mount of the working directory that is nowhere yet.
fn clone_mount_of_working_dir() -> io::Result<OwnedFd> {
    const OPEN_TREE_CLONE: libc::c_uint = 1;
    let flags = OPEN_TREE_CLONE | libc::O_CLOEXEC.unsigned_abs();
    // SAFETY: the path is a C string that outlives the call, which takes nothing else by reference.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, c".".as_ptr(), flags) };
    let fd = libc::c_int::try_from(Errno::result(fd)?).expect("a descriptor");
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `struct mount_attr` of linux/mount.h.
#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

/// `mount_setattr(2)`: nothing in the mount changes users; its devices work, and its one program runs.
fn set_mount_flags(tree: &OwnedFd) -> io::Result<()> {
    const NOSUID: u64 = 2;
    const NODEV: u64 = 4;
    const NOEXEC: u64 = 8;
    let attr = MountAttr { set: NOSUID, clear: NODEV | NOEXEC, propagation: 0, user_namespace: 0 };
    // SAFETY: path and attributes outlive the call, and the size is that of the attributes.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_fd().as_raw_fd(),
            EMPTY.as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    Errno::result(result)?;
    Ok(())
}

const EMPTY: &CStr = c"";

/// `move_mount(2)`: the mount covers the working directory.
fn move_to_working_dir(tree: &OwnedFd) -> io::Result<()> {
    const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 4;
    // SAFETY: both paths are C strings that outlive the call, which takes nothing else by reference.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_fd().as_raw_fd(),
            EMPTY.as_ptr(),
            libc::AT_FDCWD,
            c".".as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH,
        )
    };
    Errno::result(result)?;
    Ok(())
}
