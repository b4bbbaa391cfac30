//! A connection as hyper sees it: bytes, with deadlines, and without hyper's own error pages.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use hyper::rt::{Read, ReadBufCursor, Write};
use nix::sys::socket::{Shutdown, shutdown};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::time::{Instant, Sleep};

use crate::sandbox::descriptors::{RECEIVED_MAX, receive};

/// Bytes taken from the socket at once.
const CHUNK: usize = 4096;

/// Where a connection is between two requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Nothing is under way: the client may take its time.
    Idle,
    /// A request has begun to arrive, and has to be there by the deadline.
    Receiving,
    /// A request is there, its answer is not yet.
    Answering,
    /// The answer is on its way to the client.
    Sending,
}

/// A connection's socket, and what the two sides of it, the bytes and the service, tell each other.
#[derive(Debug)]
pub(super) struct Exchange {
    stream: UnixStream,
    pub(super) phase: Cell<Phase>,
    /// There are bytes that tokio does not know of.
    unread: Cell<bool>,
    /// Open files that came with the request that is arriving.
    pub(super) received: RefCell<Vec<OwnedFd>>,
    /// When the request that is arriving has to be there.
    due: Cell<Instant>,
    /// When the last answer was on its way, or the connection began.
    quiet_since: Cell<Instant>,
    /// Its last answer has no end yet.
    pub(super) streams: Cell<bool>,
    /// Why the connection has to end, if that has to be said to the client.
    pub(super) fault: RefCell<Option<String>>,
}

impl Exchange {
    pub(super) fn new(stream: UnixStream) -> Rc<Self> {
        let now = Instant::now();
        Rc::new(Self {
            stream,
            phase: Cell::new(Phase::Idle),
            unread: Cell::new(false),
            received: RefCell::default(),
            due: Cell::new(now),
            quiet_since: Cell::new(now),
            streams: Cell::new(false),
            fault: RefCell::new(None),
        })
    }

    /// A request begins to arrive, and has so long for that.
    pub(super) fn begin(&self, limit: Duration) {
        self.phase.set(Phase::Receiving);
        self.due.set(Instant::now() + limit);
    }

