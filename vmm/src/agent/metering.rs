//! Usage as it is read from VMs.

use std::sync::Arc;

use super::core::Agent;
use super::state::Key;
use super::vms::client::VmmClient;

impl Agent {
    pub(super) async fn last_sample(self: &Arc<Self>, _key: &Key, _client: Option<&VmmClient>) {}
}
