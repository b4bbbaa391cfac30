//! A network card in use: its pairs of queues, together or each on its own thread, and its control queue.

use std::ops::Range;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Net;
use super::control::{Command, Control};
use super::features::{F_CTRL_VQ, announces, uses_pairs};
use super::pair::{Pair, Session, SharedPair};
use crate::virtio::queue::Ring;
use crate::virtio::{Granted, Idle, Part, Running, Served};

/// A pair beyond the first, and whether another thread serves it.
struct Further {
    pair: SharedPair,
    split_off: bool,
}

/// The running card.
pub(super) struct Live {
    /// What is left of the idle one: all but its ports.
    net: Net,
    session: Arc<Session>,
    /// Alone, or with others, it needs no lock.
    first: Pair,
    further: Vec<Further>,
    /// Pairs that the driver may use.
    pairs: u16,
    control: Option<Control>,
}

impl Live {
    /// A card of which the driver uses the first `in_use` pairs.
    pub(super) fn new(mut net: Net, granted: Granted, in_use: u16) -> Self {
        let Granted { ram, features, mut queues, interrupt } = granted;
        let session = Arc::new(Session::new(ram, features, interrupt));
        let mut ring = |index: u16| {
            let queue = queues.get_mut(usize::from(index)).and_then(Option::take);
            queue.map(|queue| Ring::new(queue, features))
        };
        let ports = std::mem::take(&mut net.ports);
        // §5.1.2: without VIRTIO_NET_F_MQ there is one pair, and the control queue comes after it.
        let pairs = if uses_pairs(features) { u16::try_from(ports.len()).unwrap_or(u16::MAX) } else { 1 };
        let control =
            if features & F_CTRL_VQ != 0 { ring(control_queue(pairs)).map(Control::new) } else { None };
        let mut made = ports.into_iter().map(|port| {
            let rx = port.index * 2;
            let (rx, tx) = if port.index < pairs { (ring(rx), ring(rx + 1)) } else { (None, None) };
            Pair::new(port, Arc::clone(&session), rx, tx)
        });
        let first = made.next().expect("a card has a pair");
        let further = made.map(|pair| Further { pair: SharedPair::new(pair), split_off: false }).collect();
        let mut live = Self { net, session, first, further, pairs, control };
        // The wires may fail it: then all frames come to the first pair.
        if in_use > 1 {
            live.use_pairs(in_use);
        }
        live
    }

    /// The pairs beyond the first that this thread serves; not those that the driver can't use.
    fn kept(&self) -> impl Iterator<Item = &SharedPair> {
        let kept = self.further.iter().filter(|further| !further.split_off).map(|further| &further.pair);
        kept.filter(|pair| pair.with(false, |pair| pair.is_whole()))
    }

    fn serve_control(&mut self) -> Served {
        let Some(mut control) = self.control.take() else { return Served::Drained };
        let session = Arc::clone(&self.session);
        let shared = Arc::clone(&self.net.shared);
        let metrics = &shared.metrics[0];
        metrics.control_events.inc();
        let result = control.batch(&session.ram, |command| {
            let done = command.is_some_and(|command| self.obey(command));
            if !done {
                metrics.control_refused.inc();
            }
            done
        });
        let told = control.ring.wants_interrupt(&session.ram).map(|wanted| {
            if wanted {
                session.interrupt.queue(control_queue(self.pairs));
            }
        });
        self.control = Some(control);
        session.settle(result.and_then(|served| told.map(|()| served)), &shared, metrics)
    }

    fn obey(&mut self, command: Command) -> bool {
        match command {
            Command::Pairs(count) => uses_pairs(self.session.features) && self.use_pairs(count),
            Command::Announces if announces(self.session.features) => {
                let shared = &self.net.shared;
                if shared.heard(&mut shared.caller()) {
                    shared.metrics[0].announcements.inc();
                }
                true
            }
            Command::Announces => false,
        }
    }

