//! Ethernet frames as a guest writes and reads them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub type MacBytes = [u8; 6];
pub const BROADCAST: MacBytes = [0xff; 6];

pub fn ethernet(to: MacBytes, from: MacBytes, kind: u16, body: &[u8]) -> Vec<u8> {
    [&to[..], &from, &kind.to_be_bytes(), body].concat()
}

fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum()
}

fn folded(mut sum: u32) -> [u8; 2] {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!u16::try_from(sum).unwrap()).to_be_bytes()
}

/// An IP packet (EtherType and body) whose payload has its checksum at `checksum_at`.
fn ip(
    from: IpAddr,
    to: IpAddr,
    protocol: u8,
    hops: u8,
    mut payload: Vec<u8>,
    checksum_at: usize,
) -> (u16, Vec<u8>) {
    let len = u16::try_from(payload.len()).unwrap();
    let pseudo = |a: &[u8], b: &[u8]| sum(a) + sum(b) + u32::from(protocol) + u32::from(len);
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let pseudo = if protocol == 1 { 0 } else { pseudo(&from.octets(), &to.octets()) };
            let check = folded(pseudo + sum(&payload));
            payload[checksum_at..checksum_at + 2].copy_from_slice(&check);
            let [high, low] = (len + 20).to_be_bytes();
            let mut header = vec![0x45, 0, high, low, 0, 0, 0x40, 0, hops, protocol, 0, 0];
            header.extend([from.octets(), to.octets()].concat());
            let check = folded(sum(&header));
            header[10..12].copy_from_slice(&check);
            (0x0800, [header, payload].concat())
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let check = folded(pseudo(&from.octets(), &to.octets()) + sum(&payload));
            payload[checksum_at..checksum_at + 2].copy_from_slice(&check);
            let [high, low] = len.to_be_bytes();
            let header =
                [&[0x60, 0, 0, 0, high, low, protocol, hops][..], &from.octets(), &to.octets()].concat();
            (0x86dd, [header, payload].concat())
        }
        _ => panic!("{from} and {to} are of two families"),
    }
}

pub fn udp(from: (IpAddr, u16), to: (IpAddr, u16), payload: &[u8]) -> (u16, Vec<u8>) {
    let len = u16::try_from(8 + payload.len()).unwrap().to_be_bytes();
    let header = [from.1.to_be_bytes(), to.1.to_be_bytes(), len, [0, 0]].concat();
    ip(from.0, to.0, 17, 64, [&header, payload].concat(), 6)
}

pub const SYN: u8 = 2;
pub const ACK: u8 = 16;

pub fn tcp(
    from: (IpAddr, u16),
    to: (IpAddr, u16),
    flags: u8,
    seq: u32,
    ack: u32,
    payload: &[u8],
) -> (u16, Vec<u8>) {
    let mut segment = [from.1.to_be_bytes(), to.1.to_be_bytes()].concat();
    segment.extend([seq.to_be_bytes(), ack.to_be_bytes()].concat());
    segment.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    ip(from.0, to.0, 6, 64, [&segment, payload].concat(), 16)
}

/// An ICMP or ICMPv6 message; neighbour discovery needs 255 hops.
pub fn icmp(from: IpAddr, to: IpAddr, kind: u8, hops: u8, body: &[u8]) -> (u16, Vec<u8>) {
    let protocol = if from.is_ipv4() { 1 } else { 58 };
    ip(from, to, protocol, hops, [&[kind, 0, 0, 0], body].concat(), 2)
}

/// The body of a neighbour solicitation or advertisement, with the sender's link-layer address.
pub fn nd_body(flags: u32, target: Ipv6Addr, option: u8, mac: MacBytes) -> Vec<u8> {
    [&flags.to_be_bytes()[..], &target.octets(), &[option, 1], &mac].concat()
}

pub fn arp(operation: u16, mac: MacBytes, from: Ipv4Addr, of: MacBytes, to: Ipv4Addr) -> (u16, Vec<u8>) {
    let mut body = vec![0, 1, 8, 0, 6, 4];
    body.extend(operation.to_be_bytes());
    body.extend([&mac[..], &from.octets(), &of, &to.octets()].concat());
    (0x0806, body)
}

/// What was read: enough of it to tell who says what.
#[derive(Debug, PartialEq, Eq)]
pub struct Seen {
    pub from: IpAddr,
    pub protocol: u8,
    /// After the IP header.
    pub payload: Vec<u8>,
}

/// An IP packet in a frame.
pub fn seen(frame: &[u8]) -> Option<Seen> {
    let body = frame.get(14..)?;
    match frame.get(12..14)? {
        [8, 0] => Some(Seen {
            from: Ipv4Addr::from(<[u8; 4]>::try_from(body.get(12..16)?).ok()?).into(),
            protocol: *body.get(9)?,
            payload: body.get(usize::from(body[0] & 15) * 4..)?.to_vec(),
        }),
        [0x86, 0xdd] => Some(Seen {
            from: Ipv6Addr::from(<[u8; 16]>::try_from(body.get(8..24)?).ok()?).into(),
            protocol: *body.get(6)?,
            payload: body.get(40..)?.to_vec(),
        }),
        _ => None,
    }
}

/// Who answers an ARP request, and with which address.
pub fn arp_reply(frame: &[u8]) -> Option<(MacBytes, Ipv4Addr)> {
    let body = frame.get(14..42)?;
    let reply = frame.get(12..14)? == [8, 6] && body[6..8] == [0, 2];
    let mac = body[8..14].try_into().ok()?;
    let address: [u8; 4] = body[14..18].try_into().ok()?;
    reply.then_some((mac, address.into()))
}
