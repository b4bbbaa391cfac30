//! What a guest asked of its disk: a chain is read once, here, and everything is decided here.
//!
//! The layout is that of virtio 1.2 §5.2.6: a 16-byte header, data, one status byte. Where descriptors begin and end carries no
//! meaning (§2.7.4): the header is the first 16 readable bytes, the status is the last writable byte.

use super::erase::{self, Kind};
use crate::mem::{Bytes, GuestAddress, GuestMemoryMmap, VolatileSlice};
use crate::virtio::queue::{Chain, Ring, RingError, advance, copy_out, total_len, truncate};

/// Bytes in a sector, the unit of addresses and of capacity, whatever the block size (virtio 1.2 §5.2.4).
pub const SECTOR_BYTES: u64 = 512;
/// Bytes of the identity that GET_ID returns (virtio 1.2 §5.2.6).
pub const ID_BYTES: usize = 20;
/// Bytes of the header: type, reserved, sector.
pub(super) const HEADER_BYTES: usize = 16;

const T_IN: u32 = 0;
const T_OUT: u32 = 1;
const T_FLUSH: u32 = 4;
const T_GET_ID: u32 = 8;
const T_DISCARD: u32 = 11;
const T_WRITE_ZEROES: u32 = 13;

/// The status byte (virtio 1.2 §5.2.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// VIRTIO_BLK_S_OK.
    Ok = 0,
    /// VIRTIO_BLK_S_IOERR.
    IoErr = 1,
    /// VIRTIO_BLK_S_UNSUPP.
    Unsupp = 2,
}

/// What the disk allows now.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// Addressable sectors of 512 bytes.
    pub sectors: u64,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Whether VIRTIO_BLK_F_FLUSH was agreed on.
    pub flush: bool,
    /// Whether VIRTIO_BLK_F_DISCARD was.
    pub discard: bool,
    /// Whether VIRTIO_BLK_F_WRITE_ZEROES was.
    pub write_zeroes: bool,
    /// Whether zeroes may be holes where the driver allows it.
    pub may_unmap: bool,
}

/// A request that the disk can carry out. Its data lie in guest RAM, its range on the disk.
#[derive(Debug)]
pub enum Request<'s, 'm> {
    /// Fill `data` from `offset` bytes on.
    In {
        /// Bytes from the start of the disk.
        offset: u64,
        /// Where to.
        data: &'s mut [VolatileSlice<'m>],
        /// Bytes in `data`.
        len: u32,
    },
    /// Write `data` from `offset` bytes on.
    Out {
        /// Bytes from the start of the disk.
        offset: u64,
        /// What.
        data: &'s mut [VolatileSlice<'m>],
        /// Bytes in `data`.
        len: u32,
    },
    /// Put what was written on stable storage.
    Flush,
    /// Discard ranges, or have them read as zeros.
    Erase {
        /// Each within the disk.
        ranges: Vec<erase::Range>,
    },
    /// Tell the disk's identity.
    GetId {
        /// Where to.
        into: &'s mut [VolatileSlice<'m>],
    },
}

/// Why a request was turned down. Every variant is reachable from a hostile guest.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Fewer readable bytes than a header has.
    #[error("header holds {got} bytes of 16")]
    ShortHeader {
        /// Readable bytes.
        got: usize,
    },
    /// The data are not whole sectors.
    #[error("{len} bytes of data are not whole sectors")]
    Partial {
        /// Bytes.
        len: u64,
    },
    /// The range passes the end of the disk.
    #[error("{len} bytes from sector {sector} on pass the end at sector {sectors}")]
    OutOfRange {
        /// First sector.
        sector: u64,
        /// Bytes.
        len: u64,
        /// Capacity.
        sectors: u64,
    },
    /// The data of a discard or write zeroes are not one or more whole segments, or are too many.
    #[error("{len} bytes are not 1 to {max} segments of 16 bytes")]
    Segments {
        /// Bytes.
        len: usize,
        /// Segments that would be accepted.
        max: u32,
    },
    /// A segment of a discard or write zeroes is longer than the configuration space allows.
    #[error("a segment of {sectors} sectors is longer than {max}")]
    TooMuch {
        /// Its length.
        sectors: u32,
        /// What would be accepted.
        max: u32,
    },
    /// A segment has flags that are reserved, or that its type does not have.
    #[error("segment with flags {flags:#x}; only bit 0 of a write zeroes may be set")]
    Flags {
        /// The flags field.
        flags: u32,
    },
    /// A write to a read-only disk.
    #[error("write to a read-only disk")]
    ReadOnly,
    /// A type that is unknown or was not agreed on.
    #[error("request type {kind} is not supported")]
    Unsupported {
        /// The type field.
        kind: u32,
    },
}

