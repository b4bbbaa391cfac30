//! What an attacker tries who runs code in a VMM.

use std::ffi::CString;

use libc::{c_long, syscall};
use vmm::sandbox::seccomp::rules::Kind;

/// Where the attacker is, and what there is to be had.
pub struct Target {
    /// What the thread is.
    pub kind: Kind,
    /// Whether the kernel has Landlock, without which the API's thread, which removes its socket, may remove any file that its
    /// user may.
    pub landlock: bool,
    /// A neighbour's process, as seen from outside.
    pub pid: i32,
    /// A file outside.
    pub secret: CString,
    /// The socket of a neighbour's API.
    pub socket: CString,
    /// A neighbour's TAP device.
    pub tap: CString,
}

/// One attempt: what the system call returned, below zero if it was in vain.
pub struct Attack {
    /// What it would be.
    pub name: &'static str,
    /// Kinds of threads that may do this, because it is their work.
    pub work_of: &'static [Kind],
    /// Tries it.
    pub attempt: fn(&Target) -> c_long,
}

/// `syscall(2)` with whatever arguments.
macro_rules! call {
    ($number:ident $(, $argument:expr)* $(,)?) => {
        // SAFETY: in a process made for this, which has nothing to lose; pointers point to what outlives the call.
        unsafe { syscall(libc::$number $(, $argument)*) }
    };
}

macro_rules! attacks {
    ($($name:ident $([$($kind:ident)+])? = $attempt:expr;)*) => {
        /// All of them.
        pub const ATTACKS: &[Attack] = &[$(Attack {
            name: stringify!($name),
            work_of: &[$($(Kind::$kind),+)?],
            attempt: $attempt,
        }),*];
    };
}

fn open(path: &std::ffi::CStr, flags: i32) -> c_long {
    call!(SYS_openat, libc::AT_FDCWD, path.as_ptr(), flags, 0o600)
}

fn open_of_neighbour(target: &Target, name: &str) -> c_long {
    open(&CString::new(format!("/proc/{}/{name}", target.pid)).unwrap(), libc::O_RDONLY)
}

/// The file outside by way of more `..` than there are directories.
fn open_upwards(target: &Target) -> c_long {
    let path = format!("{}{}", "../".repeat(40), target.secret.to_str().unwrap());
    open(&CString::new(path).unwrap(), libc::O_RDONLY)
}

/// A descriptor that was left open and leads elsewhere: a directory.
fn find_directory(_: &Target) -> c_long {
    for descriptor in 0..1024 {
        // An ioctl that directories answer with ENOTTY and other open files too tells nothing; opening "." below does.
        let found = call!(SYS_openat, descriptor, c".".as_ptr(), libc::O_PATH | libc::O_DIRECTORY, 0);
        if found >= 0 {
            return found;
        }
    }
    -1
}

/// A virtual machine of the attacker's own.
fn new_vm(_: &Target) -> c_long {
    let kvm = open(c"/dev/kvm", libc::O_RDWR);
    call!(SYS_ioctl, if kvm < 0 { 0 } else { kvm }, 0xae01, 0)
}

/// `TUNSETIFF` with a name.
fn tap(name: &std::ffi::CStr) -> c_long {
    let tun = open(c"/dev/net/tun", libc::O_RDWR);
    let mut request = [0u8; 40];
    request[..name.to_bytes().len()].copy_from_slice(name.to_bytes());
    request[16..18].copy_from_slice(&0x1002u16.to_le_bytes()); // IFF_TAP | IFF_NO_PI
    call!(SYS_ioctl, if tun < 0 { 0 } else { tun }, 0x4004_54ca_u64, request.as_ptr())
}

fn connect(path: &std::ffi::CStr, first: usize) -> c_long {
    let mut address = [0u8; 110];
    address[..2].copy_from_slice(&1u16.to_le_bytes());
    let path = path.to_bytes();
    let len = path.len().min(107 - first);
    address[2 + first..][..len].copy_from_slice(&path[..len]);
    let socket = call!(SYS_socket, libc::AF_UNIX, libc::SOCK_STREAM, 0);
    call!(SYS_connect, if socket < 0 { 0 } else { socket }, address.as_ptr(), 2 + first + len)
}

