//! A disk in use: its queues, together or each on its own thread.

use std::ops::Range;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::lane::{Lane, Session};
use super::{Block, Shared};
use crate::virtio::queue::Ring;
use crate::virtio::{Granted, Idle, Part, Running, Served};

/// The running disk: the queues that were not split off.
pub(super) struct Live {
    shared: Arc<Shared>,
    queue_sizes: Vec<u16>,
    /// By queue; `None` if the driver did not enable it, or another thread serves it.
    lanes: Vec<Option<Box<Lane>>>,
    /// What the queue that was served last began to wait for.
    new_source: Option<(usize, RawFd)>,
}

impl Live {
    pub(super) fn new(block: Block, granted: Granted) -> Self {
        let Block { shared, queue_sizes } = block;
        {
            let mut wire = shared.wire();
            wire.interrupt = Some(Arc::clone(&granted.interrupt));
            if std::mem::take(&mut wire.missed) {
                granted.interrupt.config();
            }
        }
        let session = Arc::new(Session {
            ram: granted.ram,
            features: granted.features,
            interrupt: granted.interrupt,
            broken: AtomicBool::new(false),
        });
        let lane = |(index, queue): (u16, Option<_>)| {
            let ring = Ring::new(queue?, granted.features);
            Some(Box::new(Lane::new(index, Arc::clone(&shared), Arc::clone(&session), ring)))
        };
        let lanes = (0..).zip(granted.queues).take(queue_sizes.len()).map(lane).collect();
        Self { shared, queue_sizes, lanes, new_source: None }
    }
}

impl Live {
    fn with_lane(&mut self, index: usize, call: fn(&mut Lane) -> Served) -> Served {
        let Some(Some(lane)) = self.lanes.get_mut(index) else { return Served::Drained };
        let served = call(lane);
        if let Some(fd) = lane.new_source() {
            self.new_source = Some((index, fd));
        }
        served
    }
}

impl Running for Live {
    fn serve(&mut self, queue: u16) -> Served {
        self.with_lane(queue.into(), |lane| lane.serve(lane.index))
    }

    /// Sources are numbered as the queues that wait for them.
    fn ready(&mut self, source: usize) -> Served {
        self.with_lane(source, Part::ready)
    }

    fn new_source(&mut self) -> Option<(usize, RawFd)> {
        self.new_source.take()
    }

    fn set_polled(&mut self, on: bool) {
        self.lanes.iter_mut().flatten().for_each(|lane| lane.set_polled(on));
    }

    fn peek(&self, queue: u16) -> bool {
        self.lanes.get(usize::from(queue)).and_then(Option::as_ref).is_some_and(|lane| lane.peek(queue))
    }

    fn settle(&mut self) {
        self.lanes.iter_mut().flatten().for_each(|lane| lane.settle());
    }

    /// Each queue is a part, if there are several.
    fn part_of(&self, queue: u16) -> Option<Range<u16>> {
        let several = self.lanes.len() > 1 && usize::from(queue) < self.lanes.len();
        several.then_some(queue..queue + 1)
    }

    fn split_off(&mut self, queue: u16) -> Option<Box<dyn Part>> {
        Some(self.lanes.get_mut(usize::from(queue))?.take()?)
    }

    fn stop(self: Box<Self>) -> Box<dyn Idle> {
        self.lanes.into_iter().flatten().for_each(Part::end);
        self.shared.wire().interrupt = None;
        self.shared.config.reset_switch();
        Box::new(Block { shared: self.shared, queue_sizes: self.queue_sizes })
    }
}
