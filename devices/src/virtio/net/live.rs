//! A network card in use: two directions that take turns.

use std::os::fd::RawFd;
use std::sync::Arc;

use super::rx::Rx;
use super::tx::Tx;
use super::{F_MRG_RXBUF, Net, RX_QUEUE, TX_QUEUE, offloads};
use crate::irq::Interrupt;
use crate::mem::Ram;
use crate::virtio::queue::{Ring, RingError};
use crate::virtio::{Granted, Idle, Running, Served};

/// Frames moved in one direction before the other gets its turn.
pub(super) const FRAMES_PER_BATCH: u32 = 64;
/// Bytes moved before the driver is told within a batch.
pub(super) const BYTES_PER_INTERRUPT: usize = 256 * 1024;

/// The running card: an idle one, and what the driver granted.
pub(super) struct Live {
    net: Net,
    ram: Ram,
    interrupt: Arc<dyn Interrupt>,
    rx: Option<Rx>,
    tx: Option<Tx>,
    broken: bool,
}

impl Live {
    pub(super) fn new(net: Net, granted: Granted) -> Self {
        let Granted { ram, features, queues, interrupt } = granted;
        let mut rings = queues.into_iter().map(|queue| queue.map(|queue| Ring::new(queue, features)));
        let offloads = offloads(features);
        let large_frames = offloads.tso4 || offloads.tso6 || offloads.ufo;
        let mergeable = features & F_MRG_RXBUF != 0;
        let rx = rings.next().flatten().map(|ring| Rx::new(ring, mergeable, large_frames));
        let tx = rings.next().flatten().map(Tx::new);
        Self { net, ram, interrupt, rx, tx, broken: false }
    }

    fn serve_rx(&mut self) -> Served {
        let Some(rx) = &mut self.rx else { return Served::Drained };
        let metrics = Arc::clone(&self.net.shared);
        let tell = || {
            self.interrupt.queue(RX_QUEUE);
            metrics.metrics.rx_interrupts.inc();
        };
        let result = rx.batch(&mut self.net, &self.ram, &tell);
        let told = rx.ring.wants_interrupt(&self.ram).map(|wanted| {
            if wanted {
                tell()
            }
        });
        self.settle(result.and_then(|served| told.map(|()| served)))
    }

    fn serve_tx(&mut self) -> Served {
        let Some(tx) = &mut self.tx else { return Served::Drained };
        let result = tx.batch(&mut self.net, &self.ram);
        let told = tx.ring.wants_interrupt(&self.ram).map(|wanted| {
            if wanted {
                self.interrupt.queue(TX_QUEUE);
                self.net.shared.metrics.tx_interrupts.inc();
            }
        });
        self.settle(result.and_then(|served| told.map(|()| served)))
    }

    /// Gives up on a driver that broke a queue.
    fn settle(&mut self, result: Result<Served, RingError>) -> Served {
        result.unwrap_or_else(|error| {
            self.broken = true;
            self.net.shared.metrics.broken.inc();
            self.net.log(format_args!("the driver broke a queue: {error}"));
            self.interrupt.needs_reset();
            Served::Broken
        })
    }
}

impl Running for Live {
    fn serve(&mut self, queue: u16) -> Served {
        if self.broken {
            return Served::Broken;
        }
        self.net.take_changes();
        match queue {
            RX_QUEUE => {
                self.net.shared.metrics.rx_queue_events.inc();
                self.serve_rx()
            }
            TX_QUEUE => {
                self.net.shared.metrics.tx_queue_events.inc();
                self.serve_tx()
            }
            _ => Served::Drained,
        }
    }

    fn sources(&self) -> Vec<RawFd> {
        vec![self.net.wire.fd()]
    }

    fn ready(&mut self, source: usize) -> Served {
        if self.broken {
            return Served::Broken;
        }
        if source != 0 {
            return Served::Drained;
        }
        self.net.take_changes();
        self.net.shared.metrics.rx_wire_events.inc();
        if let Some(rx) = &mut self.rx {
            rx.wire_may_have_frames();
        }
        self.serve_rx()
    }

    fn stop(self: Box<Self>) -> Box<dyn Idle> {
        Box::new(self.net)
    }
}
