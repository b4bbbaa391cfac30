//! A virtio device that does nothing but remember what happened to it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::irq::Interrupt;
use crate::virtio::spec::feature;
use crate::virtio::{ConfigSpace, DeviceKind, Granted, Idle, Running, Served, StartFailed};

/// The features it offers, all of which a driver may accept.
pub const FEATURES: u64 = feature::VERSION_1 | feature::EVENT_IDX | feature::INDIRECT_DESC | 1 << 5;
/// The sizes of its queues.
pub const QUEUE_SIZES: [u16; 2] = [256, 16];
/// Its configuration space.
pub const CONFIG: &[u8] = b"0123456789ab";

/// What happened to a device, and what is to happen.
#[derive(Default)]
pub struct History {
    /// Starts that succeeded.
    pub starts: u32,
    /// Stops.
    pub stops: u32,
    /// The queues served, in order.
    pub served: Vec<u16>,
    /// The features granted last.
    pub features: u64,
    /// The sizes of the queues granted last.
    pub sizes: Vec<Option<u16>>,
    /// The interrupt granted last.
    pub interrupt: Option<Arc<dyn Interrupt>>,
    /// The next start fails.
    pub refuse_start: bool,
    /// The next batch finds that the driver broke the rules.
    pub break_next: bool,
}

/// Looks into a device from outside.
#[derive(Clone, Default)]
pub struct Probe(Arc<Mutex<History>>);

impl Probe {
    /// The device's history; the device waits while it is held.
    pub fn history(&self) -> MutexGuard<'_, History> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The device, idle.
pub struct FakeDevice {
    probe: Probe,
    config: Arc<ConfigSpace>,
}

impl FakeDevice {
    /// A device, the way to look into it, and its configuration space.
    #[must_use]
    pub fn new() -> (Box<Self>, Probe, Arc<ConfigSpace>) {
        let probe = Probe::default();
        let config = ConfigSpace::new(CONFIG.to_vec());
        (Box::new(Self { probe: probe.clone(), config: Arc::clone(&config) }), probe, config)
    }
}

impl Idle for FakeDevice {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Entropy
    }

    fn offered(&self) -> u64 {
        FEATURES
    }

    fn queue_sizes_max(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn config(&self) -> &Arc<ConfigSpace> {
        &self.config
    }

    fn start(self: Box<Self>, granted: Granted) -> Result<Box<dyn Running>, StartFailed> {
        use virtio_queue::QueueT;

        let probe = self.probe.clone();
        let mut history = probe.history();
        if std::mem::take(&mut history.refuse_start) {
            return Err(StartFailed { device: self, reason: "told to refuse".into() });
        }
        history.starts += 1;
        history.features = granted.features;
        history.sizes = granted.queues.iter().map(|queue| queue.as_ref().map(QueueT::size)).collect();
        history.interrupt = Some(Arc::clone(&granted.interrupt));
        Ok(Box::new(FakeRunning { device: self, interrupt: granted.interrupt }))
    }
}

/// The device, running: each batch raises the queue's interrupt.
struct FakeRunning {
    device: Box<FakeDevice>,
    interrupt: Arc<dyn Interrupt>,
}

impl Running for FakeRunning {
    fn serve(&mut self, queue: u16) -> Served {
        let mut history = self.device.probe.history();
        history.served.push(queue);
        if std::mem::take(&mut history.break_next) {
            self.interrupt.needs_reset();
            return Served::Broken;
        }
        self.interrupt.queue(queue);
        Served::Drained
    }

    fn stop(self: Box<Self>) -> Box<dyn Idle> {
        let mut history = self.device.probe.history();
        history.stops += 1;
        history.interrupt = None;
        drop(history);
        self.device
    }
}
