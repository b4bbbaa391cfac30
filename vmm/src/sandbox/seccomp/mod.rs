//! seccomp: each thread may make the system calls it needs, and no others.
//!
//! ```text
//!   start ── PROCESS ──────────────┬────────────── DRIVER ──> the guest runs   (main thread)
//!                                  ├── API                                     yun_api
//!                                  ├── VCPU                                    yun_vcpu N
//!                                  ├── DEVICE                                  yun_<device>
//!                                  └── VSOCK                                   yun_vsock
//! ```
//! Filters only ever add up. A refused call is not made: the kernel raises SIGSYS instead, whose handler names the call in
//! the log and ends the process with [`EXIT_STATUS`].

pub mod rules;
mod trap;

use std::io;

use rules::{Kind, OWN_PID};

pub use trap::{EXIT_STATUS, name_of};

/// code, jt, jf and k of `struct sock_filter` (linux/filter.h).
type Instruction = (u16, u8, u8, u32);

mod filters {
    use super::Instruction;
    include!(concat!(env!("OUT_DIR"), "/filters.rs"));

    pub(super) fn of(kind: super::Kind) -> &'static [Instruction] {
        match kind {
            super::Kind::Process => &PROCESS,
            super::Kind::Driver => &DRIVER,
            super::Kind::PciDriver => &PCIDRIVER,
            super::Kind::Api => &API,
            super::Kind::Vcpu => &VCPU,
            super::Kind::Device => &DEVICE,
            super::Kind::Vsock => &VSOCK,
        }
    }

    pub(super) fn names() -> &'static str {
        NAMES
    }
}

/// Whether filters are installed at all. Copied to whoever starts threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seccomp {
    /// Yes.
    On,
    /// No: somebody said `--no-seccomp`.
    Off,
}

impl Seccomp {
    /// Confines the calling thread, and every thread it will start, to what `kind` may do; for good.
    ///
    /// # Errors
    /// What the kernel said; the thread is as it was then, and must not go on.
    pub fn confine(self, kind: Kind) -> io::Result<()> {
        if self == Self::Off {
            return Ok(());
        }
        if kind == Kind::Process {
            trap::install_handler()?;
        }
        install(filters::of(kind))
    }

    /// The same where nothing can be said of it but in the log: a thread that must not go on unconfined ends the process.
    pub fn confine_or_abort(self, kind: Kind) {
        if let Err(error) = self.confine(kind) {
            log::error!("a thread ({kind:?}) can't be confined by seccomp: {error}; the process ends");
            std::process::abort();
        }
    }
}

fn install(program: &[Instruction]) -> io::Result<()> {
    let pid = std::process::id();
    let program: Vec<_> = program
        .iter()
        .map(|&(code, jt, jf, k)| seccompiler::sock_filter {
            code,
            jt,
            jf,
            k: if k == OWN_PID { pid } else { k },
        })
        .collect();
    seccompiler::apply_filter(&program).map_err(|error| match error {
        seccompiler::Error::Prctl(source) | seccompiler::Error::Seccomp(source) => source,
        other => io::Error::other(other),
    })
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
