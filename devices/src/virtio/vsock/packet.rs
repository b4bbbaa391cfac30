//! What travels over the queues: a header of 44 bytes, and for OP_RW a payload (virtio 1.2 §5.10.6).

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of `struct virtio_vsock_hdr` (virtio 1.2 §5.10.6).
pub const HEADER_BYTES: usize = size_of::<Header>();
/// VMADDR_CID_HOST: the host's own address (virtio 1.2 §5.10.4).
pub const HOST_CID: u64 = 2;
/// The smallest address that a guest can have: those below are reserved (virtio 1.2 §5.10.4).
pub const GUEST_CID_MIN: u32 = 3;

/// VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE: the sender of this will receive no more (virtio 1.2 §5.10.6.5).
pub const SHUT_RECEIVE: u32 = 1;
/// VIRTIO_VSOCK_SHUTDOWN_F_SEND: the sender of this will send no more.
pub const SHUT_SEND: u32 = 2;
/// Both of these: the end.
pub const SHUT_BOTH: u32 = SHUT_RECEIVE | SHUT_SEND;
/// VIRTIO_VSOCK_SEQ_EOM: the last part of a record (virtio 1.2 §5.10.6.6).
pub const SEQ_EOM: u32 = 1;

/// `struct virtio_vsock_hdr` (virtio 1.2 §5.10.6), as it lies in guest memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Header {
    /// Whose packet it is.
    pub src_cid: U64,
    /// For whom.
    pub dst_cid: U64,
    /// Port of the sender.
    pub src_port: U32,
    /// Port of the receiver.
    pub dst_port: U32,
    /// Bytes of payload.
    pub len: U32,
    /// See [`Kind`].
    pub kind: U16,
    /// See [`Op`].
    pub op: U16,
    /// Of OP_SHUTDOWN, and of OP_RW in records.
    pub flags: U32,
    /// Bytes that the sender sets aside for this connection.
    pub buf_alloc: U32,
    /// Bytes that the sender has taken out of there so far, modulo 2^32.
    pub fwd_cnt: U32,
}

/// VIRTIO_VSOCK_TYPE_*: what a connection carries (virtio 1.2 §5.10.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Bytes.
    Stream = 1,
    /// Records.
    SeqPacket = 2,
}

/// VIRTIO_VSOCK_OP_*: what a packet is about (virtio 1.2 §5.10.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Asks for a connection.
    Request = 1,
    /// Grants one.
    Response = 2,
    /// Refuses or ends one.
    Rst = 3,
    /// Says what will be sent or received no more.
    Shutdown = 4,
    /// Brings payload.
    Rw = 5,
    /// Brings nothing but `buf_alloc` and `fwd_cnt`.
    CreditUpdate = 6,
    /// Asks for these.
    CreditRequest = 7,
}

/// The two ports of a connection, which no other connection has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// On the host's side.
    pub host_port: u32,
    /// On the guest's side.
    pub guest_port: u32,
}

/// A guest's packet whose header makes sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// Its connection.
    pub key: Key,
    /// What that carries.
    pub kind: Kind,
    /// What it is about.
    pub op: Op,
    /// See [`Header::flags`].
    pub flags: u32,
    /// Bytes of payload; 0 but for OP_RW.
    pub len: u32,
    /// See [`Header::buf_alloc`].
    pub buf_alloc: u32,
    /// See [`Header::fwd_cnt`].
    pub fwd_cnt: u32,
}

/// Why a guest's packet was turned down. Every variant is reachable from a hostile guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Not even a header.
    #[error("a packet of {got} bytes; its header has {HEADER_BYTES}")]
    ShortHeader {
        /// Bytes the device may read.
        got: u32,
    },
    /// It claims to come from somebody else.
    #[error("a packet from CID {0}, which is not the guest's")]
    Source(u64),
    /// It is for nobody here.
    #[error("a packet for CID {0}; there is only the host, {HOST_CID}")]
    Destination(u64),
    /// No [`Kind`], or one that was not negotiated.
    #[error("a packet of type {0}, which is unknown or was not negotiated")]
    Kind(u16),
    /// No [`Op`].
    #[error("a packet with operation {0}, which is unknown")]
    Op(u16),
    /// More payload than the chain has, or payload where none can be.
    #[error("a packet that claims {said} bytes of payload; it has {there}")]
    Length {
        /// By the header.
        said: u32,
        /// By the chain.
        there: u32,
    },
    /// A request where there is a connection already, a response where none was asked for, or more than was allowed for.
    #[error("a packet that its connection can't take: {0}")]
    State(&'static str),
}

impl Refusal {
    /// Whether the sender is to hear of it by OP_RST. One whose address is wrong would not.
    #[must_use]
    pub fn is_answered(self) -> bool {
        match self {
            Self::ShortHeader { .. } | Self::Source(_) => false,
            Self::Destination(_) | Self::Kind(_) | Self::Op(_) | Self::Length { .. } | Self::State(_) => true,
        }
    }
}

