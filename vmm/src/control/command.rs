//! What can be asked of a microVM, and how the question and its answer travel between threads.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc;

use tokio::sync::oneshot;

use super::Denial;
use crate::spec::{
    BootSource, Drive, DrivePatch, Entropy, Logger, MachineConfig, MachineConfigPatch, Metrics,
    NetworkInterface, NetworkInterfacePatch, RateLimiter, Serial, Version, VmConfig, VmInfo, Vsock,
};

/// One thing to configure before the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Configure {
    /// `PUT /boot-source`.
    BootSource(BootSource),
    /// `PUT` and `PATCH /machine-config`.
    Machine(MachineConfigPatch),
    /// `PUT /drives/{id}`.
    Drive(Drive),
    /// `PUT /network-interfaces/{id}`.
    NetworkInterface(NetworkInterface),
    /// `PUT /entropy`.
    Entropy(Entropy),
    /// `PUT /vsock`.
    Vsock(Vsock),
    /// `PUT /serial`.
    Serial(Serial),
    /// `PUT /rate-limiter-groups/{id}`.
    RateLimiterGroup(String, RateLimiter),
}

/// A device that is to go while the guest runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unplug {
    /// `DELETE /drives/{id}`.
    Drive(String),
    /// `DELETE /network-interfaces/{id}`.
    NetworkInterface(String),
}

impl Unplug {
    /// Its name.
    #[must_use]
    pub fn id(&self) -> &str {
        let (Self::Drive(id) | Self::NetworkInterface(id)) = self;
        id
    }
}

/// Everything that can be asked of a microVM; each value is checked as far as that goes without the microVM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// `GET /`.
    GetInfo,
    /// `GET /version`.
    GetVersion,
    /// `GET /vm/config`.
    GetVmConfig,
    /// `GET /machine-config`.
    GetMachineConfig,
    /// `GET /rate-limiter-groups/{id}`.
    GetRateLimiterGroup(String),
    /// Change what will be built at the start; a drive, an interface or a group of rate limits, also after it.
    Configure(Configure),
    /// `PUT /logger`.
    PutLogger(Logger),
    /// `PUT /metrics`.
    PutMetrics(Metrics),
    /// `InstanceStart`.
    Start,
    /// `PATCH /vm` to `Paused`.
    Pause,
    /// `PATCH /vm` to `Resumed`.
    Resume,
    /// `PressPowerButton`.
    PressPowerButton,
    /// `SendCtrlAltDel`.
    SendCtrlAltDel,
    /// `FlushMetrics`.
    FlushMetrics,
    /// `PATCH /drives/{id}`.
    PatchDrive(DrivePatch),
    /// `PATCH /network-interfaces/{id}`.
    PatchNetworkInterface(NetworkInterfacePatch),
    /// `PATCH /entropy`.
    PatchEntropy(RateLimiter),
    /// `PATCH /vsock`.
    PatchVsock(RateLimiter),
    /// `PATCH /rate-limiter-groups/{id}`.
    PatchRateLimiterGroup(String, RateLimiter),
    /// `DELETE /rate-limiter-groups/{id}`.
    DeleteRateLimiterGroup(String),
    /// Take a device away from a guest that runs; answered when it has gone, or the guest keeps it.
    Unplug(Unplug),
}

/// What a command that was carried out has to show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing: it is done.
    Done,
    /// The answer to [`Command::GetInfo`].
    Info(VmInfo),
    /// The answer to [`Command::GetVersion`].
    Version(Version),
    /// The answer to [`Command::GetVmConfig`].
    VmConfig(Box<VmConfig>),
    /// The answer to [`Command::GetMachineConfig`].
    MachineConfig(MachineConfig),
    /// The answer to [`Command::GetRateLimiterGroup`].
    RateLimiter(RateLimiter),
}

/// How a command ended.
pub type Answer = Result<Outcome, Denial>;

/// Where the answer to one command goes. Dropped without an answer, it answers [`Denial::Gone`].
pub struct ReplySlot(oneshot::Sender<Answer>);

impl ReplySlot {
    /// Sends the answer. Whoever asked may have gone away meanwhile; that is fine.
    pub fn answer(self, answer: Answer) {
        let _ = self.0.send(answer);
    }
}

impl fmt::Debug for ReplySlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ReplySlot")
    }
}

/// A command on its way, with the place for its answer.
#[derive(Debug)]
pub struct Envelope {
    /// What is asked.
    pub command: Command,
    /// Open files that came with it.
    pub received: Vec<OwnedFd>,
    /// Where the answer goes.
    pub reply: ReplySlot,
}

/// The asking end of the channel to a driver thread.
#[derive(Clone)]
pub struct CommandSender {
    envelopes: mpsc::Sender<Envelope>,
    wake: Arc<dyn Fn() + Send + Sync>,
}

impl fmt::Debug for CommandSender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CommandSender")
    }
}

impl CommandSender {
    fn send(&self, command: Command, received: Vec<OwnedFd>) -> oneshot::Receiver<Answer> {
        let (slot, answer) = oneshot::channel();
        // If the driver is gone the envelope comes back and is dropped here: the slot then answers "gone".
        if self.envelopes.send(Envelope { command, received, reply: ReplySlot(slot) }).is_ok() {
            (self.wake)();
        }
        answer
    }

    /// Asks, with open files that the command may name, and waits for the answer without holding up other tasks of this
    /// thread.
    pub async fn ask(&self, command: Command, received: Vec<OwnedFd>) -> Answer {
        self.send(command, received).await.unwrap_or(Err(Denial::Gone))
    }

    /// Asks, and blocks this thread until the answer is there. Not for use within an async runtime.
    pub fn ask_blocking(&self, command: Command) -> Answer {
        self.send(command, Vec::new()).blocking_recv().unwrap_or(Err(Denial::Gone))
    }
}

/// A channel to a driver thread. `wake` is called after each command was queued: it makes the driver look at the
/// receiver (typically it writes an eventfd in the driver's epoll set), from the thread that asks, and must not block.
pub fn channel(wake: impl Fn() + Send + Sync + 'static) -> (CommandSender, mpsc::Receiver<Envelope>) {
    let (envelopes, received) = mpsc::channel();
    (CommandSender { envelopes, wake: Arc::new(wake) }, received)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    use super::*;

    #[test]
    fn an_answer_finds_its_question_and_the_driver_is_woken_once_per_command() {
        let woken = Arc::new(AtomicUsize::new(0));
        let counter = woken.clone();
        let (sender, received) = channel(move || {
            counter.fetch_add(1, Ordering::SeqCst);
        });
        let driver = thread::spawn(move || {
            for envelope in received {
                let answer = if envelope.command == Command::Start {
                    Err(Denial::AfterStart)
                } else {
                    Ok(Outcome::Done)
                };
                envelope.reply.answer(answer);
            }
        });
        assert_eq!(sender.ask_blocking(Command::Pause), Ok(Outcome::Done));
        assert_eq!(sender.ask_blocking(Command::Start), Err(Denial::AfterStart));
        assert_eq!(woken.load(Ordering::SeqCst), 2);
        drop(sender);
        driver.join().unwrap();
    }

    #[test]
    fn a_dropped_slot_and_a_driver_that_is_no_more_answer_gone() {
        let (sender, received) = channel(|| ());
        let driver = thread::spawn(move || drop(received.recv()));
        assert_eq!(sender.ask_blocking(Command::GetInfo), Err(Denial::Gone));
        driver.join().unwrap();
        assert_eq!(sender.ask_blocking(Command::GetInfo), Err(Denial::Gone));
    }
}
