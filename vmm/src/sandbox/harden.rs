//! What a process does to itself so that others learn less of it.

use std::io;

use nix::sys::prctl;

/// `PIDTYPE_TGID` of linux/pid.h: the cookie is one for all threads of the process.
const WHOLE_PROCESS: libc::c_ulong = 1;
/// `PR_SET_MEMORY_MERGE`, linux/prctl.h.
const PR_SET_MEMORY_MERGE: libc::c_int = 67;

/// No set-user-ID program can give this process more than it has, its memory lands in no core file, and no process of the
/// same user may trace it or read its memory. Pages are not merged with those of others, whatever the parent asked for.
///
/// # Errors
/// What the kernel said.
pub fn harden() -> io::Result<()> {
    prctl::set_no_new_privs()?;
    prctl::set_dumpable(false)?;
    let off: libc::c_ulong = 0;
    // SAFETY: takes numbers only. Kernels before 6.4 answer EINVAL: they don't merge unless asked to page by page.
    unsafe { libc::prctl(PR_SET_MEMORY_MERGE, off, off, off, off) };
    Ok(())
}

/// Gives this process a core-scheduling cookie of its own: the kernel then runs no thread of another process on the SMT
/// sibling of a core that runs one of ours (Linux `Documentation/admin-guide/hw-vuln/core-scheduling.rst`).
///
/// # Errors
/// ENODEV without SMT (nothing is to be done then), EINVAL if the kernel was built without it.
pub fn own_cores() -> io::Result<()> {
    const ITSELF: libc::c_ulong = 0;
    const NOWHERE: libc::c_ulong = 0;
    // SAFETY: takes numbers only; the last is a pointer for another operation than this.
    let result = unsafe {
        libc::prctl(
            libc::PR_SCHED_CORE,
            libc::c_ulong::from(libc::PR_SCHED_CORE_CREATE as u32),
            ITSELF,
            WHOLE_PROCESS,
            NOWHERE,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Has a panic print no backtrace, whatever the environment asks for: it reads files that a confined thread may not, and
/// the refusal would hide why the process aborts. To be called before there is another thread.
pub fn forget_backtraces() {
    for name in ["RUST_BACKTRACE", "RUST_LIB_BACKTRACE"] {
        // SAFETY: there is no other thread yet that could read the environment.
        unsafe { std::env::remove_var(name) };
    }
}
