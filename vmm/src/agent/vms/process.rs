//! VMMs' processes: found again by number, start time and boot; waited for and ended by descriptor, never by number alone.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::net::unix::pipe;

use super::super::records::ProcessId;
use crate::sandbox::lock::{Ledger, Process};

/// A process that is certainly the one that was meant, whatever becomes of its number.
#[derive(Debug)]
pub struct Handle {
    id: ProcessId,
    /// Registered as what it is not, a pipe: of all that tokio takes without `unsafe` it asks for nothing but readiness.
    fd: pipe::Receiver,
}

impl From<&Process> for ProcessId {
    fn from(process: &Process) -> Self {
        Self { boot: process.boot().to_owned(), pid: process.pid(), start: process.start() }
    }
}

impl ProcessId {
    /// The process with this number.
    ///
    /// # Errors
    /// If /proc does not show it.
    pub fn of(pid: i32) -> io::Result<Self> {
        Ok(Self::from(&Process::of(pid)?))
    }

    /// Whether it has not ended.
    #[must_use]
    pub fn lives(&self) -> bool {
        Process::new(self.boot.clone(), self.pid, self.start).lives()
    }
}

impl Handle {
    /// A handle of a process, if it lives. To be called on the runtime.
    ///
    /// # Errors
    /// What the host says.
    pub fn open(id: &ProcessId) -> io::Result<Option<Self>> {
        let Some(pid) = Pid::from_raw(id.pid) else { return Ok(None) };
        let fd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(fd) => fd,
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // Looked at after it was opened: the descriptor is of the process that lives under the number now, or of one that
        // has ended since.
        if !id.lives() {
            return Ok(None);
        }
        Ok(Some(Self { id: id.clone(), fd: pipe::Receiver::from_owned_fd_unchecked(fd)? }))
    }

    /// Which it is.
    #[must_use]
    pub fn id(&self) -> &ProcessId {
        &self.id
    }

    /// Waits for its end, with all its threads: whoever is its parent can reap it at once then.
    pub async fn ended(&self) {
        // A descriptor of a process is readable once it has ended, and stays so. It is asked first: /proc calls a process
        // ended when its first thread has, while a guest's memory may take tens of milliseconds more.
        while self.fd.readable().await.is_ok() && self.id.lives() {}
    }

    /// Ends it. One that has ended already is fine.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn kill(&self) -> io::Result<()> {
        match pidfd_send_signal(self.fd.as_fd(), Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Whether a process is still the jailer at work on `id`, and not yet the VMM that it becomes: the last of its words are the
/// VMM's own, behind a `--` that the VMM does not get to see.
#[must_use]
pub fn is_jailer(pid: i32) -> bool {
    let cmdline = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    cmdline.split(|byte| *byte == 0).any(|word| word == b"--exec-file")
}

/// The process that a jail's lock file names, if it lives.
#[must_use]
pub fn of_jail(jail: &Path) -> Option<ProcessId> {
    let bytes = fs::read(jail.join(crate::sandbox::lock::NAME)).ok()?;
    let process = Ledger::from_bytes(&bytes).process?;
    process.lives().then(|| ProcessId::from(&process))
}

/// Numbers of all processes whose arguments hold `--id` and, next, one that `wanted` knows.
///
/// # Errors
/// What the host says of /proc.
pub fn with_id(wanted: impl Fn(&str) -> bool) -> io::Result<Vec<(i32, String)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // Ended meanwhile.
        let Ok(cmdline) = fs::read(entry.path().join("cmdline")) else { continue };
        let words: Vec<&[u8]> = cmdline.split(|byte| *byte == 0).collect();
        let id =
            words.windows(2).find(|pair| pair[0] == b"--id").map(|pair| String::from_utf8_lossy(pair[1]));
        if let Some(id) = id.filter(|id| wanted(id)) {
            found.push((pid, id.into_owned()));
        }
    }
    Ok(found)
}

/// CPU time of a process's threads whose name begins with `prefix`, in nanoseconds (`/proc/PID/task/*/schedstat`).
#[must_use]
pub fn cpu_ns(pid: i32, prefix: &str) -> Option<u64> {
    let mut sum = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten() {
        let Ok(name) = fs::read_to_string(task.path().join("comm")) else { continue };
        if !name.starts_with(prefix) {
            continue;
        }
        let Ok(schedstat) = fs::read_to_string(task.path().join("schedstat")) else { continue };
        sum += schedstat.split(' ').next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
    }
    Some(sum)
}

/// Memory that a process takes, in KiB (`VmRSS`).
#[must_use]
pub fn rss_kib(pid: i32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().trim_end_matches(" kB").parse().ok()
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};
    use std::time::Duration;

    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
    }

    #[test]
    fn a_process_is_ended_and_its_end_noticed_and_another_with_its_number_is_left_alone() {
        let mut child = Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap();
        let id = ProcessId::of(i32::try_from(child.id()).unwrap()).unwrap();
        runtime().block_on(async {
            let reused = ProcessId { start: id.start + 1, ..id.clone() };
            assert!(Handle::open(&reused).unwrap().is_none(), "its number was given to another");
            let other_boot = ProcessId { boot: "before".to_owned(), ..id.clone() };
            assert!(Handle::open(&other_boot).unwrap().is_none());
            let handle = Handle::open(&id).unwrap().unwrap();
            assert!(tokio::time::timeout(Duration::from_millis(20), handle.ended()).await.is_err());
            handle.kill().unwrap();
            handle.ended().await;
            handle.kill().unwrap();
        });
        assert!(!child.wait().unwrap().success());
        assert!(!id.lives());
    }

    #[test]
    fn processes_are_found_by_their_id_and_have_cpu_time_and_memory() {
        let mut command = Command::new("sh");
        command.args(["-c", "read x", "--id", "vm-of-a-test"]).stdin(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let found = loop {
            let found = with_id(|id| id == "vm-of-a-test").unwrap();
            if !found.is_empty() {
                break found;
            }
        };
        assert_eq!(found, [(pid, "vm-of-a-test".to_owned())]);
        assert!(rss_kib(pid).unwrap() > 0);
        assert!(cpu_ns(pid, "").is_some() && cpu_ns(pid, "yun_vcpu") == Some(0));
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(with_id(|id| id == "vm-of-a-test").unwrap().is_empty());
    }
}
