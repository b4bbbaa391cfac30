//! The agent's socket: one connection for each request, and a limit on every wait.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::SendRequest;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::error::Failure;
use crate::agent::model::{Denial, DenialCode, ErrorBody};

/// Most that an answer may be that is kept as a whole, in bytes; streams have no limit. A host of 10,000 VMs lists in 20 MiB.
const ANSWER_LEN_MAX: usize = 256 << 20;

/// Of an error's body, in bytes.
const ERROR_LEN_MAX: usize = 1 << 20;

/// How to reach the agent.
pub(crate) struct Client {
    socket: PathBuf,
    patience: Duration,
}

impl Client {
    /// Nothing is connected yet. An answer begins within `patience`, or it is a time-out.
    pub(crate) fn new(socket: PathBuf, patience: Duration) -> Self {
        Self { socket, patience }
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, Failure> {
        let socket = || self.socket.clone();
        let stream = match timeout(self.patience, UnixStream::connect(&self.socket)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(source)) if source.kind() == io::ErrorKind::PermissionDenied => {
                return Err(Failure::Locked { socket: socket(), source });
            }
            Ok(Err(source)) => return Err(Failure::Unreachable { socket: socket(), source }),
            Err(_) => {
                return Err(Failure::Unreachable {
                    socket: socket(),
                    source: io::ErrorKind::TimedOut.into(),
                });
            }
        };
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|source| Failure::Broken { request: "the connection".to_owned(), source })?;
        // What goes wrong with it is seen by whoever waits for the answer.
        tokio::spawn(connection.with_upgrades());
        Ok(sender)
    }

    /// The head of an answer, whatever it is; `wait` is how long the agent was asked to take for it.
    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
        upgrade: Option<&str>,
        wait: Duration,
    ) -> Result<Response<Incoming>, Failure> {
        let words = || format!("{method} {path}");
        let mut request = Request::builder().method(&method).uri(path).header(header::HOST, "localhost");
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        if let Some(protocol) = upgrade {
            request = request.header(header::CONNECTION, "Upgrade").header(header::UPGRADE, protocol);
        }
        let request = request.body(Full::from(body.unwrap_or_default())).map_err(|error| {
            Failure::usage(format!("{path:?} is no path: {error}"), "a path is /v1/host, say")
        })?;
        let mut sender = self.connect().await?;
        let limit = self.patience + wait;
        match timeout(limit, sender.send_request(request)).await {
            Ok(answer) => answer.map_err(|source| Failure::Broken { request: words(), source }),
            Err(_) => Err(Failure::Late { what: format!("the answer to {}", words()), after: limit }),
        }
    }

    /// A whole answer, if it is a success.
    async fn whole(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
        wait: Duration,
    ) -> Result<(StatusCode, Bytes), Failure> {
        let answer = self.ask(method.clone(), path, body, None, wait).await?;
        let answer = checked(answer).await?;
        let status = answer.status();
        let limit = self.patience + wait;
        let words = format!("{method} {path}");
        match timeout(limit, collect(answer.into_body(), ANSWER_LEN_MAX, &words)).await {
            Ok(bytes) => Ok((status, bytes?)),
            Err(_) => Err(Failure::Late { what: format!("the answer to {words}"), after: limit }),
        }
    }

    /// Sends `body`, and reads the answer as a `T`.
    pub(crate) async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Failure> {
        Ok(self.send_seeing_status(method, path, body).await?.1)
    }

    /// As [`send`](Self::send), with the status.
    pub(crate) async fn send_seeing_status<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<(StatusCode, T), Failure> {
        let request = format!("{method} {path}");
        let strange = |source| Failure::Strange { request: request.clone(), source };
        let body = serde_json::to_vec(body).map_err(strange)?;
        let (status, bytes) = self.whole(method, path, Some(body), Duration::ZERO).await?;
        Ok((status, serde_json::from_slice(&bytes).map_err(strange)?))
    }

    /// Without a body: reads the answer as a `T`.
    pub(crate) async fn call<T: DeserializeOwned>(&self, method: Method, path: &str) -> Result<T, Failure> {
        self.call_waiting(method, path, Duration::ZERO).await
    }

    /// As [`call`](Self::call), where the agent is asked to take up to `wait`.
    pub(crate) async fn call_waiting<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        wait: Duration,
    ) -> Result<T, Failure> {
        let request = format!("{method} {path}");
        let (_, bytes) = self.whole(method, path, None, wait).await?;
        serde_json::from_slice(&bytes).map_err(|source| Failure::Strange { request, source })
    }

    /// Reads the answer to a GET as a `T`.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.call(Method::GET, path).await
    }

    /// As [`get`](Self::get); `None` if there is no such thing.
    pub(crate) async fn find<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>, Failure> {
        match self.get(path).await {
            Ok(found) => Ok(Some(found)),
            Err(Failure::Refused(denial)) if denial.code == DenialCode::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sends these bytes, and hands out those of the answer.
    pub(crate) async fn bytes(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<Bytes, Failure> {
        Ok(self.whole(method, path, body, Duration::ZERO).await?.1)
    }

    /// An answer that is read as it comes.
    pub(crate) async fn stream(&self, path: &str) -> Result<Stream, Failure> {
        let answer = self.ask(Method::GET, path, None, None, Duration::ZERO).await?;
        Ok(Stream { body: checked(answer).await?.into_body(), request: format!("GET {path}") })
    }

    /// Raw bytes both ways, after the agent switched to `protocol`.
    pub(crate) async fn upgrade(
        &self,
        path: &str,
        protocol: &str,
    ) -> Result<TokioIo<hyper::upgrade::Upgraded>, Failure> {
        let broken = |source| Failure::Broken { request: format!("GET {path}"), source };
        let answer = self.ask(Method::GET, path, None, Some(protocol), Duration::ZERO).await?;
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            checked(answer).await?;
            let message = format!("the agent does not switch to {protocol} on {path}");
            return Err(Failure::Failed { message, hint: None });
        }
        Ok(TokioIo::new(hyper::upgrade::on(answer).await.map_err(broken)?))
    }
}

/// The body of an answer, as it comes.
pub(crate) struct Stream {
    body: Incoming,
    request: String,
}

impl Stream {
    /// The next bytes; `None` at the end. May be dropped and called again.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        loop {
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(source)) => return Err(Failure::Broken { request: self.request.clone(), source }),
                // Trailers are of no interest.
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(bytes) if !bytes.is_empty() => return Ok(Some(bytes)),
                    _ => {}
                },
            }
        }
    }
}

