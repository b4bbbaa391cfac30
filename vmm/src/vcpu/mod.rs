//! The threads of the vCPUs: each runs its guest until told to pause or stop, or until the guest ends.
//!
//! ```text
//!   Running ──pause──> Paused ──resume──> Running      any ──stop──> Stopped (the thread ends)
//! ```
//! The one who changes the state kicks the threads out of the guest and waits until each has parked.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use crate::host::cpus::stay_on;
use crate::kvm::kick;
use crate::kvm::vcpu::{Accesses, Exit, Vcpu};
use crate::sandbox::seccomp::Seccomp;
use crate::sandbox::seccomp::rules::Kind;

const RUN: u8 = 0;
const PAUSE: u8 = 1;
const STOP: u8 = 2;

/// Why a vCPU's guest ended by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// Triple fault.
    TripleFault,
    /// KVM gave up; what it said.
    KvmFailed(String),
}

/// What the threads look at between two runs of the guest.
struct Gate {
    wanted: AtomicU8,
    parked: Mutex<usize>,
    changed: Condvar,
}

impl Gate {
    fn parked(&self) -> MutexGuard<'_, usize> {
        self.parked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits while a pause is wanted.
    fn park(&self) {
        let mut parked = self.parked();
        *parked += 1;
        self.changed.notify_all();
        while self.wanted.load(Ordering::Acquire) == PAUSE {
            parked = self.changed.wait(parked).unwrap_or_else(PoisonError::into_inner);
        }
        *parked -= 1;
    }
}

/// The running vCPUs of a machine. Stops them when dropped.
pub struct Vcpus {
    gate: Arc<Gate>,
    threads: Vec<JoinHandle<()>>,
}

impl Vcpus {
    /// Starts a thread for each of `vcpus`, paused, confined as `seccomp` says, each on its CPU of `cpus` if it has one. `ended` is called, once for each vCPU at most, when a guest ends.
    ///
    /// # Errors
    /// If a thread could not be started; those that were are stopped again.
    pub fn start<A, F>(
        vcpus: Vec<Vcpu>,
        accesses: Arc<A>,
        seccomp: Seccomp,
        cpus: &[u16],
        ended: F,
    ) -> std::io::Result<Self>
    where
        A: Accesses + Send + Sync + 'static,
        F: Fn(Ended) + Clone + Send + 'static,
    {
        let gate =
            Arc::new(Gate { wanted: AtomicU8::new(PAUSE), parked: Mutex::new(0), changed: Condvar::new() });
        let mut all = Self { gate, threads: Vec::with_capacity(vcpus.len()) };
        for mut vcpu in vcpus {
            let (gate, accesses, ended) = (Arc::clone(&all.gate), Arc::clone(&accesses), ended.clone());
            let cpu = cpus.get(usize::from(vcpu.id())).copied();
            let thread = std::thread::Builder::new()
                .name(format!("yun_vcpu {}", vcpu.id()))
                .stack_size(super::THREAD_STACK)
                .spawn(move || {
                    stay_on(cpu.as_slice());
                    seccomp.confine_or_abort(Kind::Vcpu);
                    if let Some(reason) = run(&mut vcpu, &*accesses, &gate) {
                        ended(reason);
                    }
                })?;
            all.threads.push(thread);
        }
        all.wait_parked();
        Ok(all)
    }

    /// Lets the guest run.
    pub fn resume(&self) {
        let _parked = self.gate.parked();
        self.gate.wanted.store(RUN, Ordering::Release);
        self.gate.changed.notify_all();
    }

    /// Holds the guest; when this returns no vCPU is in it.
    pub fn pause(&self) {
        self.gate.wanted.store(PAUSE, Ordering::Release);
        self.kick();
        self.wait_parked();
    }

    fn kick(&self) {
        use std::os::unix::thread::JoinHandleExt;
        self.threads.iter().filter(|t| !t.is_finished()).for_each(|t| kick::kick(t.as_pthread_t()));
    }

    fn wait_parked(&self) {
        let mut parked = self.gate.parked();
        while *parked < self.threads.iter().filter(|t| !t.is_finished()).count() {
            // A thread whose guest ended never parks; the time-out is for looking at that again.
            let again = std::time::Duration::from_millis(10);
            (parked, _) =
                self.gate.changed.wait_timeout(parked, again).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Vcpus {
    fn drop(&mut self) {
        {
            let _parked = self.gate.parked();
            self.gate.wanted.store(STOP, Ordering::Release);
            self.gate.changed.notify_all();
        }
        self.kick();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                log::error!("a vCPU thread panicked");
            }
        }
    }
}

/// Runs one vCPU until it is stopped (`None`) or its guest ends.
fn run(vcpu: &mut Vcpu, accesses: &impl Accesses, gate: &Gate) -> Option<Ended> {
    let _kickable = vcpu.kickable();
    loop {
        match gate.wanted.load(Ordering::Acquire) {
            RUN => {}
            PAUSE => {
                gate.park();
                vcpu.was_paused();
                continue;
            }
            _ => return None,
        }
        match vcpu.run(accesses) {
            Exit::Continue => {}
            Exit::Shutdown => return Some(Ended::TripleFault),
            Exit::Broken(what) => return Some(Ended::KvmFailed(what)),
        }
    }
}
