//! KVM: the virtual machine, its memory slots, its interrupts and its vCPUs; and the ioctls of TAP, vhost and block devices. One of
//! the rooms with `unsafe`.

pub mod blkdev;
mod irqfd;
pub mod kick;
mod line;
pub mod tun;
pub mod vcpu;
pub mod vhost;
pub mod vm;

/// A KVM operation that failed: which, and what the kernel said.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// `/dev/kvm` can't be opened or is not what it should be.
    #[error("Failed to open KVM (/dev/kvm): {0}")]
    Open(kvm_ioctls::Error),
    /// The API version is not the one that has been stable since 2007.
    #[error("KVM speaks API version {0}; 12 is needed")]
    Version(i32),
    /// KVM lacks something that every machine here needs.
    #[error("KVM lacks {0}")]
    Missing(&'static str),
    /// An ioctl failed.
    #[error("{operation}: {source}")]
    Ioctl {
        /// The ioctl's name.
        operation: &'static str,
        /// What the kernel said.
        source: kvm_ioctls::Error,
    },
    /// A range of guest RAM is not mapped in this process.
    #[error("guest memory at {0:#x} is not mapped")]
    NotMapped(u64),
    /// The CPUID or MSR table has more entries than KVM takes.
    #[error("too many {0} entries for KVM")]
    TooMany(&'static str),
    /// KVM took only some of the MSRs.
    #[error("KVM refused MSR {0:#x}")]
    MsrRefused(u32),
}

/// Names the operation of a failed ioctl.
fn ioctl(operation: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> KvmError {
    move |source| KvmError::Ioctl { operation, source }
}
