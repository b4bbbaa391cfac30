//! Which system calls each kind of thread may make: the lists that `build.rs` compiles into filters.
//!
//! An allow-list says what a thread *does*, not what it might like to: a test runs a microVM through its life under strace
//! and fails if a call is missing here, or stands here and is never made. What a life rarely shows says why it is needed.
//! This file is also part of the build script, so it names nothing of the crate.

/// A kind of thread, or a time in the life of one. Filters add up: a thread keeps those of whoever started it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The whole process, from its first request on: all that the driver does until its guest runs. Every other
    /// filter comes on top.
    Process,
    /// The driver once its guest runs: it makes no more threads, virtual machines or sockets.
    Driver,
    /// The driver of a guest whose devices may come and go: it also makes their threads, which keep this list.
    PciDriver,
    /// The API's thread.
    Api,
    /// A vCPU's thread.
    Vcpu,
    /// The thread of a virtio device.
    Device,
    /// The thread of the socket device.
    Vsock,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 7] =
        [Kind::Process, Kind::Driver, Kind::PciDriver, Kind::Api, Kind::Vcpu, Kind::Device, Kind::Vsock];

    /// What it does that not every thread does.
    #[must_use]
    pub fn own(self) -> &'static [Rule] {
        match self {
            Kind::Process => START,
            Kind::Driver => DRIVER,
            Kind::PciDriver => PLUG,
            Kind::Api => API,
            Kind::Vcpu => VCPU,
            Kind::Device => DEVICE,
            Kind::Vsock => VSOCK,
        }
    }

    /// All that it may do.
    #[must_use]
    pub fn rules(self) -> Vec<Rule> {
        let parts: &[&[Rule]] = match self {
            Kind::Process => &[EVERY_THREAD, VCPU, DEVICE, VSOCK, API, DRIVER, PLUG, START],
            Kind::PciDriver => &[EVERY_THREAD, DEVICE, DRIVER, PLUG],
            other => &[EVERY_THREAD, other.own()],
        };
        parts.concat()
    }
}

