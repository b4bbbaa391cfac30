//! A blocking HTTP/1.1 client on a Unix socket.

use std::io::{self, BufRead, BufReader, IoSlice, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

/// An answer.
#[derive(Debug)]
pub struct Reply {
    /// Its status.
    pub status: u16,
    /// Its head, without the status line.
    pub head: String,
    /// Its body.
    pub body: String,
}

/// Sends a request; the stream is where the answer comes.
pub fn open(socket: &Path, method: &str, path: &str, body: &str) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(socket)?;
    send(&mut stream, method, path, body)?;
    Ok(stream)
}

/// Sends a request on an open connection.
pub fn send(stream: &mut UnixStream, method: &str, path: &str, body: &str) -> io::Result<()> {
    let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    stream.write_all(format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n{length}\r\n{body}").as_bytes())
}

/// Reads an answer; the connection stays open.
pub fn receive(stream: &mut UnixStream) -> io::Result<Reply> {
    stream.set_read_timeout(Some(super::PATIENCE))?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.ok_or_else(|| io::Error::other(format!("status line {line:?}")))?;
    let (mut head, mut length) = (String::new(), 0);
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        if line.trim().is_empty() {
            break;
        }
        if let Some(value) = line.strip_prefix("Content-Length: ") {
            length = value.trim().parse().map_err(io::Error::other)?;
        }
        head += &line;
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok(Reply { status, head, body: String::from_utf8_lossy(&body).into_owned() })
}

/// Asks for something that has no end; where it comes from, once it has begun.
pub fn follow(socket: &Path, path: &str) -> io::Result<impl Read + Send + use<>> {
    let mut reader = BufReader::new(open(socket, "GET", path, "")?);
    let mut line = String::from("-");
    while !line.trim().is_empty() {
        line.clear();
        reader.read_line(&mut line)?;
    }
    Ok(reader)
}

/// A request and its answer, on a connection of its own.
pub fn request(socket: &Path, method: &str, path: &str, body: &str) -> io::Result<Reply> {
    receive(&mut open(socket, method, path, body)?)
}

/// The same, with open files that come along with it (`SCM_RIGHTS`).
pub fn request_with(
    socket: &Path,
    method: &str,
    path: &str,
    body: &str,
    files: &[BorrowedFd<'_>],
) -> io::Result<Reply> {
    let mut stream = UnixStream::connect(socket)?;
    let text = format!("{method} {path} HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let descriptors: Vec<RawFd> = files.iter().map(AsRawFd::as_raw_fd).collect();
    let control = [ControlMessage::ScmRights(&descriptors)];
    let bytes = [IoSlice::new(text.as_bytes())];
    let sent = sendmsg::<()>(stream.as_raw_fd(), &bytes, &control, MsgFlags::empty(), None)?;
    assert_eq!(sent, text.len());
    receive(&mut stream)
}
