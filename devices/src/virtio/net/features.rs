//! The feature bits of a network card (virtio 1.2 §5.1.3), what it offers, and what follows from what a driver accepts.

use super::Offloads;
use crate::virtio::queue::F_COMMON;

/// VIRTIO_NET_F_CSUM (virtio 1.2 §5.1.3), as those below.
pub const F_CSUM: u64 = 1 << 0;
/// VIRTIO_NET_F_GUEST_CSUM.
pub const F_GUEST_CSUM: u64 = 1 << 1;
/// VIRTIO_NET_F_MTU.
pub const F_MTU: u64 = 1 << 3;
/// VIRTIO_NET_F_MAC.
pub const F_MAC: u64 = 1 << 5;
/// VIRTIO_NET_F_GUEST_TSO4.
pub const F_GUEST_TSO4: u64 = 1 << 7;
/// VIRTIO_NET_F_GUEST_TSO6.
pub const F_GUEST_TSO6: u64 = 1 << 8;
/// VIRTIO_NET_F_GUEST_ECN.
pub const F_GUEST_ECN: u64 = 1 << 9;
/// VIRTIO_NET_F_GUEST_UFO.
pub const F_GUEST_UFO: u64 = 1 << 10;
/// VIRTIO_NET_F_HOST_TSO4.
pub const F_HOST_TSO4: u64 = 1 << 11;
/// VIRTIO_NET_F_HOST_TSO6.
pub const F_HOST_TSO6: u64 = 1 << 12;
/// VIRTIO_NET_F_HOST_ECN.
pub const F_HOST_ECN: u64 = 1 << 13;
/// VIRTIO_NET_F_HOST_UFO.
pub const F_HOST_UFO: u64 = 1 << 14;
/// VIRTIO_NET_F_MRG_RXBUF.
pub const F_MRG_RXBUF: u64 = 1 << 15;
/// VIRTIO_NET_F_STATUS.
pub const F_STATUS: u64 = 1 << 16;
/// VIRTIO_NET_F_CTRL_VQ.
pub const F_CTRL_VQ: u64 = 1 << 17;
/// VIRTIO_NET_F_GUEST_ANNOUNCE.
pub const F_GUEST_ANNOUNCE: u64 = 1 << 21;
/// VIRTIO_NET_F_MQ.
pub const F_MQ: u64 = 1 << 22;
/// VIRTIO_NET_F_GUEST_USO4 (virtio 1.3 §5.1.3), as those below.
pub const F_GUEST_USO4: u64 = 1 << 54;
/// VIRTIO_NET_F_GUEST_USO6.
pub const F_GUEST_USO6: u64 = 1 << 55;
/// VIRTIO_NET_F_HOST_USO.
pub const F_HOST_USO: u64 = 1 << 56;

/// What every card offers, whatever its options.
pub(super) const F_ALWAYS: u64 = F_COMMON
    | F_CSUM
    | F_GUEST_CSUM
    | F_GUEST_TSO4
    | F_GUEST_TSO6
    | F_GUEST_ECN
    | F_GUEST_UFO
    | F_HOST_TSO4
    | F_HOST_TSO6
    | F_HOST_ECN
    | F_HOST_UFO
    | F_MRG_RXBUF
    | F_STATUS
    | F_CTRL_VQ
    | F_GUEST_ANNOUNCE;

/// What a card offers beside that whose wire knows UDP segments.
pub(super) const F_USO: u64 = F_GUEST_USO4 | F_GUEST_USO6 | F_HOST_USO;

/// What a driver with these features can receive. A feature without the one it needs (virtio 1.2 §5.1.3.1) is left off.
pub(super) fn offloads(features: u64) -> Offloads {
    let has = |bit| features & bit != 0;
    let csum = has(F_GUEST_CSUM);
    let tso4 = csum && has(F_GUEST_TSO4);
    let tso6 = csum && has(F_GUEST_TSO6);
    Offloads {
        csum,
        tso4,
        tso6,
        ecn: (tso4 || tso6) && has(F_GUEST_ECN),
        ufo: csum && has(F_GUEST_UFO),
        uso: csum && has(F_GUEST_USO4) && has(F_GUEST_USO6),
    }
}

/// Whether a driver with these features announces itself when it is asked; that needs the control queue and the status.
pub(super) fn announces(features: u64) -> bool {
    const NEEDED: u64 = F_GUEST_ANNOUNCE | F_CTRL_VQ | F_STATUS;
    features & NEEDED == NEEDED
}

/// Whether a driver with these features may use several pairs; that needs the control queue (virtio 1.2 §5.1.3.1).
#[must_use]
pub fn uses_pairs(features: u64) -> bool {
    features & (F_MQ | F_CTRL_VQ) == F_MQ | F_CTRL_VQ
}
