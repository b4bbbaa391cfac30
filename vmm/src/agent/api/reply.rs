//! Answers: JSON, or a denial with the status of its code; and what a request's parts are read as.

use axum::Json;
use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;

use super::super::model::{Denial, DenialCode, ErrorBody, Name};
use super::super::state::Key;

impl IntoResponse for Denial {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let code = self.code;
        let mut response = (status, Json(ErrorBody { error: self.clone() })).into_response();
        response.extensions_mut().insert(self);
        if code == DenialCode::TooMany {
            response.headers_mut().insert(header::RETRY_AFTER, header::HeaderValue::from_static("1"));
        }
        response
    }
}

/// A body, as JSON. The bytes are there already: see `server`.
pub struct Body<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Denial;

    async fn from_request(request: Request, state: &S) -> Result<Self, Denial> {
        let bytes = Bytes::from_request(request, state).await;
        let bytes = bytes.map_err(|error| Denial::invalid(format!("the body can't be read: {error}")))?;
        if bytes.is_empty() {
            return Err(Denial::invalid("the request needs a body, in JSON"));
        }
        serde_json::from_slice(&bytes).map(Self).map_err(|error| {
            Denial::invalid(format!("the body is not what is accepted: {error}"))
                .hint("GET /v1/openapi.json describes it")
        })
    }
}

/// Parameters behind the `?`.
pub struct Params<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Params<T> {
    type Rejection = Denial;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Denial> {
        match Query::<T>::from_request_parts(parts, state).await {
            Ok(Query(params)) => Ok(Self(params)),
            Err(error) => Err(Denial::invalid(error.body_text())),
        }
    }
}

/// The variable parts of a path.
pub struct At<T>(pub T);

/// The name in a path.
pub type One = At<Name>;

/// A tenant's name and that of something of its.
pub type Two = At<Key>;

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for At<T> {
    type Rejection = Denial;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Denial> {
        match Path::<T>::from_request_parts(parts, state).await {
            Ok(Path(found)) => Ok(Self(found)),
            Err(error) => Err(Denial::invalid(error.body_text())),
        }
    }
}
