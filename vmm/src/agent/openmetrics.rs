//! What the agent counts, as OpenMetrics text.

use std::fmt::Write;

use super::core::Agent;
use super::model::ActualState;
use super::vms::process::rss_kib;

/// States in the order in which they are shown.
const STATES: [ActualState; 8] = [
    ActualState::Stopped,
    ActualState::Starting,
    ActualState::Running,
    ActualState::Paused,
    ActualState::Stopping,
    ActualState::Failed,
    ActualState::Unknown,
    ActualState::Deleting,
];

impl Agent {
    /// The text, with its end.
    #[must_use]
    pub fn openmetrics(&self) -> String {
        let host = self.host_view();
        let states: Vec<ActualState> = self.state().vms.values().map(|vm| vm.view().status.state).collect();
        let operations = self.operations.list().iter().filter(|op| op.is_running()).count();
        let mut text = String::new();
        let mut gauge = |name: &str, help: &str, readings: &[(String, u64)]| {
            let _ = writeln!(text, "# TYPE yun_{name} gauge\n# HELP yun_{name} {help}");
            for (labels, value) in readings {
                let _ = writeln!(text, "yun_{name}{labels} {value}");
            }
        };
        let vms: Vec<(String, u64)> = STATES
            .iter()
            .map(|state| {
                let count = states.iter().filter(|other| *other == state).count() as u64;
                (format!("{{state=\"{}\"}}", state.in_a_word()), count)
            })
            .collect();
        gauge("vms", "VMs by what they do.", &vms);
        for (name, capacity) in
            [("vcpus", host.vcpus), ("memory_mib", host.memory_mib), ("disk_mib", host.disk_mib)]
        {
            let readings = [
                ("total", capacity.total),
                ("reserved", capacity.reserved),
                ("allocatable", capacity.allocatable),
                ("allocated", capacity.allocated),
            ]
            .map(|(kind, value)| (format!("{{kind=\"{kind}\"}}"), value));
            gauge(&format!("host_{name}"), "What the host has and has given out.", &readings);
        }
        gauge("operations_running", "Operations under way.", &[(String::new(), operations as u64)]);
        gauge("events_last", "Number of the last event.", &[(String::new(), self.events.last())]);
        gauge("audit_last", "Number of the last audit record.", &[(String::new(), self.audit.last_seq())]);
        let pid = i32::try_from(std::process::id()).unwrap_or(0);
        gauge("agent_rss_kib", "Memory of the agent.", &[(String::new(), rss_kib(pid).unwrap_or(0))]);
        text.push_str("# EOF\n");
        text
    }
}
