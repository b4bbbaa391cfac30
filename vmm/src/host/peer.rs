//! Who is at the other end of a Unix socket, by the kernel's word (unix(7)).

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

/// Groups of a process, at most (`NGROUPS_MAX`).
const GROUPS_MAX: usize = 65_536;

/// A process at the time it connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its number then.
    pub pid: i32,
    /// Its effective user.
    pub uid: u32,
    /// Its effective group.
    pub gid: u32,
    /// Its other groups.
    pub groups: Vec<u32>,
}

impl Peer {
    /// Who connected to `socket` (`SO_PEERCRED`, `SO_PEERGROUPS`).
    ///
    /// # Errors
    /// What the kernel says.
    pub fn of(socket: impl AsFd) -> io::Result<Self> {
        let credentials = getsockopt(&socket, PeerCredentials)?;
        Ok(Self {
            pid: credentials.pid(),
            uid: credentials.uid(),
            gid: credentials.gid(),
            groups: groups(&socket)?,
        })
    }
}

fn groups(socket: &impl AsFd) -> io::Result<Vec<u32>> {
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
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn the_kernel_says_who_connected() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let peer = Peer::of(&ours).unwrap();
        assert_eq!(u32::try_from(peer.pid), Ok(std::process::id()));
        assert_eq!(peer.uid, nix::unistd::geteuid().as_raw());
        let mut expected: Vec<u32> =
            nix::unistd::getgroups().unwrap().iter().map(|group| group.as_raw()).collect();
        let mut groups = peer.groups;
        expected.sort_unstable();
        groups.sort_unstable();
        assert_eq!(groups, expected);
    }
}
