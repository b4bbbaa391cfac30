//! Getting a vCPU out of the guest.
//!
//! A signal ends `KVM_RUN` with EINTR; one that comes just before `KVM_RUN` would be lost, so its handler also sets the
//! vCPU's `immediate_exit`, which makes the next `KVM_RUN` return at once. The handler finds it through a thread-local
//! pointer that only the vCPU's own thread sets and clears.

use std::cell::Cell;
use std::sync::Once;

use kvm_ioctls::VcpuFd;
use std::os::unix::thread::RawPthread;

thread_local! {
    /// `immediate_exit` of the vCPU that this thread runs; null on other threads. No destructor: safe in a handler.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(std::ptr::null_mut()) };
}

extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let flag = IMMEDIATE_EXIT.get();
    if !flag.is_null() {
        // SAFETY: not null, so `Kickable` of this very thread is alive, and with it the kvm_run mapping.
        unsafe { flag.write_volatile(1) };
    }
}

fn signal() -> libc::c_int {
    vmm_sys_util::signal::SIGRTMIN()
}

/// Marks this thread as running `vcpu`, until dropped.
pub struct Kickable(());

impl Kickable {
    /// For the current thread, which keeps `vcpu` alive longer than this.
    ///
    /// # Panics
    /// If the signal's handler can't be installed: the number is valid.
    #[must_use]
    pub fn new(vcpu: &mut VcpuFd) -> Self {
        static HANDLER: Once = Once::new();
        HANDLER.call_once(|| {
            vmm_sys_util::signal::register_signal_handler(signal(), on_kick)
                .expect("SIGRTMIN takes a handler");
        });
        IMMEDIATE_EXIT.set(&raw mut vcpu.get_kvm_run().immediate_exit);
        Self(())
    }
}

impl Drop for Kickable {
    fn drop(&mut self) {
        IMMEDIATE_EXIT.set(std::ptr::null_mut());
    }
}

/// Makes the vCPU of `thread` leave the guest, or not enter it once. Harmless to a thread that runs none.
pub fn kick(thread: RawPthread) {
    // SAFETY: the caller joins the thread only after it stopped kicking it, so the handle is valid; the handler touches
    // nothing but that thread's own flag.
    let result = unsafe { libc::pthread_kill(thread, signal()) };
    if result != 0 {
        log::error!("a vCPU thread could not be signalled: error {result}");
    }
}
