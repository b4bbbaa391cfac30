//! Disks in memory: one that works, one that fails as its seed says.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::clock;
use super::seed::Seed;
use crate::mem::VolatileSlice;
use crate::virtio::block::{Backend, Erasure};
use crate::virtio::queue::{copy_in, copy_out, total_len};

/// What a disk in memory holds and was asked; shared with the test.
#[derive(Debug, Default)]
pub struct Platter {
    /// The contents.
    pub bytes: Vec<u8>,
    /// Completed flushes.
    pub flushes: u64,
    /// Ranges erased, in order.
    pub erasures: Vec<(u64, u64, Erasure)>,
    /// Calls of any kind.
    pub calls: u64,
    /// How long each takes, on a clock that a test has taken over.
    pub takes: Duration,
}

impl Platter {
    fn called(&mut self) {
        self.calls += 1;
        clock::advance(self.takes);
    }
}

/// A disk in memory. A clone is the same disk.
#[derive(Debug, Clone, Default)]
pub struct MemBackend(Arc<Mutex<Platter>>);

impl MemBackend {
    /// A disk of `bytes`.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Arc::new(Mutex::new(Platter { bytes, ..Platter::default() })))
    }

    /// A zeroed disk of `sectors` sectors of 512 bytes.
    #[must_use]
    pub fn zeroed(sectors: usize) -> Self {
        Self::new(vec![0; sectors * 512])
    }

    /// The disk's insides.
    pub fn platter(&self) -> MutexGuard<'_, Platter> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The part of a disk of `len` bytes that a transfer of `wanted` bytes at `offset` reaches.
fn reach(len: usize, offset: u64, wanted: usize) -> (usize, usize) {
    let start = usize::try_from(offset).unwrap_or(usize::MAX).min(len);
    (start, (len - start).min(wanted))
}

impl Backend for MemBackend {
    fn sectors(&self) -> u64 {
        self.platter().bytes.len() as u64 / 512
    }

    fn share(&self) -> Box<dyn Backend> {
        Box::new(self.clone())
    }

    fn read_at(&mut self, offset: u64, into: &[VolatileSlice]) -> io::Result<usize> {
        let mut platter = self.platter();
        platter.called();
        let (start, n) = reach(platter.bytes.len(), offset, total_len(into));
        Ok(copy_in(into, 0, &platter.bytes[start..start + n]))
    }

    fn write_at(&mut self, offset: u64, from: &[VolatileSlice]) -> io::Result<usize> {
        let mut platter = self.platter();
        platter.called();
        let (start, n) = reach(platter.bytes.len(), offset, total_len(from));
        Ok(copy_out(from, &mut platter.bytes[start..start + n]))
    }

    fn erase(&mut self, offset: u64, len: u64, how: Erasure) -> io::Result<u64> {
        let mut platter = self.platter();
        platter.called();
        platter.erasures.push((offset, len, how));
        let (start, n) = reach(platter.bytes.len(), offset, usize::try_from(len).unwrap_or(usize::MAX));
        platter.bytes[start..start + n].fill(0);
        Ok(0)
    }

    fn flush(&mut self) -> io::Result<()> {
        let mut platter = self.platter();
        platter.called();
        platter.flushes += 1;
        Ok(())
    }
}

/// A disk that is short, late or failing, as its seed says.
#[derive(Debug, Clone)]
pub struct FaultyBackend {
    disk: MemBackend,
    seed: Seed,
    /// Of 100 calls, those that fail.
    pub failing: u64,
    /// Of 100 transfers, those that stop after some bytes.
    pub short: u64,
    /// Of 100 calls, those that take a millisecond.
    pub late: u64,
}

impl FaultyBackend {
    /// Wraps `disk`: one call in five fails, two transfers in five are short. Prints its seed for the log of a failing test.
    #[must_use]
    pub fn new(disk: MemBackend, seed: u64) -> Self {
        println!("faulty disk with seed {seed:#x}");
        Self { disk, seed: Seed::new(seed), failing: 20, short: 40, late: 0 }
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.seed.below(100) < percent
    }

    fn stumble(&mut self) -> io::Result<()> {
        if self.chance(self.late) {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        if self.chance(self.failing) {
            let kinds = [io::ErrorKind::Other, io::ErrorKind::Interrupted, io::ErrorKind::StorageFull];
            return Err(self.seed.pick(&kinds).into());
        }
        Ok(())
    }

    /// A shorter list, once in a while: never empty.
    fn shorten<'m>(&mut self, slices: &[VolatileSlice<'m>]) -> Vec<VolatileSlice<'m>> {
        let mut slices = slices.to_vec();
        let total = total_len(&slices) as u64;
        if total > 1 && self.chance(self.short) {
            let keep = usize::try_from(1 + self.seed.below(total - 1)).unwrap_or(1);
            return crate::virtio::queue::truncate(&mut slices, keep).to_vec();
        }
        slices
    }
}

impl Backend for FaultyBackend {
    fn sectors(&self) -> u64 {
        self.disk.sectors()
    }

    fn share(&self) -> Box<dyn Backend> {
        Box::new(self.clone())
    }

    fn read_at(&mut self, offset: u64, into: &[VolatileSlice]) -> io::Result<usize> {
        self.stumble()?;
        let into = self.shorten(into);
        self.disk.read_at(offset, &into)
    }

    fn write_at(&mut self, offset: u64, from: &[VolatileSlice]) -> io::Result<usize> {
        self.stumble()?;
        let from = self.shorten(from);
        self.disk.write_at(offset, &from)
    }

    fn erase(&mut self, offset: u64, len: u64, how: Erasure) -> io::Result<u64> {
        self.stumble()?;
        self.disk.erase(offset, len, how)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stumble()?;
        self.disk.flush()
    }
}