fn execute_memory(_: &Target) -> c_long {
    let file = call!(SYS_memfd_create, c"x".as_ptr(), 0);
    let arguments = [std::ptr::null::<libc::c_char>()];
    call!(
        SYS_execveat,
        if file < 0 { 0 } else { file },
        c"".as_ptr(),
        arguments.as_ptr(),
        arguments.as_ptr(),
        libc::AT_EMPTY_PATH
    )
}

fn map(protection: i32) -> c_long {
    call!(SYS_mmap, 0, 4096, protection, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
}

fn make_executable(_: &Target) -> c_long {
    let page = map(libc::PROT_READ | libc::PROT_WRITE);
    call!(SYS_mprotect, page, 4096, libc::PROT_READ | libc::PROT_EXEC)
}

fn execute(path: &std::ffi::CStr) -> c_long {
    let arguments = [std::ptr::null::<libc::c_char>()];
    call!(SYS_execve, path.as_ptr(), arguments.as_ptr(), arguments.as_ptr())
}

const READ: i32 = libc::O_RDONLY;

attacks! {
    // Files.
    a_file_outside = |t| open(&t.secret, READ);
    a_file_outside_by_dots = open_upwards;
    a_file_outside_by_handle = |_| call!(SYS_open_by_handle_at, libc::AT_FDCWD, [0u64; 4].as_ptr(), READ);
    a_directory_that_was_left_open = find_directory;
    the_hosts_passwords = |_| open(c"/etc/shadow", READ);
    the_hosts_memory = |_| open(c"/dev/mem", READ);
    the_hosts_devices = |_| open(c"/sys/devices", READ);
    the_hosts_processes = |_| open(c"/proc/1/environ", READ);
    its_own_program_changed = |_| open(c"/attacker", libc::O_WRONLY);
    a_file_of_its_users_removed = |t| if t.landlock { call!(SYS_unlink, c"/users".as_ptr()) } else { -1 };
    a_file_of_its_users_renamed = |t| if t.landlock { call!(SYS_rename, c"/users".as_ptr(), c"/x".as_ptr()) } else { -1 };
    another_root = |_| call!(SYS_chroot, c"/run".as_ptr());
    a_device_node = |_| call!(SYS_mknodat, libc::AT_FDCWD, c"/run/x".as_ptr(), libc::S_IFBLK | 0o600, 0x801);
    a_directory = |_| call!(SYS_mkdir, c"/run/x".as_ptr(), 0o700);
    a_link = |_| call!(SYS_link, c"/attacker".as_ptr(), c"/run/x".as_ptr());
    a_symbolic_link = |_| call!(SYS_symlink, c"/".as_ptr(), c"/run/x".as_ptr());
    a_mount = |_| call!(SYS_mount, c"none".as_ptr(), c"/run".as_ptr(), c"tmpfs".as_ptr(), 0, 0);
    a_mount_undone = |_| call!(SYS_umount2, c"/".as_ptr(), libc::MNT_DETACH);
    a_new_kind_of_mount = |_| call!(SYS_fsopen, c"tmpfs".as_ptr(), 0);
    the_old_root = |_| call!(SYS_pivot_root, c"/".as_ptr(), c"/run".as_ptr());
    // Processes.
    a_neighbour_killed = |t| call!(SYS_kill, t.pid, libc::SIGKILL);
    a_neighbours_thread_killed = |t| call!(SYS_tgkill, t.pid, t.pid, libc::SIGABRT);
    everybody_killed = |_| call!(SYS_kill, -1, libc::SIGTERM);
    a_signal_queued = |t| call!(SYS_rt_sigqueueinfo, t.pid, libc::SIGTERM, [0u64; 16].as_ptr());
    a_neighbour_traced = |t| call!(SYS_ptrace, 0x4206, t.pid, 0, 0); // PTRACE_SEIZE
    a_neighbours_memory = |t| call!(SYS_process_vm_readv, t.pid, [0u64; 2].as_ptr(), 1, [0u64; 2].as_ptr(), 1, 0);
    a_neighbours_memory_as_a_file = |t| open_of_neighbour(t, "mem");
    a_neighbours_descriptors = |t| open_of_neighbour(t, "fd/3");
    a_neighbours_root = |t| open_of_neighbour(t, "root/run");
    a_neighbour_held = |t| call!(SYS_pidfd_open, t.pid, 0);
    a_neighbours_priority = |t| call!(SYS_setpriority, 0, t.pid, 19);
    a_neighbours_limits = |t| call!(SYS_prlimit64, t.pid, 7, 0, [0u64; 2].as_ptr());
    a_process = |_| call!(SYS_clone, libc::SIGCHLD, 0, 0, 0, 0);
    a_process_by_fork = |_| call!(SYS_fork);
    a_process_by_clone3 = |_| call!(SYS_clone3, [0u64; 11].as_ptr(), 88);
    a_program = |_| execute(c"/attacker");
    a_program_in_memory = execute_memory;
    code_in_memory = |_| map(libc::PROT_READ | libc::PROT_EXEC);
    memory_made_code = make_executable;
    a_namespace_left = |_| call!(SYS_setns, 0, 0);
    a_namespace_entered = |_| call!(SYS_unshare, libc::CLONE_NEWUSER);
    refusals_without_an_end [Process] = |_| call!(SYS_rt_sigaction, libc::SIGSYS, 0, 0, 8);
    // Privileges.
    root = |_| call!(SYS_setuid, 0);
    roots_group = |_| call!(SYS_setresgid, 0, 0, 0);
    capabilities = |_| call!(SYS_capset, [0x2008_0522u32, 0].as_ptr(), [u32::MAX; 6].as_ptr());
    dumps_allowed = |_| call!(SYS_prctl, libc::PR_SET_DUMPABLE, 1, 0, 0, 0);
    another_personality = |_| call!(SYS_personality, 0x0040_0000);
    ports = |_| call!(SYS_iopl, 3);
    a_module = |_| call!(SYS_init_module, 0, 0, c"".as_ptr());
    another_kernel = |_| call!(SYS_kexec_load, 0, 0, 0, 0);
    a_reboot = |_| call!(SYS_reboot, 0xfee1_dead_u32, 0x2812_1969, 0, 0);
    the_clock = |_| call!(SYS_clock_settime, 0, [0i64; 2].as_ptr());
    another_name = |_| call!(SYS_sethostname, c"x".as_ptr(), 1);
    a_key = |_| call!(SYS_add_key, c"user".as_ptr(), c"x".as_ptr(), c"y".as_ptr(), 1, -3);
    a_keyring = |_| call!(SYS_keyctl, 0, -3, 1);
    a_key_asked_for = |_| call!(SYS_request_key, c"user".as_ptr(), c"x".as_ptr(), 0, -3);
    a_bpf_program = |_| call!(SYS_bpf, 0, [0u64; 16].as_ptr(), 128);
    performance_counters = |_| call!(SYS_perf_event_open, [0u64; 16].as_ptr(), 0, -1, -1, 0);
    page_faults = |_| call!(SYS_userfaultfd, 0);
    // A thread whose work is a ring of its own is named in `work_of` here, for what it may do with it; what it may not (operations
    // that are not on the ring's list, its restrictions lifted, a second ring) is then to be tried on that ring.
    an_io_uring = |_| call!(SYS_io_uring_setup, 8, [0u64; 16].as_ptr());
    an_operation_on_an_io_uring = |_| call!(SYS_io_uring_enter, 0, 1, 0, 0, 0, 0);
    an_io_uring_changed = |_| call!(SYS_io_uring_register, 0, 11, 0, 0); // IORING_REGISTER_RESTRICTIONS
    // Networks and devices.
    a_tcp_socket = |_| call!(SYS_socket, libc::AF_INET, libc::SOCK_STREAM, 0);
    a_raw_socket = |_| call!(SYS_socket, libc::AF_INET, libc::SOCK_RAW, 1);
    a_packet_socket = |_| call!(SYS_socket, libc::AF_PACKET, libc::SOCK_RAW, 3);
    a_netlink_socket = |_| call!(SYS_socket, libc::AF_NETLINK, libc::SOCK_RAW, 0);
    a_vsock = |_| call!(SYS_socket, libc::AF_VSOCK, libc::SOCK_STREAM, 0);
    a_crypto_socket = |_| call!(SYS_socket, libc::AF_ALG, libc::SOCK_SEQPACKET, 0);
    a_neighbours_api = |t| connect(&t.socket, 0);
    a_neighbours_abstract_socket = |_| connect(c"yun-escape", 1);
    a_neighbours_tap = |t| tap(&t.tap);
    a_tap_of_its_own = |_| tap(c"yunescape1");
    a_virtual_machine [Process] = new_vm;
    keystrokes_of_the_operator = |_| call!(SYS_ioctl, 0, 0x5412, c"x".as_ptr()); // TIOCSTI
}
