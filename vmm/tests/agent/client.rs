//! A blocking HTTP/1.1 client of the agent's socket: whole answers, streams, upgrades, and who asks.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::thread::{Gid, Uid, set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use serde_json::Value;

use super::common::PATIENCE;

/// An answer.
#[derive(Clone, Debug)]
pub struct Reply {
    /// Its status.
    pub status: u16,
    /// Its head, in small letters.
    pub head: String,
    /// Its body.
    pub body: Vec<u8>,
}

impl Reply {
    /// Its body.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Its body, as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// The code of a refusal, and its words.
    pub fn refusal(&self) -> (String, String) {
        let error = &self.json()["error"];
        let text =
            |name: &str| error[name].as_str().unwrap_or_else(|| panic!("no {name}: {error}")).to_owned();
        (text("code"), text("message"))
    }
}

/// Sends a request, and reads the head of the answer: the status, the head, and where the body comes from.
pub fn open(
    socket: &Path,
    method: &str,
    path: &str,
    headers: &str,
    body: &str,
) -> io::Result<(u16, String, BufReader<UnixStream>)> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    let text = format!("{method} {path} HTTP/1.1\r\nHost: yund\r\n{headers}{length}\r\n{body}");
    // It may be refused before it was taken in whole.
    let sent = stream.write_all(text.as_bytes());
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
    let Some(status) = status else {
        sent?;
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("status line {line:?}")));
    };
    let mut head = String::new();
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
            return Ok((status, head, reader));
        }
        head += &line.to_ascii_lowercase();
    }
}

/// A request and its whole answer, on a connection of its own.
pub fn request(socket: &Path, method: &str, path: &str, body: &str) -> io::Result<Reply> {
    let (status, head, mut reader) = open(socket, method, path, "Connection: close\r\n", body)?;
    let mut body = Vec::new();
    if head.contains("transfer-encoding: chunked") {
        Chunks { reader, left: 0 }.read_to_end(&mut body)?;
    } else {
        reader.read_to_end(&mut body)?;
    }
    Ok(Reply { status, head, body })
}

/// A body that comes in chunks (RFC 9112, section 7.1).
pub struct Chunks {
    reader: BufReader<UnixStream>,
    left: usize,
}

impl Read for Chunks {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.left == 0 {
            let mut line = String::new();
            self.reader.read_line(&mut line)?;
            // A chunk's end comes before the next one's length.
            if line == "\r\n" {
                continue;
            }
            self.left = usize::from_str_radix(line.trim(), 16)
                .map_err(|_| io::Error::new(io::ErrorKind::UnexpectedEof, format!("length {line:?}")))?;
            if self.left == 0 {
                return Ok(0);
            }
        }
        let most = into.len().min(self.left);
        let len = self.reader.read(&mut into[..most])?;
        self.left -= len;
        Ok(len)
    }
}

/// Follows something that has no end.
pub fn follow(socket: &Path, path: &str) -> Chunks {
    let (status, head, reader) = open(socket, "GET", path, "", "").unwrap();
    assert_eq!(status, 200, "{path}: {head}");
    Chunks { reader, left: 0 }
}

/// Attaches to a console: raw bytes both ways.
pub fn console(socket: &Path, path: &str) -> io::Result<BufReader<UnixStream>> {
    let headers = "Connection: Upgrade\r\nUpgrade: yun-console\r\n";
    let (status, head, reader) = open(socket, "GET", path, headers, "")?;
    if status == 101 { Ok(reader) } else { Err(io::Error::other(format!("{status}: {head}"))) }
}

/// Somebody who asks.
#[derive(Clone, Copy, Debug)]
pub struct User {
    /// Their user.
    pub uid: u32,
    /// Their group, and those besides.
    pub gids: &'static [u32],
}

impl User {
    /// Does something as that user. A thread of its own is theirs, and the kernel tells the agent whose that is.
    pub fn does<T: Send>(self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let groups: Vec<Gid> = self.gids.iter().map(|gid| Gid::from_raw(*gid)).collect();
                let (uid, gid) = (Uid::from_raw(self.uid), groups[0]);
                set_thread_groups(&groups[1..]).unwrap();
                set_thread_res_gid(gid, gid, gid).unwrap();
                set_thread_res_uid(uid, uid, uid).unwrap();
                work()
            });
            thread.join().unwrap()
        })
    }
}
