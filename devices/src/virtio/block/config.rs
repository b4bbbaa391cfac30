//! What a disk tells its driver: features, and `struct virtio_blk_config` (virtio 1.2 §5.2.3, §5.2.4).

use std::sync::Arc;

use super::{Backend, BlockOptions, Cache, QUEUE_SIZE};
use crate::virtio::ConfigSpace;
use crate::virtio::queue::F_COMMON;

/// VIRTIO_BLK_F_SEG_MAX (virtio 1.2 §5.2.3), as those below.
pub const F_SEG_MAX: u64 = 1 << 2;
/// VIRTIO_BLK_F_RO.
pub const F_RO: u64 = 1 << 5;
/// VIRTIO_BLK_F_BLK_SIZE.
pub const F_BLK_SIZE: u64 = 1 << 6;
/// VIRTIO_BLK_F_FLUSH.
pub const F_FLUSH: u64 = 1 << 9;
/// VIRTIO_BLK_F_TOPOLOGY.
pub const F_TOPOLOGY: u64 = 1 << 10;
/// VIRTIO_BLK_F_CONFIG_WCE.
pub const F_CONFIG_WCE: u64 = 1 << 11;
/// VIRTIO_BLK_F_MQ.
pub const F_MQ: u64 = 1 << 12;
/// VIRTIO_BLK_F_DISCARD.
pub const F_DISCARD: u64 = 1 << 13;
/// VIRTIO_BLK_F_WRITE_ZEROES.
pub const F_WRITE_ZEROES: u64 = 1 << 14;

/// Sectors that one segment of a discard may name: 2 GiB, which a file system lets go of in milliseconds.
pub const DISCARD_SECTORS_MAX: u32 = 1 << 22;
/// Segments of one discard.
pub const DISCARD_SEGMENTS_MAX: u32 = 32;
/// Sectors that one segment of a write of zeros may name: 16 MiB, in case they have to be written one by one.
pub const ZEROES_SECTORS_MAX: u32 = 1 << 15;
/// Segments of one write of zeros.
pub const ZEROES_SEGMENTS_MAX: u32 = 8;

/// Size of `struct virtio_blk_config`.
const BYTES: usize = 60;
const SEG_MAX: usize = 12;
const BLK_SIZE: usize = 20;
const PHYSICAL_BLOCK_EXP: usize = 24;
const MIN_IO_SIZE: usize = 26;
const WRITEBACK: usize = 32;
const NUM_QUEUES: usize = 34;
const MAX_DISCARD_SECTORS: usize = 36;
const MAX_DISCARD_SEG: usize = 40;
const DISCARD_SECTOR_ALIGNMENT: usize = 44;
const MAX_WRITE_ZEROES_SECTORS: usize = 48;
const MAX_WRITE_ZEROES_SEG: usize = 52;
const WRITE_ZEROES_MAY_UNMAP: usize = 56;

/// The largest block of a storage that a driver is told of: guests take larger ones for a mistake.
const BLOCK_BYTES_MAX: u32 = 4096;

/// The feature bits that a disk with `options` offers.
pub(super) fn offered(options: &BlockOptions) -> u64 {
    let discard = if options.discard { F_DISCARD } else { 0 };
    let access = if options.read_only { F_RO } else { discard | F_WRITE_ZEROES };
    let flush = match options.cache {
        Cache::Writeback => F_FLUSH | F_CONFIG_WCE,
        Cache::Unsafe => 0,
    };
    let queues = if options.queues.get() > 1 { F_MQ } else { 0 };
    F_COMMON | F_SEG_MAX | F_BLK_SIZE | F_TOPOLOGY | access | flush | queues
}

/// The configuration space of a disk over `backend` with `queues` queues. The driver's switch is its cache mode.
///
/// The storage's block size is told as it is now: another backing changes the capacity and nothing else.
pub(super) fn space(backend: &dyn Backend, queues: u16, may_unmap: bool) -> Arc<ConfigSpace> {
    let sector = backend.sector_bytes().clamp(512, BLOCK_BYTES_MAX);
    let block = backend.block_bytes().clamp(sector, BLOCK_BYTES_MAX);
    // The topology counts in blocks of BLK_SIZE, a discard in sectors of 512 bytes (§5.2.4).
    let (blocks, sectors) = (block / sector, block / 512);
    let mut bytes = vec![0; BYTES];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0, &backend.sectors().to_le_bytes());
    // A chain is a header, that many data segments and a status.
    put(SEG_MAX, &u32::from(QUEUE_SIZE - 2).to_le_bytes());
    put(BLK_SIZE, &sector.to_le_bytes());
    put(PHYSICAL_BLOCK_EXP, &blocks.ilog2().to_le_bytes()[..1]);
    put(MIN_IO_SIZE, &blocks.to_le_bytes()[..2]);
    put(NUM_QUEUES, &queues.to_le_bytes());
    put(MAX_DISCARD_SECTORS, &DISCARD_SECTORS_MAX.to_le_bytes());
    put(MAX_DISCARD_SEG, &DISCARD_SEGMENTS_MAX.to_le_bytes());
    put(DISCARD_SECTOR_ALIGNMENT, &sectors.to_le_bytes());
    put(MAX_WRITE_ZEROES_SECTORS, &ZEROES_SECTORS_MAX.to_le_bytes());
    put(MAX_WRITE_ZEROES_SEG, &ZEROES_SEGMENTS_MAX.to_le_bytes());
    put(WRITE_ZEROES_MAY_UNMAP, &[may_unmap.into()]);
    ConfigSpace::with_switch(bytes, WRITEBACK, F_CONFIG_WCE)
}
