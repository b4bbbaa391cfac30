//! What a broken guest, or a broken VMM, can reach, and what it may do there. One of the rooms with `unsafe`.
//!
//! Whoever starts a VMM may put it in a jail:
//!
//! ```text
//!   jail ──> tree ──> lock, dir        the files, and the right to remove them
//!     ├────> cgroup ──> dir            what it may use
//!     ├────> janitor                   removes both when the VMM has ended
//!     ├────> namespaces, privileges    what it sees, who it is
//!     └────> descriptors               what it has open
//! ```
//! | room | one idea |
//! |---|---|
//! | [`jail`] | what is asked for, and the straight line from there to a VMM in its jail |
//! | [`dir`] | directories by descriptor: nothing is resolved twice, no link is followed |
//! | [`lock`] | one VMM a jail; what an earlier one left |
//! | [`tree`] | the chroot's files |
//! | [`cgroup`] | control groups of both versions |
//! | [`namespaces`] | mounts, network and the rest, as seen from inside |
//! | [`privileges`] | limits, user, capabilities |
//! | [`descriptors`] | which descriptors get in |
//! | [`janitor`] | the process that waits for the VMM's end and cleans up |
//!
//! The rest a VMM does to itself, whoever started it and however:
//!
//! | room | one idea |
//! |---|---|
//! | [`seccomp`] | the system calls of each thread, and nothing else |
//! | [`landlock`] | what no VMM needs of files, networks and other processes |
//! | [`harden`] | not to be traced, dumped, merged, or run beside a stranger |
//!
//! Nothing here parses arguments or prints: fronts do, such as `yun-jailer`.

pub mod cgroup;
pub mod descriptors;
pub mod dir;
pub mod harden;
pub mod jail;
pub mod janitor;
pub mod landlock;
pub mod lock;
pub mod namespaces;
pub mod privileges;
pub mod seccomp;
pub mod tree;
