//! The bill: records of usage as a document that is made while it is read.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::response::Response;
use futures_util::{StreamExt, stream};
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use super::super::core::{Agent, blocking};
use super::super::model::{Denial, Name};
use super::super::usage::{Record, focus};
use super::auth::Caller;
use super::reply::Params;
use super::routes::{typed, visible};
use crate::utc::Utc;

/// Form of a usage report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum UsageFormat {
    /// A list of objects.
    #[default]
    Json,
    /// A table with a line of names.
    Csv,
}

/// Parameters of a usage report.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct UsageQuery {
    /// Only of this tenant.
    tenant: Option<Name>,
    /// Only of this VM or volume.
    vm: Option<Name>,
    /// From when on (RFC 3339).
    from: Option<String>,
    /// Until when (RFC 3339).
    to: Option<String>,
    /// Its form.
    format: UsageFormat,
}

fn point(field: &str, text: Option<&String>, default: u64) -> Result<u64, Denial> {
    let Some(text) = text else { return Ok(default) };
    Utc::parse(text).map(Utc::as_nanos).ok_or_else(|| {
        let text: String = text.chars().take(80).collect();
        Denial::invalid(format!(
            "{field} {text:?} is no time: accepted is RFC 3339 in UTC, such as 2026-11-24T00:00:00Z"
        ))
    })
}

/// What was used, as rows with the column names of FOCUS. Samples are taken before it is written.
#[utoipa::path(get, path = "/v1/usage", tag = "usage", params(UsageQuery),
    responses((status = 200, body = Vec<focus::Row>), (status = 200, body = String, content_type = "text/csv")))]
pub(super) async fn usage(
    State(agent): State<Arc<Agent>>,
    Extension(caller): Extension<Caller>,
    Params(query): Params<UsageQuery>,
) -> Result<Response, Denial> {
    let names = visible(&agent, &caller);
    if let Some(tenant) = query.tenant.as_ref().filter(|tenant| !names.contains(tenant)) {
        return Err(Denial::not_found("tenant", tenant));
    }
    let from_ns = point("from", query.from.as_ref(), 0)?;
    let to_ns = point("to", query.to.as_ref(), u64::MAX)?;
    agent.sample_for_a_reader().await;
    // By id: a name may have been another's before.
    let theirs: BTreeMap<String, String> = {
        let state = agent.state();
        let id = |name: &Name| Some((name.to_string(), state.tenants.get(name)?.id.clone()));
        names.iter().filter_map(id).collect()
    };
    // Of tenants that are gone, administrators still see what they used.
    let theirs = (!caller.admin).then_some(theirs);
    let provider = agent.host_view().name;
    let format = query.format;
    let writer = match format {
        UsageFormat::Json => focus::Writer::json(&provider),
        UsageFormat::Csv => focus::Writer::csv(&provider),
    };
    let mut bill = Bill {
        agent,
        wanted: Wanted { theirs, tenant: query.tenant, vm: query.vm, from_ns, to_ns },
        next: Some(Agent::usage_from(from_ns)),
        writer: Some(writer),
    };
    // What can't be read at all is refused; what fails later breaks the answer off.
    let first = bill.piece().await.transpose()?;
    let more = stream::unfold(bill, |mut bill| async move { Some((bill.piece().await?, bill)) });
    let pieces = stream::iter(first.map(Ok)).chain(more).map(|piece| piece.map_err(io::Error::other));
    Ok(match format {
        UsageFormat::Json => typed("application/json", Body::from_stream(pieces)),
        UsageFormat::Csv => typed("text/csv; charset=utf-8", Body::from_stream(pieces)),
    })
}

/// Which records are in a bill.
#[derive(Clone)]
struct Wanted {
    /// Ids of the tenants whose usage the caller may see, by name; nothing if that is everybody's.
    theirs: Option<BTreeMap<String, String>>,
    tenant: Option<Name>,
    vm: Option<Name>,
    from_ns: u64,
    to_ns: u64,
}

impl Wanted {
    fn has(&self, record: &Record) -> bool {
        let owner = &record.owner;
        (self.from_ns..self.to_ns).contains(&record.start_ns)
            && self.theirs.as_ref().is_none_or(|ids| ids.get(&owner.tenant) == Some(&owner.tenant_id))
            && self.tenant.as_ref().is_none_or(|tenant| tenant.as_str() == owner.tenant)
            && self.vm.as_ref().is_none_or(|vm| vm.as_str() == owner.vm)
    }
}

/// A bill that is being read.
struct Bill {
    agent: Arc<Agent>,
    wanted: Wanted,
    /// Key of the next record; none after the last.
    next: Option<String>,
    /// Gone after the end.
    writer: Option<focus::Writer>,
}

impl Bill {
    /// Its next bytes; `None` after the last.
    async fn piece(&mut self) -> Option<Result<Bytes, Denial>> {
        loop {
            let writer = self.writer.take()?;
            let mut bytes = Vec::new();
            let written = match self.next.take() {
                None => writer.end(&mut bytes).map_err(|error| Denial::host(error.to_string())),
                Some(from) => match self.page(from, writer).await {
                    Ok((made, kept)) => {
                        (bytes, self.writer) = (made, Some(kept));
                        Ok(())
                    }
                    Err(denial) => Err(denial),
                },
            };
            match written {
                Err(denial) => return Some(Err(denial)),
                Ok(()) if bytes.is_empty() => {}
                Ok(()) => return Some(Ok(bytes.into())),
            }
        }
    }

    /// A page of it, made where it holds up nobody.
    async fn page(
        &mut self,
        from: String,
        mut writer: focus::Writer,
    ) -> Result<(Vec<u8>, focus::Writer), Denial> {
        let (mut records, next) = self.agent.usage(from).await?;
        self.next = next;
        let wanted = self.wanted.clone();
        blocking(move || {
            records.retain(|record| wanted.has(record));
            let mut bytes = Vec::new();
            writer.add(&records, &mut bytes).map_err(|error| Denial::host(error.to_string()))?;
            Ok((bytes, writer))
        })
        .await
    }
}
