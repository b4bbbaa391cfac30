//! Why a guest ended, and what its process says of it.

use crate::vcpu::Ended;

/// Why a guest ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// It switched itself off (ACPI S5).
    PowerOff,
    /// It reset itself: by the ACPI reset register or the keyboard controller.
    Reboot,
    /// Its kernel panicked and said so by pvpanic.
    Panicked,
    /// A triple fault: its kernel died without a word, or reset itself the hard way.
    TripleFault,
    /// The VMM was told to end, and the guest was stopped with or without its consent.
    Stopped {
        /// The guest switched itself off when asked to.
        clean: bool,
    },
    /// The VMM was told to end before there was a guest.
    NeverStarted,
    /// KVM could not go on; what it said.
    KvmFailed(String),
}

impl Reason {
    /// The exit status of the process.
    ///
    /// 0: off, rebooted or stopped as asked. 1: the VMM failed. 3: stopped, but the guest did not heed the power button.
    /// 10: the guest's kernel panicked. 11: triple fault.
    #[must_use]
    pub fn exit_status(&self) -> u8 {
        match self {
            Reason::PowerOff | Reason::Reboot | Reason::NeverStarted | Reason::Stopped { clean: true } => 0,
            Reason::KvmFailed(_) => 1,
            Reason::Stopped { clean: false } => 3,
            Reason::Panicked => 10,
            Reason::TripleFault => 11,
        }
    }

    /// The word for it in events.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Reason::PowerOff => "poweroff",
            Reason::Reboot => "reboot",
            Reason::Panicked => "panic",
            Reason::TripleFault => "triple_fault",
            Reason::Stopped { clean: true } => "stopped",
            Reason::Stopped { clean: false } => "killed",
            Reason::NeverStarted => "never_started",
            Reason::KvmFailed(_) => "kvm_failed",
        }
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Reason::PowerOff => f.write_str("the guest switched itself off"),
            Reason::Reboot => f.write_str("the guest rebooted"),
            Reason::Panicked => f.write_str("the guest's kernel panicked"),
            Reason::TripleFault => f.write_str("a vCPU took a triple fault"),
            Reason::Stopped { clean: true } => f.write_str("told to end; the guest switched itself off"),
            Reason::Stopped { clean: false } => {
                f.write_str("told to end; the guest did not switch itself off in time")
            }
            Reason::NeverStarted => f.write_str("told to end before a guest was started"),
            Reason::KvmFailed(what) => write!(f, "KVM can't run the guest any further: {what}"),
        }
    }
}

impl From<Ended> for Reason {
    fn from(ended: Ended) -> Self {
        match ended {
            Ended::TripleFault => Reason::TripleFault,
            Ended::KvmFailed(what) => Reason::KvmFailed(what),
        }
    }
}