async fn collect(body: Incoming, len_max: usize, request: &str) -> Result<Bytes, Failure> {
    match Limited::new(body, len_max).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) => match error.downcast::<hyper::Error>() {
            Ok(source) => Err(Failure::Broken { request: request.to_owned(), source: *source }),
            Err(error) => {
                let why = if error.is::<LengthLimitError>() { "is too long" } else { "can't be read" };
                let message = format!("the answer to {request} {why}: {len_max} bytes are taken");
                Err(Failure::Failed { message, hint: Some("ask for less of it".to_owned()) })
            }
        },
    }
}

/// A success, or why it is none.
async fn checked(answer: Response<Incoming>) -> Result<Response<Incoming>, Failure> {
    let status = answer.status();
    if status.is_success() {
        return Ok(answer);
    }
    let bytes = collect(answer.into_body(), ERROR_LEN_MAX, "a request").await.unwrap_or_default();
    Err(Failure::Refused(refusal(status, &bytes)))
}

/// What the body says, or the status if it says nothing: what answers may be a proxy, or an agent of another age.
fn refusal(status: StatusCode, body: &[u8]) -> Denial {
    if let Ok(body) = serde_json::from_slice::<ErrorBody>(body) {
        return body.error;
    }
    let code = match status.as_u16() {
        401 | 403 => DenialCode::Forbidden,
        404 => DenialCode::NotFound,
        405 => DenialCode::MethodNotAllowed,
        409 => DenialCode::State,
        413 => DenialCode::TooLarge,
        429 => DenialCode::TooMany,
        503 => DenialCode::Unavailable,
        504 => DenialCode::Timeout,
        507 => DenialCode::NoSpace,
        400..=499 => DenialCode::Invalid,
        _ => DenialCode::Host,
    };
    let said: String = String::from_utf8_lossy(body).trim().chars().take(200).collect();
    let said = if said.is_empty() { "without a word".to_owned() } else { format!("with {said:?}") };
    Denial::new(code, format!("the agent answered {status} {said}"))
}

/// A segment of a path or the value of a query: what is not plain is percent-encoded.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~:".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

/// `path` with those of the parameters that have a value.
pub(crate) fn with_query(path: &str, parameters: &[(&str, Option<String>)]) -> String {
    let mut whole = path.to_owned();
    let mut separator = '?';
    for (name, value) in parameters {
        if let Some(value) = value {
            whole.push(separator);
            whole.push_str(&format!("{name}={}", escape(value)));
            separator = '&';
        }
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_given_stays_one_segment() {
        assert_eq!(escape("sha256:ab"), "sha256:ab");
        assert_eq!(escape("../x?y#z"), "..%2Fx%3Fy%23z");
        assert_eq!(escape("a b\u{e4}+"), "a%20b%C3%A4%2B");
        let query = with_query("/v1/x", &[("a", None), ("b", Some("1&2".into())), ("c", Some("3".into()))]);
        assert_eq!(query, "/v1/x?b=1%262&c=3");
    }

    #[test]
    fn an_answer_without_an_error_body_is_a_refusal_by_its_status() {
        let own = br#"{"error":{"code":"in_use","message":"m","hint":"h"}}"#;
        assert_eq!(refusal(StatusCode::CONFLICT, own).code, DenialCode::InUse);
        assert_eq!(refusal(StatusCode::CONFLICT, b"").code, DenialCode::State);
        let strange = refusal(StatusCode::BAD_GATEWAY, b"<html>");
        assert_eq!(strange.code, DenialCode::Host);
        assert!(strange.message.contains("502") && strange.message.contains("<html>"), "{}", strange.message);
        assert_eq!(refusal(StatusCode::IM_A_TEAPOT, b"").code, DenialCode::Invalid);
    }
}
