//! Networks as the agent sees them.

use std::sync::Arc;

use super::core::Agent;
use super::model::{Denial, EgressClass, Leftover, Name, SubnetSpec, Vm, VmPut, VmSpec};
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

    pub(super) async fn set_class(
        self: &Arc<Self>,
        key: &Key,
        interface: &Name,
        class: EgressClass,
        requestor: &str,
    ) -> Result<Vm, Denial> {
        let (mut spec, generation) = {
            let state = self.state();
            let vm = state.vm(key)?;
            (vm.record.spec.clone(), vm.record.generation)
        };
        let found = spec.interfaces.iter_mut().find(|other| other.name == *interface);
        found.ok_or_else(|| Denial::not_found("interface", interface))?.class = class;
        let put = VmPut { generation: Some(generation + 1), spec };
        Ok(self.put_vm(key, put, false, requestor).await?.0)
    }

    pub(super) fn lists(&self) -> serde_json::Value {
        serde_json::Value::Null
    }

    pub(super) async fn put_list(
        self: &Arc<Self>,
        _list: &str,
        _body: &[u8],
        _requestor: &str,
    ) -> Result<serde_json::Value, Denial> {
        Err(Denial::invalid("this agent has no network"))
    }

    pub(super) fn network_leftovers(&self) -> Result<Vec<Leftover>, Denial> {
        Ok(Vec::new())
    }

    pub(super) async fn remove_network_leftover(
        self: &Arc<Self>,
        _leftover: &Leftover,
    ) -> Result<(), String> {
        Ok(())
    }

    pub(super) async fn traffic(self: &Arc<Self>) -> super::metering::Traffic {
        super::metering::Traffic::default()
    }

    pub(super) async fn unplug(self: &Arc<Self>, _record: &VmRecord) {}
}
