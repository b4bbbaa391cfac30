//! Networks as the agent sees them.

use std::sync::Arc;

use super::core::Agent;
use super::model::{Denial, SubnetSpec, VmSpec};
use super::records::{InterfaceRecord, VmRecord};
use super::state::Key;

impl Agent {
    pub(super) fn check_prefixes(&self, _key: &Key, _spec: &SubnetSpec) -> Result<(), Denial> {
        Ok(())
    }

    pub(super) fn choose_interfaces(
        &self,
        _key: &Key,
        _id: &str,
        spec: &VmSpec,
        _old: Option<&VmRecord>,
    ) -> Result<Vec<InterfaceRecord>, Denial> {
        if spec.interfaces.is_empty() {
            Ok(Vec::new())
        } else {
            Err(Denial::invalid("spec.interfaces: this agent has no network"))
        }
    }

    pub(super) async fn change_classes(
        self: &Arc<Self>,
        _old: &VmRecord,
        _new: &VmRecord,
    ) -> Result<(), Denial> {
        Ok(())
    }

    pub(super) fn guest_network(&self, _record: &VmRecord) -> (Option<String>, Option<String>) {
        (None, None)
    }

    pub(super) async fn unplug(self: &Arc<Self>, _record: &VmRecord) {}
}
