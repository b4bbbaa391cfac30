//! The counters of a machine's devices under the names of Firecracker's metrics, and ours where it has none.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use devices::serial::ConsoleBuffer;
use devices::virtio::block::{BlockHandle, Op};
use devices::virtio::rng::RngHandle;
use devices::virtio::vsock::VsockHandle;

use super::Machine;
use super::devices::{Device, NetControl};
use super::plug::Which;
use crate::metrics::{Detail, Figure, Group, MetricKind, MetricSource, Metrics, Reading};

fn counters(each: &mut dyn FnMut(Reading), readings: &[(&'static str, u64)]) {
    for &(name, value) in readings {
        each(Reading { name, kind: MetricKind::Counter, value });
    }
}

struct Block(BlockHandle);

impl MetricSource for Block {
    fn read(&self, each: &mut dyn FnMut(Reading)) {
        let m = self.0.metrics();
        let readings = [
            ("read_bytes", m.read_bytes.get()),
            ("write_bytes", m.write_bytes.get()),
            ("read_count", m.read_count.get()),
            ("write_count", m.write_count.get()),
            ("flush_count", m.flush_count.get()),
            ("invalid_reqs_count", m.refused.get()),
            ("discard_count", m.erase_count.get()),
            ("discard_bytes", m.erase_bytes.get()),
            ("execute_fails", m.failures()),
            ("queue_event_count", m.queue_events.get()),
            ("no_avail_buffer", m.empty_queue_events.get()),
            ("rate_limiter_throttled_events", m.throttled.get()),
            ("interrupt_count", m.interrupts.get()),
            ("needs_reset_count", m.broken.get()),
            ("update_count", m.swaps.get()),
        ];
        counters(each, &readings);
    }

    /// How long each kind of request took, on all queues; and what each queue did.
    fn details(&self, each: &mut dyn FnMut(Detail)) {
        let together = self.0.metrics();
        for op in Op::ALL {
            let (word, aggregate) = match op {
                Op::Read => ("read", Some("read_agg")),
                Op::Write => ("write", Some("write_agg")),
                Op::Flush => ("flush", None),
                Op::Erase => ("discard", None),
            };
            let tally = Box::new(together.time(op).tally());
            let label = ("op", word.to_owned());
            each(Detail { name: "request_duration", label, figure: Figure::Time { tally, aggregate } });
        }
        for (index, queue) in self.0.queues().iter().enumerate() {
            let counts = [
                ("queue_requests", queue.requests()),
                ("queue_bytes", queue.read_bytes.get() + queue.write_bytes.get()),
                ("queue_interrupts", queue.interrupts.get()),
            ];
            for (name, count) in counts {
                each(Detail { name, label: ("queue", index.to_string()), figure: Figure::Count(count) });
            }
        }
    }
}

struct Net(NetControl);

impl MetricSource for Net {
    fn read(&self, each: &mut dyn FnMut(Reading)) {
        let m = self.0.net.metrics();
        let (in_kernel, fallbacks) =
            self.0.vhost.as_ref().map_or((false, 0), |vhost| (vhost.in_kernel(), vhost.fallbacks()));
        let readings = [
            ("rx_bytes_count", m.rx_bytes.get()),
            ("rx_packets_count", m.rx_frames.get()),
            ("rx_fails", m.rx_failures.get()),
            ("rx_dropped_count", m.rx_dropped.get()),
            ("no_rx_avail_buffer", m.rx_no_buffers.get()),
            ("rx_rate_limiter_throttled", m.rx_throttled.get()),
            ("rx_queue_event_count", m.rx_queue_events.get()),
            ("rx_tap_event_count", m.rx_wire_events.get()),
            ("rx_interrupt_count", m.rx_interrupts.get()),
            ("tx_bytes_count", m.tx_bytes.get()),
            ("tx_packets_count", m.tx_frames.get()),
            ("tx_fails", m.tx_failures.get()),
            ("tx_malformed_frames", m.tx_dropped.get()),
            ("tx_busy_count", m.tx_busy.get()),
            ("tx_rate_limiter_throttled", m.tx_throttled.get()),
            ("tx_queue_event_count", m.tx_queue_events.get()),
            ("tx_interrupt_count", m.tx_interrupts.get()),
            ("ctrl_queue_event_count", m.control_events.get()),
            ("ctrl_refused_count", m.control_refused.get()),
            ("announce_count", m.announcements.get()),
            ("needs_reset_count", m.broken.get()),
            ("vhost_fallback_count", fallbacks),
        ];
        counters(each, &readings);
        each(Reading { name: "vhost_active", kind: MetricKind::Gauge, value: in_kernel.into() });
    }
}

struct Entropy(RngHandle);

impl MetricSource for Entropy {
    fn read(&self, each: &mut dyn FnMut(Reading)) {
        let m = self.0.metrics();
        let readings = [
            ("entropy_bytes", m.bytes.get()),
            ("entropy_event_count", m.queue_events.get()),
            ("entropy_event_fails", m.broken.get()),
            ("host_rng_fails", m.host_failures.get()),
            ("entropy_rate_limiter_throttled", m.throttled.get()),
        ];
        counters(each, &readings);
    }
}

struct Vsock(VsockHandle);

impl MetricSource for Vsock {
    fn read(&self, each: &mut dyn FnMut(Reading)) {
        let m = self.0.metrics();
        let readings = [
            ("rx_queue_event_count", m.rx_queue_events.get()),
            ("tx_queue_event_count", m.tx_queue_events.get()),
            ("ev_queue_event_count", m.event_queue_events.get()),
            ("muxer_event_count", m.host_events.get()),
            ("rx_bytes_count", m.rx_bytes.get()),
            ("tx_bytes_count", m.tx_bytes.get()),
            ("rx_packets_count", m.rx_packets.get()),
            ("tx_packets_count", m.tx_packets.get()),
            ("rx_interrupt_count", m.rx_interrupts.get()),
            ("tx_interrupt_count", m.tx_interrupts.get()),
            ("rx_rate_limiter_throttled", m.rx_throttled.get()),
            ("tx_rate_limiter_throttled", m.tx_throttled.get()),
            ("no_rx_avail_buffer", m.rx_no_buffers.get()),
            ("conns_added", m.added.get()),
            ("conns_killed", m.killed.get()),
            ("conns_removed", m.removed.get()),
            ("conns_turned_away", m.turned_away.get()),
            ("rx_read_fails", m.rx_read_failures.get()),
            ("tx_write_fails", m.tx_write_failures.get()),
            ("tx_flush_fails", m.tx_flush_failures.get()),
            ("tx_refused_count", m.tx_refused.get()),
            ("tx_stall_count", m.tx_stalls.get()),
            ("needs_reset_count", m.broken.get()),
        ];
        counters(each, &readings);
    }
}

struct Uart(Arc<ConsoleBuffer>);

impl MetricSource for Uart {
    fn read(&self, each: &mut dyn FnMut(Reading)) {
        let (written, dropped) = self.0.counts();
        counters(each, &[("write_count", written), ("missed_write_count", dropped)]);
    }
}

struct Exits(Arc<AtomicU64>);

impl MetricSource for Exits {
    fn read(&self, each: &mut dyn FnMut(Reading)) {
        counters(each, &[("unclaimed_access_count", self.0.load(Ordering::Relaxed))]);
    }
}

fn register_drive(drive: &Device<BlockHandle>, metrics: &Metrics) {
    metrics.register(Group::instance("block", &drive.id), Arc::new(Block(drive.handle.clone())));
}

fn register_net(net: &Device<NetControl>, metrics: &Metrics) {
    metrics.register(Group::instance("net", &net.id), Arc::new(Net(net.handle.clone())));
}

impl Machine {
    /// Has `metrics` count what a device does that has come while the guest runs.
    pub fn register_metrics_of(&self, which: Which, metrics: &Metrics) {
        match which {
            Which::Drive(index) => {
                self.drives.get(index).into_iter().for_each(|d| register_drive(d, metrics))
            }
            Which::Net(index) => self.nets.get(index).into_iter().for_each(|d| register_net(d, metrics)),
        }
    }

    /// Has `metrics` count what the machine's devices do, in place of an earlier machine's.
    pub fn register_metrics(&self, metrics: &Metrics) {
        self.drives.iter().for_each(|drive| register_drive(drive, metrics));
        self.nets.iter().for_each(|net| register_net(net, metrics));
        if let Some(entropy) = &self.entropy {
            metrics.register(Group::single("entropy"), Arc::new(Entropy(entropy.handle.clone())));
        }
        if let Some(vsock) = &self.vsock {
            metrics.register(Group::single("vsock"), Arc::new(Vsock(vsock.handle.clone())));
        }
        metrics.register(Group::single("uart"), Arc::new(Uart(Arc::clone(&self.console))));
        metrics.register(Group::single("vcpu"), Arc::new(Exits(Arc::clone(&self.unclaimed))));
    }
}