impl Refusal {
    /// What the guest is told.
    #[must_use]
    pub fn status(&self) -> Status {
        match self {
            Self::ShortHeader { .. }
            | Self::Partial { .. }
            | Self::OutOfRange { .. }
            | Self::Segments { .. }
            | Self::TooMuch { .. }
            | Self::ReadOnly => Status::IoErr,
            // §5.2.6.2 asks for this answer to flags.
            Self::Flags { .. } | Self::Unsupported { .. } => Status::Unsupp,
        }
    }
}

/// The answer that is owed for one chain: given exactly once, by move.
#[derive(Debug)]
#[must_use = "the driver waits for its answer"]
pub struct Reply {
    head: u16,
    status: GuestAddress,
}

impl Reply {
    /// The answer that is owed for `chain`, whose segments lie in RAM; `None` if it has no byte to put a status into.
    #[must_use]
    pub fn owed(chain: &Chain) -> Option<Self> {
        let last = chain.writable().iter().rfind(|segment| segment.len > 0)?;
        let status = last.addr.0.checked_add(u64::from(last.len) - 1)?;
        Some(Self { head: chain.head(), status: GuestAddress(status) })
    }

    /// Answers `status`, with `data_bytes` written before the status byte.
    ///
    /// # Errors
    /// As [`Ring::finish`].
    pub fn finish(
        self,
        ring: &mut Ring,
        ram: &GuestMemoryMmap<()>,
        status: Status,
        data_bytes: u32,
    ) -> Result<(), RingError> {
        ram.write_obj(status as u8, self.status)?;
        ring.finish(ram, self.head, data_bytes + 1)
    }
}

/// Reads the request in `readable` and `writable`, the two halves of a chain for which a [`Reply`] is owed.
///
/// # Errors
/// [`Refusal`], to be answered.
pub fn parse<'s, 'm>(
    readable: &'s mut [VolatileSlice<'m>],
    writable: &'s mut [VolatileSlice<'m>],
    rules: &Rules,
) -> Result<Request<'s, 'm>, Refusal> {
    let data_in = total_len(writable).saturating_sub(1);
    parse_body(readable, truncate(writable, data_in), rules)
}

fn parse_body<'s, 'm>(
    readable: &'s mut [VolatileSlice<'m>],
    data_in: &'s mut [VolatileSlice<'m>],
    rules: &Rules,
) -> Result<Request<'s, 'm>, Refusal> {
    let mut header = [0; HEADER_BYTES];
    let got = copy_out(readable, &mut header);
    if got < HEADER_BYTES {
        return Err(Refusal::ShortHeader { got });
    }
    let kind = u32::from_le_bytes(header[..4].try_into().expect("four bytes"));
    let sector = u64::from_le_bytes(header[8..].try_into().expect("eight bytes"));
    match kind {
        T_IN => {
            let (offset, len) = range(sector, total_len(data_in), rules)?;
            Ok(Request::In { offset, data: data_in, len })
        }
        T_OUT if rules.read_only => Err(Refusal::ReadOnly),
        T_OUT => {
            let data = advance(readable, HEADER_BYTES);
            let (offset, len) = range(sector, total_len(data), rules)?;
            Ok(Request::Out { offset, data, len })
        }
        T_FLUSH if rules.flush => Ok(Request::Flush),
        T_GET_ID => Ok(Request::GetId { into: data_in }),
        T_DISCARD | T_WRITE_ZEROES if rules.read_only => Err(Refusal::ReadOnly),
        T_DISCARD if rules.discard => erasure(Kind::Discard, readable, rules),
        T_WRITE_ZEROES if rules.write_zeroes => erasure(Kind::WriteZeroes, readable, rules),
        _ => Err(Refusal::Unsupported { kind }),
    }
}

fn erasure<'s, 'm>(
    kind: Kind,
    readable: &'s mut [VolatileSlice<'m>],
    rules: &Rules,
) -> Result<Request<'s, 'm>, Refusal> {
    let ranges = erase::parse(kind, advance(readable, HEADER_BYTES), rules)?;
    Ok(Request::Erase { ranges })
}

/// The byte range of a transfer, if it is whole sectors of the disk.
fn range(sector: u64, len: usize, rules: &Rules) -> Result<(u64, u32), Refusal> {
    let len = len as u64;
    if !len.is_multiple_of(SECTOR_BYTES) {
        return Err(Refusal::Partial { len });
    }
    let in_range = || {
        let end = sector.checked_add(len / SECTOR_BYTES)?;
        (end <= rules.sectors).then_some(())?;
        Some((sector.checked_mul(SECTOR_BYTES)?, u32::try_from(len).ok()?))
    };
    in_range().ok_or(Refusal::OutOfRange { sector, len, sectors: rules.sectors })
}
