//! A client of one VMM's API: a connection for each request, and none that waits for ever.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::{Method, Request, StatusCode};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde::Deserialize;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::UnixStream;
use tokio::time::timeout;

/// Largest answer that is read, in bytes: a VMM is not trusted.
const ANSWER_LEN_MAX: usize = 1 << 20;

/// How long a VMM gives a guest to let go of a device.
const LETTING_GO: Duration = Duration::from_secs(10);

/// Why a VMM did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum VmmError {
    /// It can't be reached.
    #[error("the VMM can't be reached")]
    Unreachable(#[source] io::Error),
    /// It did not answer in time.
    #[error("the VMM did not answer {method} {path} within {} ms", within.as_millis())]
    Silent {
        /// The method.
        method: Method,
        /// The path.
        path: String,
        /// How long it was waited for.
        within: Duration,
    },
    /// It broke off, or said something that is no answer.
    #[error("the VMM broke off at {method} {path}: {why}")]
    Broken {
        /// The method.
        method: Method,
        /// The path.
        path: String,
        /// What it did.
        why: String,
    },
    /// It refused.
    #[error("the VMM refused {method} {path}: {why}")]
    Refused {
        /// The method.
        method: Method,
        /// The path.
        path: String,
        /// Its words.
        why: String,
    },
}

/// One VMM's API.
#[derive(Clone, Debug)]
pub struct VmmClient {
    socket: PathBuf,
    within: Duration,
}

/// The part of `GET /` that matters.
#[derive(Clone, Debug, Deserialize)]
pub struct Info {
    /// `Not started`, `Running` or `Paused`.
    pub state: String,
}

#[derive(Deserialize)]
struct Config {
    drives: Vec<ConfigDrive>,
}

#[derive(Deserialize)]
struct ConfigDrive {
    drive_id: String,
}

impl VmmClient {
    /// A client of the VMM that listens on `socket`, each of whose requests may take `within`.
    #[must_use]
    pub fn new(socket: PathBuf, within: Duration) -> Self {
        Self { socket, within }
    }

    /// The socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// `GET /`.
    ///
    /// # Errors
    /// [`VmmError`].
    pub async fn info(&self) -> Result<Info, VmmError> {
        let text = self.request(Method::GET, "/", None, Vec::new()).await?;
        serde_json::from_str(&text).map_err(|error| VmmError::Broken {
            method: Method::GET,
            path: "/".to_owned(),
            why: error.to_string(),
        })
    }

    /// `PUT`.
    ///
    /// # Errors
    /// [`VmmError`].
    pub async fn put(&self, path: &str, body: &Value) -> Result<(), VmmError> {
        self.request(Method::PUT, path, Some(body), Vec::new()).await.map(drop)
    }

    /// `PUT`, with open files that the body calls `received:0` and so on.
    ///
    /// # Errors
    /// [`VmmError`].
    pub async fn put_with(&self, path: &str, body: &Value, files: Vec<OwnedFd>) -> Result<(), VmmError> {
        self.request(Method::PUT, path, Some(body), files).await.map(drop)
    }

    /// `DELETE` of a device: answered when the guest has let go of it, or has not within the 10 s that a VMM gives it.
    ///
    /// # Errors
    /// [`VmmError`].
    pub async fn delete(&self, path: &str) -> Result<(), VmmError> {
        let patient = Self { within: self.within + LETTING_GO, ..self.clone() };
        patient.request(Method::DELETE, path, None, Vec::new()).await.map(drop)
    }

    /// Ids of its drives: of `GET /vm/config` the part that matters.
    ///
    /// # Errors
    /// [`VmmError`].
    pub async fn drives(&self) -> Result<Vec<String>, VmmError> {
        const PATH: &str = "/vm/config";
        let text = self.get(PATH).await?;
        let config: Config = serde_json::from_str(&text).map_err(|error| VmmError::Broken {
            method: Method::GET,
            path: PATH.to_owned(),
            why: error.to_string(),
        })?;
        Ok(config.drives.into_iter().map(|drive| drive.drive_id).collect())
    }

    /// `PUT /actions`.
    ///
    /// # Errors
    /// [`VmmError`].
    pub async fn act(&self, action: &str) -> Result<(), VmmError> {
        self.put("/actions", &serde_json::json!({ "action_type": action })).await
    }

