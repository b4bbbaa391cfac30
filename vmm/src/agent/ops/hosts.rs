//! The host: drain, undrain, planned shutdown.

use std::sync::Arc;
use std::time::Duration;

use super::super::core::{Agent, HOST};
use super::super::events::Happened;
use super::super::host::numa_nodes;
use super::super::model::{Denial, DenialCode, Host, HostState, OperationKind};
use super::super::operations::{About, Op};
use super::super::records::{HostRecord, Phase};
use super::super::state::in_words;
use super::super::store::{Batch, Table};

/// How often a drain looks how far it is.
const LOOK: Duration = Duration::from_millis(50);

impl Agent {
    /// What is shown of the host.
    #[must_use]
    pub fn host_view(&self) -> Host {
        let state = self.state();
        let [vcpus, memory_mib, disk_mib] = self.resources.capacities(&self.config, state.allocated());
        Host {
            name: nix::unistd::gethostname()
                .map(|name| name.to_string_lossy().into_owned())
                .unwrap_or_default(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            state: state.host.state,
            vcpus,
            memory_mib,
            disk_mib,
            numa: numa_nodes(),
            vms: state.vms.len() as u64,
            vms_running: state.vms.values().filter(|vm| vm.runtime.phase == Phase::Running).count() as u64,
            agent_started_at: self.started_at.clone(),
            boot_id: self.boot.clone(),
        }
    }

    async fn set_host(&self, record: HostRecord, kind: &'static str, requestor: &str) -> Result<(), Denial> {
        let mut batch = Batch::new();
        batch.put(Table::Host, HOST, &record);
        let happened = Happened {
            kind,
            tenant: None,
            target: None,
            requestor: requestor.to_owned(),
            detail: String::new(),
        };
        self.commit(batch, [happened]).await?;
        let mut state = self.state();
        state.host = record;
        state.vms.values().for_each(|vm| vm.live.changed.notify_one());
        Ok(())
    }

    /// Stops admission at once, and then VMs by their policy (a shutdown: all). What they are wanted to be stays.
    ///
    /// # Errors
    /// [`DenialCode::State`] if the host is about to be switched off.
    pub async fn drain(self: &Arc<Self>, shutdown: bool, requestor: &str) -> Result<Arc<Op>, Denial> {
        let _turn = self.admission.lock().await;
        if self.state().host.state == HostState::ShuttingDown && !shutdown {
            return Err(Denial::new(DenialCode::State, "the host is about to be switched off")
                .hint("`undrain` takes that back"));
        }
        let (kind, told, record) = if shutdown {
            let record =
                HostRecord { state: HostState::ShuttingDown, shutdown_boot: Some(self.boot.clone()) };
            (OperationKind::HostShutdown, "host.shutting_down", record)
        } else {
            let record = HostRecord { state: HostState::Draining, shutdown_boot: None };
            (OperationKind::HostDrain, "host.draining", record)
        };
        let op = self.operations.begin(About {
            kind,
            tenant: None,
            target: "host".to_owned(),
            unit: "vms",
            cancellable: false,
            requestor: requestor.to_owned(),
        })?;
        if let Err(denial) = self.set_host(record, told, requestor).await {
            op.end(Err(denial.clone()));
            return Err(denial);
        }
        op.work().progress().expect(self.left_to_stop());
        let (agent, task_op) = (Arc::clone(self), Arc::clone(&op));
        tokio::spawn(async move { agent.follow_drain(&task_op, shutdown).await });
        Ok(op)
    }

    /// VMs that run and are to stop.
    fn left_to_stop(&self) -> u64 {
        let state = self.state();
        let left = state
            .vms
            .values()
            .filter(|vm| vm.runtime.phase != Phase::Stopped && state.holds(vm.record.spec.drain));
        left.count() as u64
    }

    async fn follow_drain(&self, op: &Op, shutdown: bool) {
        loop {
            let host = self.state().host.state;
            if !matches!(host, HostState::Draining | HostState::ShuttingDown) {
                return op.cancelled(&format!("the host is {} again", in_words(host)));
            }
            let left = self.left_to_stop();
            let progress = op.work().progress();
            progress.advance(progress.total().saturating_sub(left).saturating_sub(progress.done()));
            if left == 0 {
                break;
            }
            tokio::time::sleep(LOOK).await;
        }
        if shutdown {
            return op.end(Ok(()));
        }
        let _turn = self.admission.lock().await;
        if self.state().host.state != HostState::Draining {
            return op.cancelled("something else was asked for");
        }
        let record = HostRecord { state: HostState::Drained, shutdown_boot: None };
        op.end(self.set_host(record, "host.drained", &op.about().requestor).await);
    }

    /// Takes VMs again; those that a drain stopped start.
    ///
    /// # Errors
    /// What the store says.
    pub async fn undrain(self: &Arc<Self>, requestor: &str) -> Result<Host, Denial> {
        let _turn = self.admission.lock().await;
        if self.state().host.state != HostState::Active {
            self.set_host(HostRecord::default(), "host.active", requestor).await?;
        }
        Ok(self.host_view())
    }
}
