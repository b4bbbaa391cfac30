//! What becomes of a refused system call: it is named in the log, and the process ends.

use std::io;

use super::filters;

/// Status of a process that made a system call it may not make; Firecracker's.
pub const EXIT_STATUS: u8 = 148;

/// Where `si_syscall` is in `siginfo_t` of SIGSYS (asm-generic/siginfo.h): after three ints, padding and a pointer.
const SI_SYSCALL: usize = 24;

/// The name of system call `number`, if it has one. Fit for a signal's handler.
#[must_use]
pub fn name_of(number: i64) -> Option<&'static str> {
    filters::names().split(' ').find_map(|entry| {
        let (id, name) = entry.split_once(':')?;
        (id.parse() == Ok(number)).then_some(name)
    })
}

/// Has refused calls handled. To be called before the first filter.
pub(super) fn install_handler() -> io::Result<()> {
    vmm_sys_util::signal::register_signal_handler(libc::SIGSYS, on_sigsys).map_err(io::Error::from)
}

extern "C" fn on_sigsys(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes the handler a whole siginfo_t, of 128 bytes, and for SIGSYS this is an int of it.
    let number = unsafe { *info.wrapping_byte_add(SI_SYSCALL).cast::<libc::c_int>() };
    let mut line = Line::default();
    line.push("seccomp: thread ");
    line.push_bytes(thread_name(&mut [0; 16]));
    line.push(" made a system call that it may not make: ");
    line.push(name_of(number.into()).unwrap_or("one without a name"));
    line.push(" (");
    line.push_number(number);
    line.push("); the process ends with status 148\n");
    let text = line.as_bytes();
    let mut log = libc::pollfd { fd: crate::logger::raw_fd(), events: libc::POLLOUT, revents: 0 };
    // SAFETY: one pollfd, which outlives the call; every filter lets it pass. The log may be a pipe that nobody reads: the
    // end does not wait for it.
    let has_room = unsafe { libc::poll(&raw mut log, 1, 0) } == 1;
    if has_room {
        // SAFETY: `text` is that long. The log may be another file by now, or none: then the line is lost, no more.
        unsafe { libc::write(log.fd, text.as_ptr().cast(), text.len()) };
    }
    // SAFETY: ends the process at once, without running anything that a signal's handler may not.
    unsafe { libc::_exit(EXIT_STATUS.into()) }
}

/// Not through std, which may allocate.
fn thread_name(into: &mut [u8; 16]) -> &[u8] {
    // SAFETY: PR_GET_NAME fills 16 bytes, which `into` has. Every filter lets it pass.
    unsafe { libc::prctl(libc::PR_GET_NAME, into.as_mut_ptr()) };
    let len = into.iter().position(|byte| *byte == 0).unwrap_or(into.len());
    &into[..len]
}

/// Text on the stack: a handler can't allocate.
struct Line {
    bytes: [u8; 192],
    len: usize,
}

impl Default for Line {
    fn default() -> Self {
        Self { bytes: [0; 192], len: 0 }
    }
}

impl Line {
    fn push(&mut self, text: &str) {
        self.push_bytes(text.as_bytes());
    }

    /// What does not fit is left out.
    fn push_bytes(&mut self, text: &[u8]) {
        let len = text.len().min(self.bytes.len() - self.len);
        self.bytes[self.len..][..len].copy_from_slice(&text[..len]);
        self.len += len;
    }

    fn push_number(&mut self, number: i32) {
        let mut digits = [0; 11];
        let mut at = digits.len();
        let mut left = number.unsigned_abs();
        loop {
            at -= 1;
            digits[at] = b'0' + u8::try_from(left % 10).expect("a digit");
            left /= 10;
            if left == 0 {
                break;
            }
        }
        if number < 0 {
            self.push("-");
        }
        self.push_bytes(&digits[at..]);
    }

    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}