    /// `PATCH`, with open files that the body calls `received:0` and so on.
    ///
    /// # Errors
    /// [`VmmError`].
    pub async fn patch(&self, path: &str, body: &Value, files: Vec<OwnedFd>) -> Result<(), VmmError> {
        self.request(Method::PATCH, path, Some(body), files).await.map(drop)
    }

    /// `GET`, as text.
    ///
    /// # Errors
    /// [`VmmError`].
    pub async fn get(&self, path: &str) -> Result<String, VmmError> {
        self.request(Method::GET, path, None, Vec::new()).await
    }

    async fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        files: Vec<OwnedFd>,
    ) -> Result<String, VmmError> {
        let silent = VmmError::Silent { method: method.clone(), path: path.to_owned(), within: self.within };
        match timeout(self.within, self.exchange(method, path, body, files)).await {
            Ok(result) => result,
            Err(_) => Err(silent),
        }
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        files: Vec<OwnedFd>,
    ) -> Result<String, VmmError> {
        let stream = UnixStream::connect(&self.socket).await.map_err(VmmError::Unreachable)?;
        let broken = |why: String| VmmError::Broken { method: method.clone(), path: path.to_owned(), why };
        let (mut sender, connection) =
            http1::handshake(Lending { stream, files }).await.map_err(|error| broken(error.to_string()))?;
        let body = body.map(Value::to_string).unwrap_or_default();
        let request = Request::builder()
            .method(method.clone())
            .uri(path)
            .header("Host", "localhost")
            .header("Connection", "close")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| broken(error.to_string()))?;
        let answer = async {
            let response = sender.send_request(request).await.map_err(|error| broken(error.to_string()))?;
            let status = response.status();
            let body = Limited::new(response.into_body(), ANSWER_LEN_MAX).collect().await;
            let body = body.map_err(|error| broken(error.to_string()))?.to_bytes();
            Ok((status, String::from_utf8_lossy(&body).into_owned()))
        };
        // The connection does the work that `answer` waits for; it may end first.
        let mut connection = std::pin::pin!(connection);
        let mut answer = std::pin::pin!(answer);
        let mut over = false;
        let result: Result<(StatusCode, String), VmmError> = std::future::poll_fn(|cx| {
            if !over {
                over = connection.as_mut().poll(cx).is_ready();
            }
            answer.as_mut().poll(cx)
        })
        .await;
        let (status, text) = result?;
        if status.is_success() {
            return Ok(text);
        }
        let said = serde_json::from_str::<Value>(&text).ok();
        let why = said.as_ref().and_then(|said| said.get("fault_message")?.as_str()).unwrap_or(&text);
        Err(VmmError::Refused { method: method.clone(), path: path.to_owned(), why: why.to_owned() })
    }
}

/// A connection that sends open files along with its first bytes (`SCM_RIGHTS`, unix(7)).
struct Lending {
    stream: UnixStream,
    files: Vec<OwnedFd>,
}

impl Read for Lending {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut cursor: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        // Hyper's buffer may be uninitialised, which only unsafe code can hand on: read into one of our own.
        let mut bytes = [0; 4096];
        let len = bytes.len().min(cursor.remaining());
        let mut buffer = ReadBuf::new(&mut bytes[..len]);
        match Pin::new(&mut self.stream).poll_read(cx, &mut buffer) {
            Poll::Ready(Ok(())) => {
                cursor.put_slice(buffer.filled());
                Poll::Ready(Ok(()))
            }
            other => other,
        }
    }
}

impl Write for Lending {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.files.is_empty() {
            return Pin::new(&mut self.stream).poll_write(cx, bytes);
        }
        loop {
            if let Err(error) = std::task::ready!(self.stream.poll_write_ready(cx)) {
                return Poll::Ready(Err(error));
            }
            let numbers: Vec<i32> = self.files.iter().map(AsRawFd::as_raw_fd).collect();
            let sent = self.stream.try_io(Interest::WRITABLE, || {
                let rights = [ControlMessage::ScmRights(&numbers)];
                let socket = self.stream.as_raw_fd();
                Ok(sendmsg::<()>(socket, &[io::IoSlice::new(bytes)], &rights, MsgFlags::MSG_NOSIGNAL, None)?)
            });
            match sent {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
                Ok(len) => {
                    self.files.clear();
                    return Poll::Ready(Ok(len));
                }
            }
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
