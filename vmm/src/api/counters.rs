//! What the API counts, under Firecracker's names.

use std::sync::Arc;

use super::Method;
use crate::metrics::{Count, Group, MetricKind, MetricSource, Metrics, Reading};

/// Requests of one kind, and how many of them were refused.
#[derive(Debug, Default)]
pub struct Tally {
    /// All.
    pub count: Count,
    /// Those that were refused.
    pub fails: Count,
}

/// Names of the resources counted for one method, with the names of their two counters.
type Names = &'static [(&'static str, &'static str, &'static str)];

const GET: Names = &[
    ("", "instance_info_count", "instance_info_fails"),
    ("machine-config", "machine_cfg_count", "machine_cfg_fails"),
    ("version", "vmm_version_count", "vmm_version_fails"),
    ("vm", "vm_config_count", "vm_config_fails"),
];
const PUT: Names = &[
    ("actions", "actions_count", "actions_fails"),
    ("boot-source", "boot_source_count", "boot_source_fails"),
    ("drives", "drive_count", "drive_fails"),
    ("logger", "logger_count", "logger_fails"),
    ("machine-config", "machine_cfg_count", "machine_cfg_fails"),
    ("metrics", "metrics_count", "metrics_fails"),
    ("network-interfaces", "network_count", "network_fails"),
    ("serial", "serial_count", "serial_fails"),
    ("entropy", "entropy_count", "entropy_fails"),
    ("vsock", "vsock_count", "vsock_fails"),
];
const PATCH: Names = &[
    ("drives", "drive_count", "drive_fails"),
    ("entropy", "entropy_count", "entropy_fails"),
    ("machine-config", "machine_cfg_count", "machine_cfg_fails"),
    ("network-interfaces", "network_count", "network_fails"),
    ("vm", "vm_count", "vm_fails"),
    ("vsock", "vsock_count", "vsock_fails"),
];

/// The requests of one method.
#[derive(Debug)]
struct Requests {
    names: Names,
    tallies: Vec<Tally>,
}

impl Requests {
    fn new(names: Names) -> Arc<Self> {
        Arc::new(Self { names, tallies: names.iter().map(|_| Tally::default()).collect() })
    }

    fn of(&self, resource: &str) -> Option<&Tally> {
        let place = self.names.iter().position(|(name, ..)| *name == resource)?;
        self.tallies.get(place)
    }
}

impl MetricSource for Requests {
    fn read(&self, each: &mut dyn FnMut(Reading)) {
        for ((_, count, fails), tally) in self.names.iter().zip(&self.tallies) {
            each(Reading { name: count, kind: MetricKind::Counter, value: tally.count.get() });
            each(Reading { name: fails, kind: MetricKind::Counter, value: tally.fails.get() });
        }
    }
}

/// What concerns the API as a whole.
#[derive(Debug, Default)]
pub struct ApiServerCounters {
    /// Microseconds from the start of the process to the start of the API (if the starter said when that was).
    pub process_startup_time_us: Count,
    /// CPU microseconds of the same.
    pub process_startup_time_cpu_us: Count,
    /// Connections that were turned away because there were too many.
    pub connections_refused: Count,
    /// Connections that ended because of a malformed, cut off or too slow request.
    pub framing_errors: Count,
    /// Requests that used something deprecated.
    pub deprecated_http_api_calls: Count,
}

impl MetricSource for ApiServerCounters {
    fn read(&self, each: &mut dyn FnMut(Reading)) {
        let gauge = |name, count: &Count| Reading { name, kind: MetricKind::Gauge, value: count.get() };
        let counter = |name, count: &Count| Reading { name, kind: MetricKind::Counter, value: count.get() };
        each(gauge("process_startup_time_us", &self.process_startup_time_us));
        each(gauge("process_startup_time_cpu_us", &self.process_startup_time_cpu_us));
        each(counter("connections_refused", &self.connections_refused));
        each(counter("framing_errors", &self.framing_errors));
        each(counter("deprecated_http_api_calls", &self.deprecated_http_api_calls));
    }
}

/// Everything the API counts.
#[derive(Debug)]
pub struct ApiCounters {
    get: Arc<Requests>,
    put: Arc<Requests>,
    patch: Arc<Requests>,
    /// What concerns the API as a whole.
    pub server: Arc<ApiServerCounters>,
}

impl Default for ApiCounters {
    fn default() -> Self {
        Self {
            get: Requests::new(GET),
            put: Requests::new(PUT),
            patch: Requests::new(PATCH),
            server: Arc::default(),
        }
    }
}

impl ApiCounters {
    /// Where to count a request, if requests of its kind are counted.
    pub fn of(&self, method: Method, target: &str) -> Option<&Tally> {
        let resource = target.trim_start_matches('/').split(['/', '?']).next().unwrap_or("");
        match method {
            Method::Get => self.get.of(resource),
            Method::Put => self.put.of(resource),
            Method::Patch => self.patch.of(resource),
            Method::Delete => None,
        }
    }

    /// Counters at zero, which `metrics` shows.
    pub fn registered_with(metrics: &Metrics) -> Arc<Self> {
        let counters = Self::default();
        let sources: [(&'static str, Arc<dyn MetricSource>); 4] = [
            ("api_server", counters.server.clone()),
            ("get_api_requests", counters.get.clone()),
            ("put_api_requests", counters.put.clone()),
            ("patch_api_requests", counters.patch.clone()),
        ];
        for (family, source) in sources {
            metrics.register(Group::single(family), source);
        }
        Arc::new(counters)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_method_and_first_segment_and_shown_among_the_metrics() {
        let metrics = Metrics::new();
        let counters = ApiCounters::registered_with(&metrics);
        counters.of(Method::Put, "/drives/a").unwrap().count.inc();
        counters.of(Method::Get, "/").unwrap().fails.inc();
        assert!(counters.of(Method::Get, "/nope").is_none());
        let file = tempfile::NamedTempFile::new().unwrap();
        let metrics_path = file.path().to_str().unwrap().to_owned();
        metrics.open(&crate::spec::Metrics { metrics_path }).unwrap();
        let line: serde_json::Value = serde_json::from_reader(file.reopen().unwrap()).unwrap();
        assert_eq!(line["put_api_requests"]["drive_count"], 1);
        assert_eq!(line["get_api_requests"]["instance_info_fails"], 1);
        assert!(!line["api_server"].is_null() && !line["patch_api_requests"].is_null());
    }
}
