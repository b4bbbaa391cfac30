//! Requests that name ranges instead of carrying data: discard and write zeroes (virtio 1.2 §5.2.6).
//!
//! Their data are segments of 16 bytes, `struct virtio_blk_discard_write_zeroes`. All are checked before any is carried out.

use super::backend::Erasure;
use super::config::{DISCARD_SECTORS_MAX, DISCARD_SEGMENTS_MAX, ZEROES_SECTORS_MAX, ZEROES_SEGMENTS_MAX};
use super::request::{Refusal, Rules, SECTOR_BYTES};
use crate::mem::VolatileSlice;
use crate::virtio::queue::{copy_out, total_len};

/// Bytes of a segment: first sector, sectors, flags.
const SEGMENT_BYTES: usize = 16;
/// VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP.
const FLAG_UNMAP: u32 = 1;
/// The most segments that either request may have.
const SEGMENTS_MAX: usize = max(DISCARD_SEGMENTS_MAX, ZEROES_SEGMENTS_MAX) as usize;

const fn max(a: u32, b: u32) -> u32 {
    if a > b { a } else { b }
}

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Discard,
    WriteZeroes,
}

impl Kind {
    /// Sectors in a segment, and segments in a request.
    fn limits(self) -> (u32, u32) {
        match self {
            Self::Discard => (DISCARD_SECTORS_MAX, DISCARD_SEGMENTS_MAX),
            Self::WriteZeroes => (ZEROES_SECTORS_MAX, ZEROES_SEGMENTS_MAX),
        }
    }
}

/// A range that is to be erased, whole sectors of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// Bytes from the start of the disk.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// What is to be left behind.
    pub how: Erasure,
}

/// The segments in `data`.
pub(super) fn parse(kind: Kind, data: &[VolatileSlice], rules: &Rules) -> Result<Vec<Range>, Refusal> {
    let (sectors_max, segments_max) = kind.limits();
    let len = total_len(data);
    let segments = len / SEGMENT_BYTES;
    if len == 0 || !len.is_multiple_of(SEGMENT_BYTES) || segments > segments_max as usize {
        return Err(Refusal::Segments { len, max: segments_max });
    }
    let mut raw = [0; SEGMENT_BYTES * SEGMENTS_MAX];
    copy_out(data, &mut raw[..len]);
    raw[..len].chunks_exact(SEGMENT_BYTES).map(|raw| segment(kind, sectors_max, raw, rules)).collect()
}

fn segment(kind: Kind, sectors_max: u32, raw: &[u8], rules: &Rules) -> Result<Range, Refusal> {
    let word = |at: usize| u32::from_le_bytes(raw[at..at + 4].try_into().expect("four bytes"));
    let sector = u64::from_le_bytes(raw[..8].try_into().expect("eight bytes"));
    let (sectors, flags) = (word(8), word(12));
    let how = match (kind, flags) {
        (Kind::Discard, 0) => Erasure::Discard,
        (Kind::WriteZeroes, 0 | FLAG_UNMAP) => {
            Erasure::Zero { unmap: flags == FLAG_UNMAP && rules.may_unmap }
        }
        _ => return Err(Refusal::Flags { flags }),
    };
    if sectors > sectors_max {
        return Err(Refusal::TooMuch { sectors, max: sectors_max });
    }
    let len = u64::from(sectors) * SECTOR_BYTES;
    if sector.checked_add(sectors.into()).is_none_or(|end| end > rules.sectors) {
        return Err(Refusal::OutOfRange { sector, len, sectors: rules.sectors });
    }
    Ok(Range { offset: sector * SECTOR_BYTES, len, how })
}
