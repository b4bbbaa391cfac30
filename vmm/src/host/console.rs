//! The console's two ends in the host: where the guest's output goes (standard output or a file) and where its input
//! comes from (standard input).
//!
//! Nothing here ever blocks: output that its reader does not take waits in a [`ConsoleBuffer`], which drops what it can't
//! hold.

use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use devices::serial::{ConsoleBuffer, Serial};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::terminal::Terminal;

use crate::output::Output;

/// Output waiting for its reader, at most, in bytes.
const BUFFER: usize = 64 << 10;
/// Output written at once: what a pipe takes without blocking when it says it is writable (`PIPE_BUF`).
const CHUNK: usize = 4096;
/// Input read at once.
const INPUT: usize = 256;

/// The console of one microVM.
pub struct Console {
    output: Output,
    buffer: Arc<ConsoleBuffer>,
    wake: Arc<EventFd>,
    stdin: io::Stdin,
    /// Input that the guest has no room for yet.
    pending: Vec<u8>,
    serial: Mutex<Option<Arc<Serial>>>,
    raw_terminal: bool,
}

impl Console {
    /// A console on standard input and output; nothing is read or changed yet.
    ///
    /// # Errors
    /// If descriptors can't be had.
    pub fn new() -> io::Result<Self> {
        let wake = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        let waker = Arc::clone(&wake);
        let buffer = ConsoleBuffer::new(
            BUFFER,
            Box::new(move || {
                let _ = waker.write(1);
            }),
        );
        Ok(Self {
            output: Output::stdout()?,
            buffer,
            wake,
            stdin: io::stdin(),
            pending: Vec::new(),
            serial: Mutex::new(None),
            raw_terminal: false,
        })
    }

    /// Sends output to `path` instead of standard output, and takes over the terminal if input comes from one that this
    /// process has in the foreground. To be
    /// called when the guest starts.
    ///
    /// # Errors
    /// What the host says of `path`.
    pub fn open(&mut self, path: Option<&Path>) -> io::Result<()> {
        if let Some(path) = path {
            self.output = Output::file(path)?;
        }
        let ours = io::IsTerminal::is_terminal(&self.stdin) && self.may_touch_input();
        if ours && !self.raw_terminal && self.stdin.lock().set_raw_mode().is_ok() {
            self.raw_terminal = true;
        }
        Ok(())
    }

    /// The buffer that a UART prints to.
    #[must_use]
    pub fn buffer(&self) -> &Arc<ConsoleBuffer> {
        &self.buffer
    }

    /// Connects input to `serial`.
    pub fn connect(&self, serial: &Arc<Serial>) {
        *self.serial.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(serial));
    }

    /// Readable when there is new output, or room for input.
    #[must_use]
    pub fn output_wake(&self) -> &EventFd {
        &self.wake
    }

    /// Where input comes from.
    #[must_use]
    pub fn stdin(&self) -> RawFd {
        self.stdin.as_raw_fd()
    }

    /// Where output goes.
    #[must_use]
    pub fn stdout(&self) -> RawFd {
        self.output.as_fd().as_raw_fd()
    }

    fn readiness(fd: impl AsFd, events: PollFlags) -> bool {
        let mut fds = [PollFd::new(fd.as_fd(), events)];
        poll(&mut fds, PollTimeout::ZERO).is_ok_and(|n| n > 0)
    }

    /// Whether reading input, or changing how the terminal works, is allowed: a process in the background of a shell is
    /// stopped for either.
    fn may_touch_input(&self) -> bool {
        match nix::unistd::tcgetpgrp(&self.stdin) {
            Ok(foreground) => foreground == nix::unistd::getpgrp(),
            // Not a terminal, or not ours to be stopped by.
            Err(_) => true,
        }
    }

    /// Hands input to the guest, as much as it has room for. Without a guest it stays where it is.
    pub fn take_input(&mut self) {
        let serial = self.serial.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(serial) = serial else { return };
        loop {
            let taken = serial.enqueue(&self.pending);
            self.pending.drain(..taken);
            let more = self.may_touch_input() && Self::readiness(&self.stdin, PollFlags::POLLIN);
            if !self.pending.is_empty() || !more {
                return;
            }
            let mut bytes = [0; INPUT];
            // Not by std, whose buffer would hide input from `readiness`.
            match nix::unistd::read(&self.stdin, &mut bytes) {
                Ok(n) if n > 0 => self.pending.extend(&bytes[..n]),
                // The end of input, or no input: the guest simply gets none.
                _ => return,
            }
        }
    }

    /// Writes what output there is, until it is gone or its reader has no room.
    pub fn drain(&mut self) {
        let _ = self.wake.read();
        while Self::readiness(&self.output, PollFlags::POLLOUT) {
            let output = &mut self.output;
            match self.buffer.drain(CHUNK, |bytes| output.write(bytes)) {
                Ok(n) if n > 0 => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Ok(_) => return,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                // The reader is gone for good, or the disk is full: output is lost, the guest goes on.
                Err(_) => {
                    let _ = self.buffer.drain(BUFFER, |bytes| Ok(bytes.len()));
                    return;
                }
            }
        }
    }

    /// Writes what is left when the guest is no more; a reader that takes nothing for a while loses it.
    pub fn drain_at_end(&mut self) {
        const PATIENCE_MS: u16 = 200;
        for _ in 0..2 {
            self.drain();
            let mut fds = [PollFd::new(self.output.as_fd(), PollFlags::POLLOUT)];
            if self.buffer.is_empty() || !poll(&mut fds, PATIENCE_MS).is_ok_and(|n| n > 0) {
                return;
            }
        }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        if self.raw_terminal && self.stdin.lock().set_canon_mode().is_err() {
            log::warn!("the terminal could not be restored; `reset` does it");
        }
    }
}
