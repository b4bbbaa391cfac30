//! Whether what was allowed still is: streams outlive the request that began them.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use axum::http::Method;

use super::super::core::Agent;
use super::auth::{Caller, authorize};

/// How soon who lost their access loses their streams.
const LOOK: Duration = Duration::from_secs(2);

/// What a request was allowed, and to whom.
#[derive(Clone)]
pub(super) struct Permit {
    pub(super) agent: Arc<Agent>,
    pub(super) caller: Caller,
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) query: String,
}

impl Permit {
    /// Ends, within some seconds, when the request would be refused by now.
    pub(super) async fn revoked(self) {
        if self.caller.admin {
            // By a flag of the agent's, as long as it runs.
            return pending().await;
        }
        loop {
            tokio::time::sleep(LOOK).await;
            let tenants = &self.agent.state().tenants;
            if authorize(&self.caller, tenants, &self.method, &self.path, &self.query).is_err() {
                return;
            }
        }
    }
}