    /// Since when it waits for a request that has not begun; `None` if something is under way.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        let idle = self.phase.get() == Phase::Idle && !self.streams.get();
        idle.then(|| self.quiet_since.get())
    }

    /// Ends it for both sides: who reads finds the end of what was sent before.
    pub(super) fn hang_up(&self) {
        // The client may have done so itself, which is as good.
        let _ = shutdown(self.stream.as_raw_fd(), Shutdown::Both);
    }

    /// Ready once the client has ended the connection, or its half of it, whatever it has said before that.
    pub(super) fn poll_gone(&self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if ready!(self.stream.poll_read_ready(cx)).is_err() || self.is_ended() {
                return Poll::Ready(());
            }
            // Bytes, which are for later. To tokio there are none from here on, so that it waits for what comes after them.
            self.unread.set(true);
            let later = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
            let _ = self.stream.try_io(Interest::READABLE, later);
        }
    }

    /// Whether the client has ended its half of the connection, by what the kernel last said of the socket.
    fn is_ended(&self) -> bool {
        let said = pin!(self.stream.ready(Interest::READABLE)).poll(&mut Context::from_waker(Waker::noop()));
        match said {
            Poll::Ready(Ok(ready)) => ready.is_read_closed(),
            Poll::Ready(Err(_)) => true,
            Poll::Pending => false,
        }
    }

    /// Takes what has come: bytes into `into`, open files among those that were `received`.
    fn receive(&self, into: &mut [u8]) -> io::Result<usize> {
        let too_many = || {
            let text = format!("A request may bring {RECEIVED_MAX} descriptors at most.");
            self.fault.borrow_mut().get_or_insert(text);
            io::Error::from(io::ErrorKind::InvalidInput)
        };
        let (len, new) = receive(&self.stream, into).map_err(|error| match error.raw_os_error() {
            Some(libc::ENOBUFS) => too_many(),
            _ => error,
        })?;
        let mut received = self.received.borrow_mut();
        if received.len() + new.len() > RECEIVED_MAX {
            return Err(too_many());
        }
        received.extend(new);
        Ok(len)
    }

    /// Says a last word, and hears out what the client still has to say: a socket that is closed with unread bytes
    /// would tell its client of a reset, not of the word.
    pub(super) async fn farewell(&self, mut page: &[u8]) -> io::Result<()> {
        while !page.is_empty() {
            self.stream.writable().await?;
            match self.stream.try_write(page) {
                Ok(count) => page = &page[count..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        shutdown(self.stream.as_raw_fd(), Shutdown::Write)?;
        let mut rest = [0; 1024];
        loop {
            self.stream.readable().await?;
            match self.stream.try_read(&mut rest) {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// How long each side may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadlines {
    /// From the first byte of a request to its last.
    pub(super) request: Duration,
    /// For the client to make room for more of an answer.
    pub(super) stall: Duration,
}

/// One connection's bytes.
pub(super) struct Link {
    exchange: Rc<Exchange>,
    deadlines: Deadlines,
    reading: Pin<Box<Sleep>>,
    /// Runs while the client does not take what we write.
    stalled: Option<Pin<Box<Sleep>>>,
    /// hyper's own error page has begun; everything from there on is dropped.
    muted: bool,
}

impl Link {
    pub(super) fn new(exchange: Rc<Exchange>, deadlines: Deadlines) -> Self {
        let reading = Box::pin(tokio::time::sleep_until(Instant::now()));
        Self { exchange, deadlines, reading, stalled: None, muted: false }
    }

    fn poll_bytes(&self, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        if self.exchange.unread.take() {
            match self.exchange.receive(into) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => {
                    // Perhaps not all.
                    self.exchange.unread.set(result.as_ref().is_ok_and(|count| *count > 0));
                    return Poll::Ready(result);
                }
            }
        }
        loop {
            ready!(self.exchange.stream.poll_read_ready(cx))?;
            let take = || self.exchange.receive(into);
            match self.exchange.stream.try_io(Interest::READABLE, take) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }

    fn poll_take(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.exchange.stream.poll_write_ready(cx))?;
            match self.exchange.stream.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }

    fn too_slow(&self) -> io::Error {
        let text = format!("The request did not arrive within {} ms.", self.deadlines.request.as_millis());
        self.exchange.fault.borrow_mut().get_or_insert(text);
        io::ErrorKind::TimedOut.into()
    }

    /// Passes on what the socket says of a write, but not for ever that it is full.
    fn or_stalled<T>(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.stalled = None;
            return result;
        }
        let limit = self.deadlines.stall;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        ready!(stalled.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl Read for Link {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut into: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let link = self.get_mut();
        let mut bytes = [0; CHUNK];
        let room = into.remaining().min(CHUNK);
        let count = match link.poll_bytes(cx, &mut bytes[..room]) {
            Poll::Ready(count) => count?,
            Poll::Pending if link.exchange.phase.get() == Phase::Receiving => {
                let due = link.exchange.due.get();
                if link.reading.deadline() != due {
                    link.reading.as_mut().reset(due);
                }
                ready!(link.reading.as_mut().poll(cx));
                return Poll::Ready(Err(link.too_slow()));
            }
            Poll::Pending => return Poll::Pending,
        };
        let filled = &bytes[..count];
        if !filled.is_empty() && link.exchange.phase.get() == Phase::Idle {
            link.exchange.begin(link.deadlines.request);
        }
        into.put_slice(filled);
        Poll::Ready(Ok(()))
    }
}

/// Where hyper's own error page begins in what it writes. Its head names a reason, which ours never do, and ends in a
/// line end that JSON can't contain, so no answer of ours looks like it.
fn error_page(bytes: &[u8]) -> Option<usize> {
    const PAGES: [&[u8]; 6] = [
        b"HTTP/1.1 400 Bad Request\r\n",
        b"HTTP/1.1 414 URI Too Long\r\n",
        b"HTTP/1.1 431 Request Header Fields Too Large\r\n",
        b"HTTP/1.0 400 Bad Request\r\n",
        b"HTTP/1.0 414 URI Too Long\r\n",
        b"HTTP/1.0 431 Request Header Fields Too Large\r\n",
    ];
    // One byte at a time is most of what an answer costs; few of them are an H.
    let heads = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'H').map(|(at, _)| at);
    heads.into_iter().find(|at| PAGES.iter().any(|page| bytes[*at..].starts_with(page)))
}

impl Write for Link {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let link = self.get_mut();
        let end = if link.muted { 0 } else { error_page(bytes).unwrap_or(bytes.len()) };
        if end == 0 && !bytes.is_empty() {
            link.muted = true;
            return Poll::Ready(Ok(bytes.len()));
        }
        let result = link.poll_take(cx, &bytes[..end]);
        link.or_stalled(cx, result)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Called once everything is written: a socket has nothing to flush.
        if self.exchange.phase.get() == Phase::Sending {
            self.exchange.phase.set(Phase::Idle);
            self.exchange.quiet_since.set(Instant::now());
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(shutdown(self.exchange.stream.as_raw_fd(), Shutdown::Write).map_err(io::Error::from))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_hypers_own_pages_are_taken_for_error_pages() {
        assert_eq!(error_page(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n"), Some(0));
        assert_eq!(
            error_page(b"HTTP/1.1 204 \r\n\r\nHTTP/1.1 431 Request Header Fields Too Large\r\n"),
            Some(17)
        );
        assert_eq!(error_page(b"HTTP/1.1 400 \r\nServer: Firecracker API\r\n"), None);
        assert_eq!(error_page(br#"{"fault_message":"HTTP/1.1 400 Bad Request\r\n"}"#), None);
    }
}
