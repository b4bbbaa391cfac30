//! The attacker: a process that was jailed as a VMM is, and confines itself as one does. Then it tries.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use vmm::sandbox::seccomp::Seccomp;
use vmm::sandbox::seccomp::rules::Kind;
use vmm::sandbox::{harden, landlock};

use super::attacks::{ATTACKS, Target};

/// System calls on x86-64 that any kernel so far has.
const CALLS: i64 = 470;
/// `uretprobe` and `uprobe`, which newer kernels let past every filter; from anywhere but a probe's own code they end in
/// SIGILL, and with it the process.
const PROBES: [i64; 2] = [335, 336];
/// What tells the x32 ABI's calls apart.
const X32: i64 = 0x4000_0000;

/// Whether the last call was refused by a filter.
static TRAPPED: AtomicBool = AtomicBool::new(false);

/// In place of the VMM's handler, which would end the process: notes it, and makes the call answer EPERM.
extern "C" fn note(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    TRAPPED.store(true, Ordering::SeqCst);
    let context = context.cast::<libc::ucontext_t>();
    // SAFETY: the kernel passes a whole context, which the thread goes on with.
    unsafe { (&mut (*context).uc_mcontext.gregs)[libc::REG_RAX as usize] = -i64::from(libc::EPERM) };
}

/// Tries everything as a thread of `kind`, and prints a line for each attempt.
pub fn run(kind: Kind, mut target: Target) {
    harden::harden().unwrap();
    std::fs::write("/users", "precious").unwrap();
    target.landlock = landlock::restrict(&[Path::new("/run")]).unwrap();
    Seccomp::On.confine(Kind::Process).unwrap();
    vmm_sys_util::signal::register_signal_handler(libc::SIGSYS, note).unwrap();
    if kind == Kind::Process {
        return attack(&target);
    }
    let thread = std::thread::spawn(move || {
        Seccomp::On.confine(kind).unwrap();
        attack(&target);
    });
    thread.join().unwrap();
}

fn attack(target: &Target) {
    // All at the end: what the thread may print by is not what is tested.
    let mut report = String::new();
    for attack in ATTACKS.iter().filter(|attack| !attack.work_of.contains(&target.kind)) {
        TRAPPED.store(false, Ordering::SeqCst);
        let result = (attack.attempt)(target);
        let error = std::io::Error::last_os_error();
        let how = match (result, TRAPPED.load(Ordering::SeqCst)) {
            (_, true) => "denied by a filter".to_owned(),
            (0.., false) => format!("ESCAPED: it returned {result}"),
            (_, false) => format!("denied: {error}"),
        };
        report += &format!("{}: {how}\n", attack.name);
    }
    let listed: BTreeSet<i64> = target.kind.rules().iter().map(|rule| rule.call).collect();
    let unlisted = (0..CALLS).filter(|number| !listed.contains(number) && !PROBES.contains(number));
    let mut passed = Vec::new();
    for number in unlisted.chain((0..CALLS).map(|number| number | X32)) {
        TRAPPED.store(false, Ordering::SeqCst);
        // SAFETY: a filter answers; if not, this process may do as it likes.
        unsafe { libc::syscall(number, 0, 0, 0, 0, 0, 0) };
        if !TRAPPED.load(Ordering::SeqCst) {
            passed.push(number);
        }
    }
    let how =
        if passed.is_empty() { "denied by a filter".to_owned() } else { format!("ESCAPED: {passed:?}") };
    println!("{report}every_call_that_is_not_on_the_list: {how}\nend");
}

/// `KEYCTL_SEARCH` of keyctl(2).
const KEYCTL_SEARCH: libc::c_int = 10;

/// A key in the session keyring of whoever started the jailer. Searched for without any filter: what is tested is the jail.
pub fn find_key() {
    // SAFETY: the strings outlive the call.
    let found = unsafe {
        libc::syscall(libc::SYS_keyctl, KEYCTL_SEARCH, SESSION_KEYRING, c"user".as_ptr(), KEY.as_ptr(), 0)
    };
    let error = std::io::Error::last_os_error();
    println!("{}", if found < 0 { format!("denied: {error}") } else { "ESCAPED".to_owned() });
}

/// What [`find_key`] looks for: gives this process a session keyring with that key in it.
pub fn leave_key() {
    const JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: the call takes no name here.
    let keyring = unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, std::ptr::null::<u8>()) };
    // SAFETY: the strings outlive the call, and the value is one byte long.
    let key = unsafe {
        libc::syscall(libc::SYS_add_key, c"user".as_ptr(), KEY.as_ptr(), c"x".as_ptr(), 1, SESSION_KEYRING)
    };
    if keyring < 0 || key < 0 {
        eprintln!("skipped: this kernel has no keys: {}", std::io::Error::last_os_error());
    }
}

/// `KEY_SPEC_SESSION_KEYRING`.
const SESSION_KEYRING: libc::c_int = -3;
const KEY: &std::ffi::CStr = c"yun-escape";

/// A system call of 32-bit programs, with numbers of its own: `getpid` here is `mkdir` there. Does not return.
pub fn int_80() {
    Seccomp::On.confine(Kind::Process).unwrap();
    // SAFETY: the filter ends the process.
    unsafe { std::arch::asm!("int 0x80", inout("eax") 20 => _, options(nostack)) };
    println!("ESCAPED");
}

/// What the battery says on the command line: KIND PID SECRET SOCKET TAP.
pub fn parse(words: &[String]) -> Option<(Kind, Target)> {
    let [kind, pid, secret, socket, tap] = words else { return None };
    let kind = Kind::ALL.into_iter().find(|known| format!("{known:?}") == *kind)?;
    let text = |word: &String| CString::new(word.as_str()).ok();
    let target = Target {
        kind,
        landlock: false,
        pid: pid.parse().ok()?,
        secret: text(secret)?,
        socket: text(socket)?,
        tap: text(tap)?,
    };
    Some((kind, target))
}
