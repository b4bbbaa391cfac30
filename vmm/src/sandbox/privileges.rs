//! Who a VMM is and what it may do: limits, user and group, no capabilities, and no way to any. Also whose groups a client has.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use caps::{CapSet, errors::CapsError};
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};

use super::namespaces::{NamespaceError, enter_user_namespace};

/// Descriptors a VMM may have unless told otherwise: Firecracker's.
pub const NO_FILE_DEFAULT: u64 = 2048;

/// Groups of a process, at most (`NGROUPS_MAX`).
const GROUPS_MAX: usize = 65_536;

/// The user and group of a VMM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User {
    uid: u32,
    gid: u32,
}

impl User {
    /// This user and group; `None` if one is the number that means "leave it as it is" to the kernel, which would make a
    /// jail of root's.
    #[must_use]
    pub fn new(uid: u32, gid: u32) -> Option<Self> {
        (uid != u32::MAX && gid != u32::MAX).then_some(Self { uid, gid })
    }

    /// Both, as the kernel's interfaces want them.
    #[must_use]
    pub fn ids(self) -> (Uid, Gid) {
        (Uid::from_raw(self.uid), Gid::from_raw(self.gid))
    }
}

/// Limits of resources, soft and hard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// One more than the highest descriptor.
    pub no_file: u64,
    /// The largest file that can be written, in bytes; `None` leaves it as it is.
    pub file_size: Option<u64>,
}

impl Default for Limits {
    fn default() -> Self {
        Self { no_file: NO_FILE_DEFAULT, file_size: None }
    }
}

/// Why privileges could not be given up.
#[derive(Debug, thiserror::Error)]
pub enum PrivilegeError {
    /// A limit is refused: one above the hard limit needs CAP_SYS_RESOURCE.
    #[error("can't limit {resource} to {value}")]
    Limit {
        /// Which.
        resource: &'static str,
        /// To what.
        value: u64,
        /// What the kernel says.
        source: io::Error,
    },
    /// The kernel refuses.
    #[error("can't {doing}")]
    Host {
        /// To do what.
        doing: &'static str,
        /// What the kernel says.
        source: io::Error,
    },
    /// Capabilities are refused.
    #[error("can't drop the {set} capabilities")]
    Capabilities {
        /// Which set of them.
        set: &'static str,
        /// What the kernel says.
        source: CapsError,
    },
    /// The user namespace is refused.
    #[error(transparent)]
    UserNamespace(#[from] NamespaceError),
}

impl Limits {
    /// Limits this process.
    ///
    /// # Errors
    /// [`PrivilegeError::Limit`].
    pub fn apply(&self) -> Result<(), PrivilegeError> {
        let set = |kind, resource, value| {
            setrlimit(kind, value, value).map_err(|error| PrivilegeError::Limit {
                resource,
                value,
                source: error.into(),
            })
        };
        set(Resource::RLIMIT_NOFILE, "no-file", self.no_file)?;
        self.file_size.map_or(Ok(()), |value| set(Resource::RLIMIT_FSIZE, "fsize", value))
    }
}

/// Leaves the session keyring (session-keyring(7)), in which whoever started this process may have keys of file systems,
/// tickets and tokens: whoever inherits it possesses them. The new one is empty, nobody else's, and counts for the user who
/// this process is: to be called while that is one without a quota.
fn forget_keys() -> nix::Result<()> {
    const JOIN_SESSION_KEYRING: libc::c_int = 1;
    const NEW: *const libc::c_char = std::ptr::null();
    // SAFETY: the call reads a name, if it is given one.
    let result = unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, NEW) };
    match nix::errno::Errno::result(result) {
        // A kernel without keys; or somebody has forbidden the call to us, and so to all that comes after us.
        Err(nix::Error::ENOSYS | nix::Error::EPERM) => Ok(()),
        other => other.map(drop),
    }
}

