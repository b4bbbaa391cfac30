//! The body of an answer: nothing, a text, or a stream of events.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use hyper::body::{Body, Bytes, Frame, SizeHint};

use super::link::Exchange;
use crate::events::{EventRing, Read};

/// What an answer carries.
pub(super) enum ReplyBody {
    /// Nothing, or a text.
    Text(Option<Bytes>),
    /// Events, until there are no more, or until the client has fallen too far behind.
    Events(EventStream),
}

impl ReplyBody {
    pub(super) fn text(text: Vec<u8>) -> Self {
        Self::Text((!text.is_empty()).then(|| text.into()))
    }
}

/// Events on their way to one client.
pub(super) struct EventStream {
    ring: Arc<EventRing>,
    seen: u64,
    /// Who is to be woken when there are more.
    waker: Option<Waker>,
    client: Rc<Exchange>,
    open: Rc<Cell<usize>>,
}

impl EventStream {
    /// Streams what comes after event `since`, until the client is gone. `open` counts the streams there are.
    pub(super) fn new(ring: Arc<EventRing>, since: u64, client: Rc<Exchange>, open: Rc<Cell<usize>>) -> Self {
        let seen = ring.start(since);
        open.set(open.get() + 1);
        Self { ring, seen, waker: None, client, open }
    }
}

impl Drop for EventStream {
    fn drop(&mut self) {
        self.open.set(self.open.get() - 1);
        if let Some(waker) = &self.waker {
            self.ring.forget(waker);
        }
    }
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match self.get_mut() {
            Self::Text(text) => Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
            Self::Events(stream) => Poll::Ready(match stream.ring.poll_after(stream.seen, cx) {
                Poll::Ready(Read::Lines { text, last }) => {
                    stream.seen = last;
                    Some(Ok(Frame::data(text.into())))
                }
                Poll::Ready(Read::Lagged) => {
                    Some(Err(io::Error::other("the client fell too far behind the events")))
                }
                Poll::Ready(Read::Closed) => None,
                Poll::Pending => {
                    stream.waker = Some(cx.waker().clone());
                    ready!(stream.client.poll_gone(cx));
                    Some(Err(io::ErrorKind::ConnectionAborted.into()))
                }
            }),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Text(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Text(text) => SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64)),
            Self::Events(_) => SizeHint::default(),
        }
    }
}
