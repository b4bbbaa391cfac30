//! The first words of a host process: which port of the guest it calls.

use std::os::fd::AsRawFd;

use devices::virtio::vsock::Kind;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};

use super::peer::UnixPeer;

/// Bytes of the longest line that is understood; `CONNECT 4294967295\n` has 19.
const LINE_MAX: usize = 32;

/// What a caller has said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// It calls this port.
    Port(u32),
    /// Not all of it yet.
    Wait,
    /// Something else, or nothing.
    Nonsense,
}

/// Reads what `peer` has said, and nothing of what comes after it.
pub fn read(peer: &UnixPeer) -> Call {
    let mut line = [0; LINE_MAX];
    let fd = peer.fd().as_raw_fd();
    let peeked = match recv(fd, &mut line, MsgFlags::MSG_PEEK) {
        Ok(0) => return Call::Nonsense,
        Ok(n) => n,
        Err(Errno::EAGAIN | Errno::EINTR) => return Call::Wait,
        Err(_) => return Call::Nonsense,
    };
    let end = line[..peeked].iter().position(|byte| *byte == b'\n');
    let len = match (peer.kind(), end) {
        (_, Some(end)) => end + 1,
        (Kind::SeqPacket, None) => peeked,
        (Kind::Stream, None) if peeked == LINE_MAX => return Call::Nonsense,
        (Kind::Stream, None) => return Call::Wait,
    };
    // A record is read whole, however much of it is a line.
    match recv(fd, &mut line[..len], MsgFlags::empty()) {
        Ok(n) if n == len => parse(&line[..len]).map_or(Call::Nonsense, Call::Port),
        _ => Call::Nonsense,
    }
}

/// `CONNECT <port>`, as Firecracker reads it: in whatever case, between any white space.
fn parse(line: &[u8]) -> Option<u32> {
    let mut words = str::from_utf8(line).ok()?.split_whitespace();
    let (word, port) = (words.next()?, words.next()?);
    let digits = port.bytes().all(|byte| byte.is_ascii_digit());
    (word.eq_ignore_ascii_case("connect") && digits && words.next().is_none()).then(|| port.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_a_word_and_a_port() {
        for line in ["CONNECT 52\n", "connect 52", " Connect\t52 \r\n"] {
            assert_eq!(parse(line.as_bytes()), Some(52), "{line:?}");
        }
        assert_eq!(parse(b"CONNECT 4294967295\n"), Some(u32::MAX));
        for line in [
            "",
            "\n",
            "CONNECT\n",
            "CONNECT 4294967296\n",
            "CONNECT +1\n",
            "CONNECT -1",
            "GET 52",
            "CONNECT 5 2",
        ] {
            assert_eq!(parse(line.as_bytes()), None, "{line:?}");
        }
        assert_eq!(parse(b"CONNECT \xff"), None);
    }
}
