//! The exact form of answers: which headers, in which order, and what is said to who sent no request at all.

use std::error::Error;
use std::io;

use hyper::ext::ReasonPhrase;
use hyper::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue, SERVER};
use hyper::http::request::Parts;
use hyper::{Response, StatusCode, Version};

use super::body::{EventStream, ReplyBody};
use super::{ContentType, Reply};

/// Bytes of a request's head that are read before it is refused; also the most of an answer that is kept in memory.
pub(super) const HEAD_LEN_MAX: usize = 16 * 1024;
/// An answer, as a whole or as it comes.
pub(super) enum Replied {
    Text(Reply),
    Events(EventStream),
}

const SERVER_NAME: &str = "Firecracker API";

/// Whether the connection stays open after the answer: the client wants that, and sees where the answer ends.
pub(super) fn stays_open(request: &Parts, replied: &Replied) -> bool {
    let says = |word: &str| {
        let values = request.headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|token| token.trim().eq_ignore_ascii_case(word))
    };
    match (request.version, replied) {
        // HTTP/1.0 has no chunks: a stream is as long as its connection.
        (Version::HTTP_10, Replied::Events(_)) => false,
        (Version::HTTP_10, Replied::Text(_)) => says("keep-alive"),
        _ => !says("close"),
    }
}

/// The answer in hyper's terms. The order of its headers is the order on the wire.
pub(super) fn respond(replied: Replied, deprecated: bool, stays_open: bool) -> Response<ReplyBody> {
    let (status, content_type, len, body) = match replied {
        Replied::Text(reply) => {
            (reply.status, reply.content_type, Some(reply.body.len()), ReplyBody::text(reply.body))
        }
        Replied::Events(stream) => (StatusCode::OK, ContentType::JsonLines, None, ReplyBody::Events(stream)),
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.extensions_mut().insert(ReasonPhrase::from_static(b""));
    let headers = response.headers_mut();
    headers.insert(SERVER, HeaderValue::from_static(SERVER_NAME));
    let connection = if stays_open { "keep-alive" } else { "close" };
    headers.insert(CONNECTION, HeaderValue::from_static(connection));
    if deprecated {
        headers.insert(HeaderName::from_static("deprecation"), HeaderValue::from_static("true"));
    }
    if len != Some(0) {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type.header()));
    }
    if let Some(len) = len.filter(|len| *len > 0) {
        headers.insert(CONTENT_LENGTH, len.into());
    }
    response
}

/// A whole answer to what is no request. Firecracker's form, but valid JSON: the line end in the text is escaped.
pub(super) fn error_page(status: StatusCode, text: &str) -> Vec<u8> {
    let body = format!("{{ \"error\": {} }}", serde_json::Value::from(text));
    format!(
        "HTTP/1.1 {} \r\nServer: {SERVER_NAME}\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        status.as_str(),
        body.len()
    )
    .into_bytes()
}

/// Whether the client ended the connection in the middle of a body.
pub(super) fn cut_off(error: &hyper::Error) -> bool {
    let source = error.source().and_then(|source| source.downcast_ref::<io::Error>());
    source.is_some_and(|source| source.kind() == io::ErrorKind::UnexpectedEof)
}

/// What to tell a client whose bytes hyper could not make a request of; nothing if it went away.
pub(super) fn framing_fault(error: &hyper::Error) -> Option<String> {
    if error.is_parse_too_large() {
        return Some(format!(
            "Invalid header. Reason: the request's head is larger than {HEAD_LEN_MAX} bytes."
        ));
    }
    if error.is_incomplete_message() {
        return Some("Invalid request.".to_owned());
    }
    if !error.is_parse() {
        return None;
    }
    let said = error.to_string();
    Some(match said.as_str() {
        said if said.contains("method") => "Invalid HTTP Method: Unsupported HTTP method.".to_owned(),
        said if said.contains("version") => "Invalid HTTP Version: Unsupported HTTP version.".to_owned(),
        said if said.contains("URI") => format!("Invalid URI: {said}."),
        _ => format!("Invalid header. Reason: {said}."),
    })
}