    /// Has the driver use `count` pairs from now on (virtio 1.2 §5.1.6.5.5); false, and nothing changed, if that can't be.
    fn use_pairs(&mut self, count: u16) -> bool {
        if !(1..=self.pairs).contains(&count) {
            return false;
        }
        let (wanted, rest) = self.further.split_at(usize::from(count - 1));
        // A pair without its queues would be sent frames that nobody gets.
        if !wanted.iter().all(|further| further.pair.with(false, |pair| pair.is_whole())) {
            return false;
        }
        let mut new = Vec::new();
        for further in wanted {
            let (was, is) = further.pair.with((true, false), |pair| (pair.port.active, pair.activate()));
            if !was {
                new.push(further);
            }
            if !is {
                new.into_iter().for_each(|further| further.pair.with((), Pair::deactivate));
                return false;
            }
        }
        rest.iter().for_each(|further| further.pair.with((), Pair::deactivate));
        self.net.shared.in_use.store(count, Ordering::Release);
        true
    }
}

/// Index of the control queue of a card whose driver may use `pairs` pairs (virtio 1.2 §5.1.2).
fn control_queue(pairs: u16) -> u16 {
    pairs * 2
}

impl Running for Live {
    fn serve(&mut self, queue: u16) -> Served {
        if self.session.is_broken() {
            return Served::Broken;
        }
        if queue == control_queue(self.pairs) {
            return self.serve_control();
        }
        match usize::from(queue / 2).checked_sub(1) {
            None => self.first.serve(queue),
            Some(index) => match self.further.get(index).filter(|further| !further.split_off) {
                Some(further) => further.pair.with(Served::Drained, |pair| pair.serve(queue)),
                None => Served::Drained,
            },
        }
    }

    fn set_polled(&mut self, on: bool) {
        self.first.set_polled(on);
        self.kept().for_each(|pair| pair.with((), |pair| pair.set_polled(on)));
    }

    fn peek(&self, queue: u16) -> bool {
        match usize::from(queue / 2).checked_sub(1) {
            None => self.first.peek(queue),
            Some(index) => self
                .further
                .get(index)
                .filter(|further| !further.split_off)
                .is_some_and(|further| further.pair.with(false, |pair| pair.peek(queue))),
        }
    }

    fn sources(&self) -> Vec<RawFd> {
        let kept = self.kept().filter_map(|pair| pair.with(None, Pair::watched));
        std::iter::once(self.first.port.wire.fd()).chain(kept).collect()
    }

    fn ready(&mut self, source: usize) -> Served {
        match source.checked_sub(1) {
            None => self.first.ready(),
            Some(index) => {
                self.kept().nth(index).map_or(Served::Drained, |pair| pair.with(Served::Drained, Pair::ready))
            }
        }
    }

    /// Those of a pair beyond the first.
    fn part_of(&self, queue: u16) -> Option<Range<u16>> {
        let first = queue - queue % 2;
        (2..control_queue(self.pairs)).contains(&queue).then_some(first..first + 2)
    }

    fn split_off(&mut self, queue: u16) -> Option<Box<dyn Part>> {
        let index = usize::from(self.part_of(queue)?.start / 2 - 1);
        let further = self.further.get_mut(index).filter(|further| !further.split_off)?;
        further.split_off = true;
        Some(Box::new(further.pair.clone()))
    }

    fn stop(self: Box<Self>) -> Box<dyn Idle> {
        let Self { mut net, first, further, .. } = *self;
        let pairs = std::iter::once(first).chain(further.iter().filter_map(|further| further.pair.take()));
        net.ports = pairs.map(|pair| pair.port).collect();
        net.ports.iter_mut().for_each(|port| port.rest());
        net.shared.in_use.store(1, Ordering::Release);
        let mut caller = net.shared.caller();
        caller.interrupt = None;
        net.shared.heard(&mut caller);
        drop(caller);
        Box::new(net)
    }
}
