//! A source of randomness: virtio entropy device (virtio 1.2 §5.4).
//!
//! The guest publishes buffers; the device fills them from the host kernel's generator. One queue, no configuration.

use std::sync::Arc;

use super::queue::{Chain, F_COMMON, Ring, RingError, advance, copy_in, resolve};
use super::{ConfigSpace, DeviceKind, Granted, Idle, Running, Served, StartFailed};
use crate::clock::monotonic_ns;
use crate::irq::Interrupt;
use crate::limiter::{Group, Limiter, LimiterSpec};
use crate::log_limit::LogLimit;
use crate::mem::{Ram, VolatileSlice};
use crate::metrics::Counter;

/// Entries of the one queue.
pub const QUEUE_SIZE: u16 = 256;
/// Bytes a request gets at most: the used length tells the driver, which asks again for more. Far above what Linux asks for.
pub const REQUEST_BYTES_MAX: usize = 64 * 1024;
/// Requests served before the thread looks at its other sources: half a megabyte, a millisecond of the host's generator.
const REQUESTS_PER_BATCH: u32 = 8;
/// Bytes taken from the host at a time.
const CHUNK_BYTES: usize = 4096;

/// Counters of one entropy device since it was made.
#[derive(Debug, Default)]
pub struct RngMetrics {
    /// Bytes handed to the guest.
    pub bytes: Counter,
    /// Requests answered.
    pub requests: Counter,
    /// Requests that the host failed, answered with fewer bytes or none.
    pub host_failures: Counter,
    /// Times the queue was served.
    pub queue_events: Counter,
    /// Times a rate limit held the queue.
    pub throttled: Counter,
    /// Times the driver broke the queue and the device asked to be reset.
    pub broken: Counter,
}

struct Shared {
    limits: Group,
    metrics: RngMetrics,
}

/// Changes and observes an entropy device from any thread, running or not.
#[derive(Clone)]
pub struct RngHandle(Arc<Shared>);

impl RngHandle {
    /// Puts these rate limits, with full buckets, in place of the present ones. A queue that waits for old ones does not know:
    /// kick it.
    pub fn set_limits(&self, limits: LimiterSpec) {
        self.0.limits.set(&limits, monotonic_ns());
    }

    /// What the device did so far.
    #[must_use]
    pub fn metrics(&self) -> &RngMetrics {
        &self.0.metrics
    }
}

/// An entropy device that no driver is using.
pub struct Rng {
    shared: Arc<Shared>,
    config: Arc<ConfigSpace>,
    limiter: Limiter,
    log: LogLimit,
}

impl Rng {
    /// An entropy device under these rate limits.
    #[must_use]
    pub fn new(limits: &LimiterSpec) -> Self {
        let limits = Group::new(limits, monotonic_ns());
        Self {
            limiter: Limiter::sharing(&limits, None),
            shared: Arc::new(Shared { limits, metrics: RngMetrics::default() }),
            config: ConfigSpace::new(Vec::new()),
            log: LogLimit::default(),
        }
    }

    /// A handle for the control thread.
    #[must_use]
    pub fn handle(&self) -> RngHandle {
        RngHandle(Arc::clone(&self.shared))
    }
}

impl Idle for Rng {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Entropy
    }

    fn offered(&self) -> u64 {
        F_COMMON
    }

    fn queue_sizes_max(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn config(&self) -> &Arc<ConfigSpace> {
        &self.config
    }

    fn start(self: Box<Self>, granted: Granted) -> Result<Box<dyn Running>, StartFailed> {
        let ring =
            granted.queues.into_iter().next().flatten().map(|queue| Ring::new(queue, granted.features));
        let chain = Chain::with_room_for(ring.as_ref().map_or(0, Ring::size));
        Ok(Box::new(Live {
            rng: *self,
            ram: granted.ram,
            interrupt: granted.interrupt,
            ring,
            chain,
            broken: false,
        }))
    }
}

struct Live {
    rng: Rng,
    ram: Ram,
    interrupt: Arc<dyn Interrupt>,
    ring: Option<Ring>,
    chain: Chain,
    broken: bool,
}

impl Live {
    fn batch(&mut self, ring: &mut Ring) -> Result<Served, RingError> {
        let ram = &*self.ram;
        let metrics = &self.rng.shared.metrics;
        let mut slices = Vec::new();
        ring.suppress_kicks(ram)?;
        for _ in 0..REQUESTS_PER_BATCH {
            if !ring.pop(ram, &mut self.chain)? {
                if ring.rearm(ram)? {
                    ring.suppress_kicks(ram)?;
                    continue;
                }
                return Ok(Served::Drained);
            }
            let wanted = (self.chain.writable_bytes() as usize).min(REQUEST_BYTES_MAX);
            if let Err(wait) = self.rng.limiter.check_now(wanted as u64) {
                ring.undo_pop();
                metrics.throttled.inc();
                return Ok(Served::After(wait));
            }
            self.rng.limiter.charge(wanted as u64);
            slices.clear();
            resolve(ram, self.chain.writable(), &mut slices)?;
            let filled = fill(&mut slices, wanted).unwrap_or_else(|(filled, error)| {
                metrics.host_failures.inc();
                if let Some(muted) = self.rng.log.admit() {
                    log::error!(
                        "entropy: the host's generator failed: {error} ({muted} lines left out before)"
                    );
                }
                filled
            });
            metrics.requests.inc();
            metrics.bytes.add(filled as u64);
            ring.finish(ram, self.chain.head(), u32::try_from(filled).expect("at most 64 KiB"))?;
        }
        Ok(Served::More)
    }
}

