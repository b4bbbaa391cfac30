//! Signals as something to wait for, as long as a command has an answer to them.

use std::io;
use std::os::fd::OwnedFd;

use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};
use nix::sys::signalfd::{SfdFlags, SignalFd, siginfo};
use tokio::net::unix::pipe::Receiver;

use super::error::Failure;

/// SIGINT, SIGTERM and SIGHUP wait here instead of ending the process. When it goes they do what they did before, which those
/// that still wait then do at once.
///
/// For the main thread, before it starts others: those inherit that signals are blocked.
pub(crate) struct Signals {
    /// A signalfd. The runtime takes it for a pipe, as far as reading goes: bytes come, or there are none yet.
    fd: Receiver,
    before: SigSet,
}

impl Signals {
    /// From now on.
    ///
    /// # Errors
    /// [`Failure::System`], of which none is known.
    pub(crate) fn catch() -> Result<Self, Failure> {
        let failed = |source: io::Error| Failure::System { what: "signals can't be waited for", source };
        let mut set = SigSet::empty();
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            set.add(signal);
        }
        let mut before = SigSet::empty();
        pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&set), Some(&mut before))
            .map_err(|error| failed(error.into()))?;
        let fd = SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
            .map_err(io::Error::from)
            .and_then(|fd| Receiver::from_owned_fd_unchecked(OwnedFd::from(fd)))
            .map_err(failed)?;
        Ok(Self { fd, before })
    }

    /// The next one. May be dropped and called again without losing any.
    pub(crate) async fn next(&self) -> Signal {
        loop {
            if self.fd.readable().await.is_err() {
                // The runtime is going away, and whoever waits with it.
                return std::future::pending().await;
            }
            let mut info = [0; size_of::<siginfo>()];
            let read = self.fd.try_read(&mut info);
            if read.is_ok_and(|length| length == info.len()) {
                // signalfd(2): it begins with the number, 32 bits.
                let [a, b, c, d, ..] = info;
                let number = i32::from_ne_bytes([a, b, c, d]);
                return Signal::try_from(number).unwrap_or(Signal::SIGTERM);
            }
        }
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        let _ = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&self.before), None);
    }
}
