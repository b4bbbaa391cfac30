//! The CPUs of the host that threads of ours run on.

use std::io;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// This thread.
const SELF: Pid = Pid::from_raw(0);

/// The CPUs that this thread may run on: those that are there, are online, and are in its cgroup's set.
///
/// # Errors
/// What the kernel said.
pub fn allowed() -> io::Result<Vec<u16>> {
    let set = sched_getaffinity(SELF)?;
    let cpus = (0..CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false));
    Ok(cpus.filter_map(|cpu| u16::try_from(cpu).ok()).collect())
}

/// Keeps this thread, and all it starts, on `cpus`; no CPU is no wish. Whoever asks has looked whether they are allowed: if one
/// is not any more, the log says so and the thread runs where it may.
pub fn stay_on(cpus: &[u16]) {
    if cpus.is_empty() {
        return;
    }
    let mut set = CpuSet::new();
    let set = cpus.iter().try_for_each(|cpu| set.set((*cpu).into())).map(|()| set);
    if let Err(error) = set.and_then(|set| sched_setaffinity(SELF, &set)) {
        let name = std::thread::current().name().unwrap_or_default().to_owned();
        log::warn!("{name} can't stay on CPUs {cpus:?}: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_stays_where_it_is_told_to_and_so_does_what_it_starts() {
        let first = allowed().unwrap()[0];
        std::thread::spawn(move || {
            stay_on(&[]);
            assert!(!allowed().unwrap().is_empty());
            stay_on(&[first]);
            assert_eq!(allowed().unwrap(), [first]);
            let child = std::thread::spawn(|| allowed().unwrap());
            assert_eq!(child.join().unwrap(), [first]);
            // That CPU can't be: nothing changes.
            stay_on(&[1023]);
            assert_eq!(allowed().unwrap(), [first]);
        })
        .join()
        .unwrap();
    }
}
