//! An engine in memory: it does what it is given at once, and tells of it late, in another order, in parts.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use super::seed::Seed;
use crate::mem::{Ram, VolatileSlice};
use crate::virtio::block::{Backend, Engine, Erasure, Finished, Transfer};
use crate::virtio::queue::total_len;

/// A backing with such an engine, over another backing, whose failures and short transfers it passes on.
pub struct Reordered<B> {
    disk: B,
    seed: Seed,
}

impl<B: Backend + Clone + 'static> Reordered<B> {
    /// Wraps `disk`; the order is that of `seed`.
    pub fn new(disk: B, seed: u64) -> Self {
        Self { disk, seed: Seed::new(seed) }
    }
}

impl<B: Backend + Clone + 'static> Backend for Reordered<B> {
    fn sectors(&self) -> u64 {
        self.disk.sectors()
    }

    fn share(&self) -> Box<dyn Backend> {
        Box::new(Self { disk: self.disk.clone(), seed: self.seed.clone() })
    }

    fn engine(&mut self, depth: u16) -> Option<io::Result<Box<dyn Engine>>> {
        let source = match File::open("/dev/null") {
            Ok(source) => source,
            Err(error) => return Some(Err(error)),
        };
        let (disk, seed) = (self.disk.clone(), Seed::new(self.seed.draw()));
        Some(Ok(Box::new(Reorderer {
            disk,
            seed,
            depth: depth.into(),
            begun: vec![],
            known: vec![],
            pushed: vec![],
            source,
        })))
    }

    fn read_at(&mut self, offset: u64, into: &[VolatileSlice]) -> io::Result<usize> {
        self.disk.read_at(offset, into)
    }

    fn write_at(&mut self, offset: u64, from: &[VolatileSlice]) -> io::Result<usize> {
        self.disk.write_at(offset, from)
    }

    fn erase(&mut self, offset: u64, len: u64, how: Erasure) -> io::Result<u64> {
        self.disk.erase(offset, len, how)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.disk.flush()
    }
}

struct Reorderer<B> {
    disk: B,
    seed: Seed,
    depth: usize,
    pushed: Vec<Finished>,
    begun: Vec<Finished>,
    known: Vec<Finished>,
    source: File,
}

impl<B> Reorderer<B> {
    fn learn(&mut self, at_least: usize) {
        self.begun.append(&mut self.pushed);
        let count = at_least.max(usize::try_from(self.seed.below(self.begun.len() as u64 + 1)).unwrap_or(0));
        for _ in 0..count.min(self.begun.len()) {
            let which = usize::try_from(self.seed.below(self.begun.len() as u64)).unwrap_or(0);
            self.known.push(self.begun.swap_remove(which));
        }
    }
}

impl<B: Backend> Engine for Reorderer<B> {
    fn push(&mut self, tag: u16, transfer: Transfer, _ram: &Ram, data: &[VolatileSlice]) {
        let all = self.pushed.iter().chain(&self.begun).chain(&self.known);
        assert!(all.clone().all(|other| other.tag != tag), "tag {tag} is in flight already");
        assert!(all.count() < self.depth, "more in flight than was asked for");
        let result = match transfer {
            Transfer::Read { offset } => self.disk.read_at(offset, data),
            Transfer::Write { offset } => self.disk.write_at(offset, data),
            Transfer::Flush => self.disk.flush().map(|()| 0),
        };
        assert!(result.as_ref().is_ok_and(|n| *n <= total_len(data)) || result.is_err());
        self.pushed.push(Finished { tag, result });
    }

    fn poll(&mut self) -> io::Result<()> {
        // Once in a while the host has no memory for it.
        if self.seed.below(10) == 0 {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        self.learn(0);
        Ok(())
    }

    fn wait(&mut self) -> io::Result<()> {
        assert!(!self.pushed.is_empty() || !self.begun.is_empty(), "nothing to wait for");
        self.learn(1);
        Ok(())
    }

    fn pop(&mut self) -> Option<Finished> {
        self.known.pop()
    }

    fn source(&self) -> RawFd {
        self.source.as_raw_fd()
    }
}