/// What an argument must be, with the call then allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arg {
    /// Anything.
    Any,
    /// The argument at this place, cut to 32 bits, is one of these.
    OneOf(u8, &'static [u32]),
    /// Of the argument at this place, none of these bits are set.
    Without(u8, u32),
    /// The argument at this place is an ioctl with one of these types and numbers (its low 16 bits).
    Ioctl(&'static [u32]),
    /// The first argument is this process, the one at place 2 one of these signals.
    OwnThread(&'static [u32]),
    /// Whatever it is, the answer is that there is no such call (ENOSYS), for there is another way.
    NoSuchCall,
}

/// A system call that is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its number.
    pub call: i64,
    /// With which argument.
    pub arg: Arg,
    /// Why it is needed, if an ordinary life does not show it.
    pub rarely: Option<&'static str>,
}

/// Stands for this process's id in a compiled filter, until it is installed.
pub const OWN_PID: u32 = 0x7975_6e21;

const fn any(call: i64) -> Rule {
    Rule { call, arg: Arg::Any, rarely: None }
}

const fn when(call: i64, arg: Arg) -> Rule {
    Rule { call, arg, rarely: None }
}

const fn rare(call: i64, why: &'static str) -> Rule {
    Rule { call, arg: Arg::Any, rarely: Some(why) }
}

const ALLOCATOR: &str = "the C library's allocator: as much as it has to give back or ask for";
const SLOW_CLOCK: &str = "without a clock source that user space can read";
const NEW_GLIBC: &str = "a build with glibc 2.42 or newer, which asks terminals for any speed";
const PANIC: &str = "a panic of ours, which aborts the process";

/// `KVMIO`, linux/kvm.h.
const KVM: u32 = 0xae00;
/// linux/if_tun.h.
const TUN: u32 = 0x5400;

const KVM_RUN: u32 = KVM | 0x80;
const KVM_IRQ_LINE: u32 = KVM | 0x61;
const KVM_SIGNAL_MSI: u32 = KVM | 0xa5;
const KVM_KVMCLOCK_CTRL: u32 = KVM | 0xad;
const KVM_GET_REGS: u32 = KVM | 0x81;
const KVM_IOEVENTFD: u32 = KVM | 0x79;
const TUNSETOFFLOAD: u32 = TUN | 0xd0;
const TUNSETQUEUE: u32 = TUN | 0xd9;
/// linux/vhost.h.
const VHOST: u32 = 0xaf00;
const TCGETS: u32 = 0x5401;
const TCSETS: u32 = 0x5402;
const TCGETS2: u32 = 0x542a;
const TCSETS2: u32 = 0x542b;
const TIOCGPGRP: u32 = 0x540f;
const FIONBIO: u32 = 0x5421;
const BLKDISCARD: u32 = 0x1277;

/// Signals that one thread of ours sends another: SIGABRT (of a panic), and SIGRTMIN as the C library counts, which ends
/// `KVM_RUN` (34 with glibc, 35 with musl).
const TO_OWN_THREADS: &[u32] = &[6, 34, 35];

/// Of Unix sockets only.
const UNIX: Arg = Arg::OneOf(0, &[libc::AF_UNIX as u32]);

/// Memory that can't be executed.
const NO_EXEC: Arg = Arg::Without(2, 4);

/// What any of our threads does: memory, locks, time, the log, its end.
pub const EVERY_THREAD: &[Rule] = &[
    any(libc::SYS_write),
    any(libc::SYS_futex),
    any(libc::SYS_close),
    rare(libc::SYS_clock_gettime, SLOW_CLOCK),
    Rule { call: libc::SYS_mmap, arg: NO_EXEC, rarely: Some(ALLOCATOR) },
    Rule { call: libc::SYS_mprotect, arg: NO_EXEC, rarely: Some(ALLOCATOR) },
    rare(libc::SYS_munmap, ALLOCATOR),
    rare(libc::SYS_poll, "a log that is a pipe of others: has it room?"),
    rare(libc::SYS_mremap, ALLOCATOR),
    Rule {
        call: libc::SYS_madvise,
        arg: Arg::OneOf(2, &[libc::MADV_DONTNEED as u32]),
        rarely: Some(ALLOCATOR),
    },
    rare(libc::SYS_brk, ALLOCATOR),
    any(libc::SYS_rt_sigprocmask),
    rare(libc::SYS_rt_sigreturn, "the end of a signal's handler"),
    rare(libc::SYS_restart_syscall, "a wait that the process was stopped in"),
    rare(libc::SYS_sched_yield, "a lock that spins"),
    rare(libc::SYS_exit, "the end of a thread"),
    rare(libc::SYS_exit_group, "the end of the process, also from the handler of a refused call"),
    Rule { call: libc::SYS_tgkill, arg: Arg::OwnThread(TO_OWN_THREADS), rarely: Some(PANIC) },
    rare(libc::SYS_gettid, PANIC),
    rare(libc::SYS_getpid, PANIC),
    // Not that of SIGSYS: a refused call ends the process.
    Rule { call: libc::SYS_rt_sigaction, arg: Arg::OneOf(0, TO_OWN_THREADS), rarely: Some(PANIC) },
    rare(libc::SYS_writev, PANIC),
    Rule {
        call: libc::SYS_fcntl,
        arg: Arg::OneOf(1, &[libc::F_GETFD as u32, libc::F_GETFL as u32]),
        rarely: Some("how a file was opened that is handed over; and what debug assertions look at"),
    },
    Rule {
        call: libc::SYS_prctl,
        arg: Arg::OneOf(0, &[PR_GET_NAME]),
        rarely: Some("whose call was refused, for the log"),
    },
];

/// A vCPU: its guest, the registers of its devices, interrupts of those that have no thread.
const VCPU: &[Rule] = &[
    when(libc::SYS_ioctl, Arg::Ioctl(&[KVM_RUN, KVM_IRQ_LINE, KVM_KVMCLOCK_CTRL, TUNSETOFFLOAD])),
    Rule {
        call: libc::SYS_ioctl,
        arg: Arg::Ioctl(&[KVM_SIGNAL_MSI, KVM_GET_REGS]),
        rarely: Some("a message about a device whose driver broke its rules; an internal error of KVM"),
    },
    // A driver that starts an interface of vhost-net over PCI, or masks its interrupts.
    when(libc::SYS_ioctl, Arg::Ioctl(IRQFD)),
];

/// A device: its kicks, its file or wire, its interrupts, threads for its queues.
const DEVICE: &[Rule] = &[
    any(libc::SYS_epoll_wait),
    any(libc::SYS_epoll_ctl),
    any(libc::SYS_preadv),
    any(libc::SYS_pwritev),
    any(libc::SYS_fdatasync),
    any(libc::SYS_fallocate),
    any(libc::SYS_readv),
    any(libc::SYS_writev),
    any(libc::SYS_getrandom),
    when(libc::SYS_ioctl, Arg::Ioctl(&[KVM_IRQ_LINE, KVM_SIGNAL_MSI, TUNSETQUEUE])),
    // The rings themselves are restricted to reads, writes and flushes.
    any(libc::SYS_io_uring_setup),
    any(libc::SYS_io_uring_register),
    any(libc::SYS_io_uring_enter),
    // A thread for each more queue of a disk, or pair of queues of an interface, that its driver uses; it inherits this list.
    any(libc::SYS_epoll_create1),
    any(libc::SYS_eventfd2),
    when(libc::SYS_clone3, Arg::NoSuchCall),
    when(libc::SYS_clone, Arg::OneOf(0, &[THREAD_OF_GLIBC])),
    Rule { call: libc::SYS_clone, arg: Arg::OneOf(0, &[THREAD_OF_MUSL]), rarely: Some("a build with musl") },
    any(libc::SYS_set_robust_list),
    any(libc::SYS_rseq),
    when(libc::SYS_prctl, Arg::OneOf(0, &[PR_SET_NAME])),
    when(libc::SYS_ioctl, Arg::Ioctl(VHOST_RINGS)),
    Rule {
        call: libc::SYS_ioctl,
        arg: Arg::Ioctl(IRQFD),
        rarely: Some("an interface of vhost-net over PCI that its driver lets go of"),
    },
    rare(libc::SYS_read, "what vhost-net says of a ring that it can't use"),
    Rule {
        call: libc::SYS_ioctl,
        arg: Arg::Ioctl(&[BLKDISCARD]),
        rarely: Some("a guest that discards, on a drive that is a block device"),
    },
];

/// ioctls of vhost-net while its guest runs, and of the TAP device when it is taken from vhost-net.
const VHOST_RINGS: &[u32] = &[
    VHOST,        // VHOST_SET_FEATURES
    VHOST | 0x03, // VHOST_SET_MEM_TABLE
    VHOST | 0x10, // VHOST_SET_VRING_NUM
    VHOST | 0x11, // VHOST_SET_VRING_ADDR
    VHOST | 0x12, // VHOST_SET_VRING_BASE, VHOST_GET_VRING_BASE
    VHOST | 0x20, // VHOST_SET_VRING_KICK
    VHOST | 0x21, // VHOST_SET_VRING_CALL
    VHOST | 0x22, // VHOST_SET_VRING_ERR
    VHOST | 0x30, // VHOST_NET_SET_BACKEND
    TUNSETOFFLOAD,
];
/// KVM_SET_GSI_ROUTING, KVM_IRQFD.
const IRQFD: &[u32] = &[KVM | 0x6a, KVM | 0x76];
/// ioctls of vhost-net when it is opened: VHOST_GET_FEATURES, VHOST_SET_OWNER, VHOST_SET_VRING_BUSYLOOP_TIMEOUT.
const VHOST_OPEN: &[u32] = &[VHOST, VHOST | 0x01, VHOST | 0x23];

/// The socket device: its kicks, connections from and to Unix sockets, its interrupts.
const VSOCK: &[Rule] = &[
    any(libc::SYS_epoll_wait),
    any(libc::SYS_epoll_ctl),
    when(libc::SYS_socket, UNIX),
    any(libc::SYS_connect),
    any(libc::SYS_accept4),
    any(libc::SYS_recvmsg),
    any(libc::SYS_writev),
    any(libc::SYS_recvfrom),
    any(libc::SYS_sendto),
    any(libc::SYS_shutdown),
    when(libc::SYS_ioctl, Arg::Ioctl(&[KVM_IRQ_LINE, KVM_SIGNAL_MSI])),
];

/// The API: connections, events, its socket's file at the end.
const API: &[Rule] = &[
    any(libc::SYS_epoll_wait),
    any(libc::SYS_epoll_ctl),
    any(libc::SYS_accept4),
    any(libc::SYS_recvmsg),
    any(libc::SYS_recvfrom),
    any(libc::SYS_sendto),
    any(libc::SYS_shutdown),
    any(libc::SYS_statx),
    any(libc::SYS_unlink),
    rare(libc::SYS_getsockopt, "--api-peer-uid"),
    rare(libc::SYS_read, "an eventfd that was written more often than it can count"),
    rare(libc::SYS_getrandom, "the seed of a hash map"),
];

/// The driver of a guest that runs: commands, signals, the console, files that a request names, sockets' files at the end.
const DRIVER: &[Rule] = &[
    any(libc::SYS_epoll_wait),
    rare(
        libc::SYS_epoll_ctl,
        "a guest from a configuration file: it runs before its driver looks out for anything",
    ),
    any(libc::SYS_poll),
    any(libc::SYS_read),
    any(libc::SYS_openat),
    any(libc::SYS_statx),
    any(libc::SYS_lseek),
    when(libc::SYS_fcntl, Arg::OneOf(1, &[libc::F_OFD_SETLK as u32])),
    Rule {
        call: libc::SYS_fcntl,
        arg: Arg::OneOf(1, &[libc::F_DUPFD_CLOEXEC as u32]),
        rarely: Some("an image that is handed over"),
    },
    Rule {
        call: libc::SYS_fcntl,
        arg: Arg::OneOf(1, &[libc::F_SETFL as u32]),
        rarely: Some("an image that is to be read and written past the page cache"),
    },
    Rule { call: libc::SYS_tgkill, arg: Arg::OwnThread(TO_OWN_THREADS), rarely: None },
    when(libc::SYS_ioctl, Arg::Ioctl(&[KVM_IRQ_LINE, TIOCGPGRP])),
    Rule {
        call: libc::SYS_ioctl,
        arg: Arg::Ioctl(&[TCGETS, TCSETS]),
        rarely: Some("standard input that is a terminal, given back as it was"),
    },
    Rule { call: libc::SYS_ioctl, arg: Arg::Ioctl(&[TCGETS2, TCSETS2]), rarely: Some(NEW_GLIBC) },
    rare(libc::SYS_getpgrp, "standard input that is a terminal"),
    any(libc::SYS_unlink),
    rare(libc::SYS_getrandom, "the seed of a hash map"),
];

/// What a driver does beside [`DRIVER`] and [`DEVICE`] when a device comes or goes: its thread confines itself further.
const PLUG: &[Rule] = &[
    when(libc::SYS_ioctl, Arg::Ioctl(VHOST_OPEN)),
    when(libc::SYS_ioctl, Arg::Ioctl(&[KVM_IOEVENTFD])),
    when(libc::SYS_ioctl, Arg::Ioctl(&[TUN | 0xca, TUN | 0xd8, TUNSETOFFLOAD])),
    Rule {
        call: libc::SYS_ioctl,
        arg: Arg::Ioctl(&[TUN | 0xd2]),
        rarely: Some("TUNGETIFF, of an interface that is handed over as a descriptor"),
    },
    Rule {
        call: libc::SYS_fcntl,
        arg: Arg::OneOf(1, &[libc::F_SETFL as u32]),
        rarely: Some("an interface that is handed over as a descriptor"),
    },
    when(libc::SYS_prctl, Arg::OneOf(0, &[PR_SET_NO_NEW_PRIVS])),
    when(libc::SYS_seccomp, Arg::OneOf(0, &[SECCOMP_SET_MODE_FILTER])),
    rare(libc::SYS_sched_setaffinity, "io_affinity: the threads of a device stay on their CPUs"),
];

/// What becomes of a process before its guest runs.
const START: &[Rule] = &[
    when(libc::SYS_socket, UNIX),
    any(libc::SYS_bind),
    any(libc::SYS_listen),
    any(libc::SYS_chmod),
    any(libc::SYS_rename),
    rare(libc::SYS_connect, "a socket's file that is there already: does anybody answer on it"),
    any(libc::SYS_epoll_create1),
    any(libc::SYS_eventfd2),
    any(libc::SYS_signalfd4),
    // Its flags lie in memory, where no filter can look; the C library then falls back to clone.
    when(libc::SYS_clone3, Arg::NoSuchCall),
    when(libc::SYS_clone, Arg::OneOf(0, &[THREAD_OF_GLIBC])),
    Rule { call: libc::SYS_clone, arg: Arg::OneOf(0, &[THREAD_OF_MUSL]), rarely: Some("a build with musl") },
    any(libc::SYS_set_robust_list),
    any(libc::SYS_rseq),
    when(libc::SYS_prctl, Arg::OneOf(0, &[PR_SET_NAME, PR_SET_NO_NEW_PRIVS])),
    when(libc::SYS_seccomp, Arg::OneOf(0, &[SECCOMP_SET_MODE_FILTER])),
    when(libc::SYS_fcntl, Arg::OneOf(1, &[libc::F_DUPFD_CLOEXEC as u32])),
    Rule {
        call: libc::SYS_fcntl,
        arg: Arg::OneOf(1, &[libc::F_SETFL as u32]),
        rarely: Some("an interface that is handed over as a descriptor"),
    },
    when(libc::SYS_ioctl, Arg::Ioctl(&[FIONBIO, TCGETS])),
    Rule { call: libc::SYS_ioctl, arg: Arg::Ioctl(&[TCGETS2]), rarely: Some(NEW_GLIBC) },
    any(libc::SYS_read),
    any(libc::SYS_getpid),
    any(libc::SYS_rt_sigaction),
    when(libc::SYS_madvise, Arg::OneOf(2, &[libc::MADV_HUGEPAGE as u32, libc::MADV_DONTDUMP as u32])),
    Rule {
        call: libc::SYS_madvise,
        arg: Arg::OneOf(2, &[libc::MADV_NOHUGEPAGE as u32]),
        rarely: Some("--no-thp"),
    },
    rare(libc::SYS_mlock2, "memory that is to be locked"),
    rare(libc::SYS_sched_getaffinity, "vcpu_affinity and io_affinity: are these CPUs allowed"),
    rare(libc::SYS_sched_setaffinity, "vcpu_affinity and io_affinity"),
    when(libc::SYS_ioctl, Arg::Ioctl(BUILD)),
    when(libc::SYS_ioctl, Arg::Ioctl(VHOST_OPEN)),
    when(libc::SYS_ioctl, Arg::Ioctl(&[TUN | 0xca, TUN | 0xd8])),
    Rule {
        call: libc::SYS_ioctl,
        arg: Arg::Ioctl(&[TUN | 0xd2]),
        rarely: Some("TUNGETIFF, of an interface that is handed over as a descriptor"),
    },
];

/// What `pthread_create` asks clone(2) for: VM, FS, FILES, SIGHAND, THREAD, SYSVSEM, SETTLS, PARENT_SETTID, CHILD_CLEARTID.
const THREAD_OF_GLIBC: u32 = 0x003d_0f00;
/// The same, and DETACHED.
const THREAD_OF_MUSL: u32 = 0x007d_0f00;
const PR_SET_NAME: u32 = 15;
const PR_GET_NAME: u32 = 16;
const PR_SET_NO_NEW_PRIVS: u32 = 38;
const SECCOMP_SET_MODE_FILTER: u32 = 1;

/// ioctls of KVM that build a machine.
const BUILD: &[u32] = &[
    KVM,        // KVM_GET_API_VERSION
    KVM | 0x01, // KVM_CREATE_VM
    KVM | 0x03, // KVM_CHECK_EXTENSION
    KVM | 0x04, // KVM_GET_VCPU_MMAP_SIZE
    KVM | 0x05, // KVM_GET_SUPPORTED_CPUID
    KVM | 0x41, // KVM_CREATE_VCPU
    KVM | 0x46, // KVM_SET_USER_MEMORY_REGION
    KVM | 0x47, // KVM_SET_TSS_ADDR
    KVM | 0x48, // KVM_SET_IDENTITY_MAP_ADDR
    KVM | 0x60, // KVM_CREATE_IRQCHIP
    KVM | 0x67, // KVM_REGISTER_COALESCED_MMIO
    KVM | 0x71, // KVM_REINJECT_CONTROL
    KVM | 0x77, // KVM_CREATE_PIT2
    KVM_IOEVENTFD,
    KVM | 0x82, // KVM_SET_REGS
    KVM | 0x83, // KVM_GET_SREGS
    KVM | 0x84, // KVM_SET_SREGS
    KVM | 0x89, // KVM_SET_MSRS
    KVM | 0x8d, // KVM_SET_FPU
    KVM | 0x8e, // KVM_GET_LAPIC
    KVM | 0x8f, // KVM_SET_LAPIC
    KVM | 0x90, // KVM_SET_CPUID2
    KVM | 0x99, // KVM_SET_MP_STATE
    KVM | 0xa3, // KVM_GET_TSC_KHZ
];
