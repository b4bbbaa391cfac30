//! The process's own heap.

/// `M_ARENA_MAX` of glibc's malloc.h.
#[cfg(target_env = "gnu")]
const M_ARENA_MAX: libc::c_int = -8;

/// One arena for all threads. A thread's own costs pages that are rarely used again (what allocates much here is the API,
/// and cold), and to decide on one glibc reads `/sys`, which a confined thread may not. To be called before any thread is.
pub fn share() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes two numbers; no other thread exists that could be allocating.
    let result = unsafe { libc::mallopt(M_ARENA_MAX, 1) };
    #[cfg(target_env = "gnu")]
    debug_assert_eq!(result, 1, "glibc knows M_ARENA_MAX");
}