impl Header {
    /// Understands the header of a packet of the guest `guest_cid`, with `there` bytes after it.
    ///
    /// # Errors
    /// [`Refusal`]; never [`Refusal::ShortHeader`] or [`Refusal::State`].
    pub fn parse(&self, guest_cid: u64, seqpacket: bool, there: u32) -> Result<Packet, Refusal> {
        if self.src_cid.get() != guest_cid {
            return Err(Refusal::Source(self.src_cid.get()));
        }
        if self.dst_cid.get() != HOST_CID {
            return Err(Refusal::Destination(self.dst_cid.get()));
        }
        let kind = match self.kind.get() {
            1 => Kind::Stream,
            2 if seqpacket => Kind::SeqPacket,
            other => return Err(Refusal::Kind(other)),
        };
        let op = match self.op.get() {
            1 => Op::Request,
            2 => Op::Response,
            3 => Op::Rst,
            4 => Op::Shutdown,
            5 => Op::Rw,
            6 => Op::CreditUpdate,
            7 => Op::CreditRequest,
            other => return Err(Refusal::Op(other)),
        };
        let said = self.len.get();
        if said > there || (said != 0 && op != Op::Rw) {
            return Err(Refusal::Length { said, there });
        }
        Ok(Packet {
            key: Key { host_port: self.dst_port.get(), guest_port: self.src_port.get() },
            kind,
            op,
            flags: self.flags.get(),
            len: said,
            buf_alloc: self.buf_alloc.get(),
            fwd_cnt: self.fwd_cnt.get(),
        })
    }

    /// OP_RST in answer to this one, whatever it says; none to OP_RST itself.
    #[must_use]
    pub fn reset(&self) -> Option<Self> {
        (self.op.get() != Op::Rst as u16).then(|| Self {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            kind: self.kind,
            op: (Op::Rst as u16).into(),
            ..Self::default()
        })
    }

    /// A packet for the guest, without payload, flags or credit.
    #[must_use]
    pub fn to_guest(guest_cid: u64, key: Key, kind: Kind, op: Op) -> Self {
        Self {
            src_cid: HOST_CID.into(),
            dst_cid: guest_cid.into(),
            src_port: key.host_port.into(),
            dst_port: key.guest_port.into(),
            kind: (kind as u16).into(),
            op: (op as u16).into(),
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sound() -> Header {
        Header {
            src_cid: 7.into(),
            dst_cid: HOST_CID.into(),
            src_port: 1.into(),
            dst_port: 2.into(),
            len: 5.into(),
            kind: 1.into(),
            op: 5.into(),
            ..Header::default()
        }
    }

    #[test]
    fn fields_lie_where_the_standard_says() {
        let header = Header { op: 0x0605.into(), fwd_cnt: 0x0403_0201.into(), ..sound() };
        let bytes = header.as_bytes();
        assert_eq!(bytes.len(), 44);
        assert_eq!((bytes[0], bytes[8], bytes[16], bytes[20], bytes[24], bytes[28]), (7, 2, 1, 2, 5, 1));
        assert_eq!((&bytes[30..32], &bytes[40..]), (&[5, 6][..], &[1, 2, 3, 4][..]));
    }

    #[test]
    fn a_header_is_refused_for_each_field_that_is_wrong() {
        let cases = [
            (Header { src_cid: 8.into(), ..sound() }, Refusal::Source(8)),
            (Header { dst_cid: 3.into(), ..sound() }, Refusal::Destination(3)),
            (Header { kind: 0.into(), ..sound() }, Refusal::Kind(0)),
            (Header { kind: 2.into(), ..sound() }, Refusal::Kind(2)),
            (Header { op: 0.into(), ..sound() }, Refusal::Op(0)),
            (Header { op: 8.into(), ..sound() }, Refusal::Op(8)),
            (Header { len: 6.into(), ..sound() }, Refusal::Length { said: 6, there: 5 }),
            (Header { op: 6.into(), ..sound() }, Refusal::Length { said: 5, there: 5 }),
        ];
        for (header, refusal) in cases {
            assert_eq!(header.parse(7, false, 5), Err(refusal));
        }
        assert_eq!(sound().parse(7, false, 5).unwrap().key, Key { host_port: 2, guest_port: 1 });
        assert!(Header { kind: 2.into(), ..sound() }.parse(7, true, 5).is_ok());
    }

    #[test]
    fn a_reset_goes_back_the_way_the_packet_came_and_none_answers_a_reset() {
        let reset = sound().reset().unwrap();
        assert_eq!((reset.src_cid.get(), reset.dst_cid.get()), (HOST_CID, 7));
        assert_eq!(
            (reset.src_port.get(), reset.dst_port.get(), reset.op.get(), reset.len.get()),
            (2, 1, 3, 0)
        );
        assert_eq!(reset.reset(), None);
    }
}