/// Becomes `user`, without any other group, capability, key, or way to one. If `user_namespace` is the `/proc` outside, in a
/// user namespace of its own.
///
/// What the parent asked for in case it dies (`PR_SET_PDEATHSIG`) stays; the kernel would forget it with the user.
///
/// # Errors
/// [`PrivilegeError`]. The process may have given up a part and must end.
pub fn drop_to(user: User, user_namespace: Option<&OwnedFd>) -> Result<(), PrivilegeError> {
    let host = |doing| move |error: nix::Error| PrivilegeError::Host { doing, source: error.into() };
    let capabilities = |set| move |source| PrivilegeError::Capabilities { set, source };
    let on_parent_death =
        nix::sys::prctl::get_pdeathsig().map_err(host("ask for the parent death signal"))?;
    let parent = nix::unistd::getppid();
    forget_keys().map_err(host("make a new session keyring"))?;
    // First, while there is CAP_SETPCAP: what is not bounded could come back by executing something.
    caps::clear(None, CapSet::Ambient).map_err(capabilities("ambient"))?;
    caps::clear(None, CapSet::Bounding).map_err(capabilities("bounding"))?;
    let (uid, gid) = user.ids();
    setgroups(&[]).map_err(host("give up the supplementary groups"))?;
    setresgid(gid, gid, gid).map_err(host("change the group"))?;
    setresuid(uid, uid, uid).map_err(host("change the user"))?;
    if let Some(proc) = user_namespace {
        enter_user_namespace(proc, user.uid, user.gid)?;
        // A new user namespace gives all of its capabilities, and bounds none.
        caps::clear(None, CapSet::Ambient).map_err(capabilities("ambient"))?;
        caps::clear(None, CapSet::Bounding).map_err(capabilities("bounding"))?;
    }
    // Where the user is root's, these are still there.
    caps::clear(None, CapSet::Effective).map_err(capabilities("effective"))?;
    caps::clear(None, CapSet::Permitted).map_err(capabilities("permitted"))?;
    caps::clear(None, CapSet::Inheritable).map_err(capabilities("inheritable"))?;
    nix::sys::prctl::set_no_new_privs().map_err(host("forbid new privileges"))?;
    if on_parent_death.is_some() {
        nix::sys::prctl::set_pdeathsig(on_parent_death).map_err(host("keep the parent death signal"))?;
        if nix::unistd::getppid() != parent {
            // It died while the signal was not set.
            nix::sys::signal::raise(on_parent_death.unwrap_or(nix::sys::signal::SIGKILL))
                .map_err(host("send the parent death signal"))?;
        }
    }
    Ok(())
}

/// The groups, other than its effective one, of the process that connected to `socket`, as they were then (`SO_PEERGROUPS`).
///
/// # Errors
/// What the kernel says.
pub fn peer_groups(socket: &impl AsFd) -> io::Result<Vec<u32>> {
    let mut groups: Vec<libc::gid_t> = vec![0; 64];
    loop {
        let bytes = groups.len() * size_of::<libc::gid_t>();
        let mut len = libc::socklen_t::try_from(bytes).map_err(io::Error::other)?;
        // SAFETY: `groups` has `len` bytes, which the kernel writes no more than; both outlive the call.
        let result = unsafe {
            libc::getsockopt(
                socket.as_fd().as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut len,
            )
        };
        let count = len as usize / size_of::<libc::gid_t>();
        if result == 0 {
            groups.truncate(count);
            return Ok(groups);
        }
        let error = io::Error::last_os_error();
        // The kernel says how much room it needs.
        if error.raw_os_error() != Some(libc::ERANGE) || count <= groups.len() || count > GROUPS_MAX {
            return Err(error);
        }
        groups.resize(count, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_that_changes_nothing_is_no_user() {
        assert_eq!(User::new(u32::MAX, 0), None);
        assert_eq!(User::new(0, u32::MAX), None);
        assert_eq!(User::new(1, 2).map(User::ids), Some((Uid::from_raw(1), Gid::from_raw(2))));
    }
}