/// Fills the first `wanted` bytes of `slices`; those filled before the host failed, with why.
fn fill(mut slices: &mut [VolatileSlice], wanted: usize) -> Result<usize, (usize, getrandom::Error)> {
    let mut chunk = [0; CHUNK_BYTES];
    let mut done = 0;
    while done < wanted {
        let part = &mut chunk[..(wanted - done).min(CHUNK_BYTES)];
        getrandom::fill(part).map_err(|error| (done, error))?;
        let n = copy_in(slices, 0, part);
        debug_assert_eq!(n, part.len(), "wanted is at most what the slices hold");
        done += n;
        slices = advance(slices, n);
    }
    Ok(done)
}

impl Running for Live {
    fn serve(&mut self, queue: u16) -> Served {
        if self.broken {
            return Served::Broken;
        }
        if queue != 0 {
            return Served::Drained;
        }
        let Some(mut ring) = self.ring.take() else { return Served::Drained };
        self.rng.shared.metrics.queue_events.inc();
        let result = self.batch(&mut ring);
        let told = ring.wants_interrupt(&self.ram).map(|wanted| {
            if wanted {
                self.interrupt.queue(0);
            }
        });
        self.ring = Some(ring);
        result.and_then(|served| told.map(|()| served)).unwrap_or_else(|error| {
            self.broken = true;
            self.rng.shared.metrics.broken.inc();
            if let Some(muted) = self.rng.log.admit() {
                log::warn!("entropy: the driver broke its queue: {error} ({muted} lines left out before)");
            }
            self.interrupt.needs_reset();
            Served::Broken
        })
    }

    fn stop(self: Box<Self>) -> Box<dyn Idle> {
        Box::new(self.rng)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limiter::BucketSpec;
    use crate::testing::irq::CountingIrq;
    use crate::testing::queue::{Driver, give, take};
    use crate::testing::ram;
    use crate::virtio::queue::F_EVENT_IDX;

    const DATA: u64 = 0x4000;

    fn rig(limits: &LimiterSpec) -> (Ram, Driver, RngHandle, Box<dyn Running>) {
        let ram = ram::flat(0x4_0000);
        let driver = Driver::new(&ram, 0x1000, 16);
        let rng = Rng::new(limits);
        let handle = rng.handle();
        let granted = Granted {
            ram: Ram::clone(&ram),
            features: rng.offered() & !F_EVENT_IDX,
            queues: vec![Some(driver.queue())],
            interrupt: CountingIrq::new(),
        };
        let Ok(device) = Box::new(rng).start(granted) else { panic!() };
        (ram, driver, handle, device)
    }

    #[test]
    fn a_buffer_is_filled_wholly_and_not_past_its_end() {
        let (ram, mut driver, handle, mut device) = rig(&LimiterSpec::default());
        driver.send(&[take(DATA, 100), take(DATA + 200, 5000)]);
        assert_eq!(device.serve(0), Served::Drained);
        assert_eq!(driver.used(), Some((0, 5100)));
        let zeros = |at, len| ram::read(&ram, at, len).iter().filter(|&&byte| byte == 0).count();
        assert!(zeros(DATA, 100) < 20 && zeros(DATA + 200, 5000) < 200);
        assert_eq!((zeros(DATA + 100, 100), zeros(DATA + 5200, 100)), (100, 100));
        assert_eq!((handle.metrics().bytes.get(), handle.metrics().requests.get()), (5100, 1));
    }

    #[test]
    fn a_huge_request_gets_64_kib() {
        let (ram, mut driver, _, mut device) = rig(&LimiterSpec::default());
        driver.send(&[take(DATA, 0x2_0000)]);
        assert_eq!(device.serve(0), Served::Drained);
        assert_eq!(driver.used(), Some((0, 65_536)));
        assert_eq!(ram::read(&ram, DATA + 65_536, 64), [0; 64]);
    }

    #[test]
    fn a_request_with_nothing_to_fill_is_given_back_empty() {
        let (_, mut driver, _, mut device) = rig(&LimiterSpec::default());
        driver.send(&[give(DATA, 16)]);
        assert_eq!(device.serve(0), Served::Drained);
        assert_eq!(driver.used(), Some((0, 0)));
    }

    #[test]
    fn a_batch_is_bounded_and_a_limit_holds() {
        let (_, mut driver, _, mut device) = rig(&LimiterSpec::default());
        for _ in 0..9 {
            driver.send(&[take(DATA, 16)]);
        }
        assert_eq!([device.serve(0), device.serve(0)], [Served::More, Served::Drained]);
        let hour = BucketSpec { size: 16, one_time_burst: 0, refill_time_ms: 3_600_000 };
        let (_, mut driver, handle, mut device) = rig(&LimiterSpec { bytes: Some(hour), ops: None });
        driver.send(&[take(DATA, 16)]);
        driver.send(&[take(DATA, 16)]);
        assert!(matches!(device.serve(0), Served::After(_)));
        assert_eq!((driver.used(), driver.used()), (Some((0, 16)), None));
        handle.set_limits(LimiterSpec::default());
        assert_eq!(device.serve(0), Served::Drained);
        assert_eq!(driver.used(), Some((1, 16)));
    }

    #[test]
    fn a_buffer_outside_ram_breaks_the_queue() {
        let (_, mut driver, handle, mut device) = rig(&LimiterSpec::default());
        driver.send(&[take(u64::MAX, 16)]);
        assert_eq!([device.serve(0), device.serve(0)], [Served::Broken, Served::Broken]);
        assert_eq!(handle.metrics().broken.get(), 1);
    }
}
