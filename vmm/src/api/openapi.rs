//! The description of this API, generated from the types of `spec`.
//!
//! The functions stand for requests: their attributes are the description, their bodies are never needed. What
//! [`document`] generates is kept in the file `openapi.json` beside the manifest, which is what `--openapi` and
//! `GET /openapi.json` show; a test holds the two equal, and writes the file anew if `YUN_WRITE_OPENAPI` is set.

#![allow(dead_code, reason = "the functions only carry the attributes that describe requests")]

use utoipa::OpenApi;

use crate::events::Event;
use crate::spec::{
    ActionBody, BootSource, DriveBody, DrivePatch, Entropy, Fault, Logger, MachineConfig, MachineConfigPatch,
    Metrics, NetworkInterface, NetworkInterfacePatch, RateLimiter, RateLimiterPatch, Serial, Version,
    VmConfig, VmInfo, VmStateBody, Vsock,
};

/// What the microVM is and does. Always allowed.
#[utoipa::path(get, path = "/", responses((status = 200, body = VmInfo)))]
fn get_info() {}

/// The release of Firecracker's API that this one follows. Always allowed.
#[utoipa::path(get, path = "/version", responses((status = 200, body = Version)))]
fn get_version() {}

/// Everything that was configured. Always allowed.
#[utoipa::path(get, path = "/vm/config", responses((status = 200, body = VmConfig)))]
fn get_vm_config() {}

/// vCPUs and memory. Always allowed.
#[utoipa::path(get, path = "/machine-config", responses((status = 200, body = MachineConfig)))]
fn get_machine_config() {}

/// The metrics as OpenMetrics text. Always allowed. (Not in Firecracker.)
#[utoipa::path(get, path = "/metrics",
    responses((status = 200, body = String, content_type = "application/openmetrics-text")))]
fn get_metrics() {}

/// What happened and happens to the microVM: one JSON object per line, past events first, then each as it comes, until
/// the microVM has ended. Always allowed. (Not in Firecracker.)
#[utoipa::path(get, path = "/events",
    params(("since" = Option<u64>, Query, description = "Sequence number of the last event known already")),
    responses((status = 200, body = Event, content_type = "application/x-ndjson"), (status = 400, body = Fault)))]
fn get_events() {}

/// This description. Always allowed. (Not in Firecracker.)
#[utoipa::path(get, path = "/openapi.json", responses((status = 200, body = Object)))]
fn get_openapi() {}

/// Pause or resume the microVM. After the start only; asking for what is so already succeeds.
#[utoipa::path(patch, path = "/vm", request_body = VmStateBody,
    responses((status = 204), (status = 400, body = Fault)))]
fn patch_vm() {}

/// Do something once.
#[utoipa::path(put, path = "/actions", request_body = ActionBody,
    responses((status = 204), (status = 400, body = Fault)))]
fn put_actions() {}

/// Set vCPUs and memory. Before the start only.
#[utoipa::path(put, path = "/machine-config", request_body = MachineConfig,
    responses((status = 204), (status = 400, body = Fault)))]
fn put_machine_config() {}

/// Change vCPUs or memory. Before the start only.
#[utoipa::path(patch, path = "/machine-config", request_body = MachineConfigPatch,
    responses((status = 204), (status = 400, body = Fault)))]
fn patch_machine_config() {}

/// Set what the guest boots. Before the start only.
#[utoipa::path(put, path = "/boot-source", request_body = BootSource,
    responses((status = 204), (status = 400, body = Fault)))]
fn put_boot_source() {}

/// Add a drive, or replace it. After the start, over PCI: add one, which the guest notices by itself.
#[utoipa::path(put, path = "/drives/{drive_id}", request_body = DriveBody,
    params(("drive_id" = String, Path, description = "Alphanumeric characters and underscores")),
    responses((status = 204), (status = 400, body = Fault)))]
fn put_drive() {}

/// Take a drive away from a guest that runs, over PCI. Answered when the guest has let go of it, which may take 10 s; a guest that
/// does not keeps it.
#[utoipa::path(delete, path = "/drives/{drive_id}",
    params(("drive_id" = String, Path, description = "Alphanumeric characters and underscores")),
    responses((status = 204), (status = 400, body = Fault)))]
fn delete_drive() {}

/// Give a drive another image or other limits. After the start only.
#[utoipa::path(patch, path = "/drives/{drive_id}", request_body = DrivePatch,
    params(("drive_id" = String, Path, description = "Alphanumeric characters and underscores")),
    responses((status = 204), (status = 400, body = Fault)))]
fn patch_drive() {}

/// Add a network interface, or replace it. After the start, over PCI: add one, which the guest notices by itself.
#[utoipa::path(put, path = "/network-interfaces/{iface_id}", request_body = NetworkInterface,
    params(("iface_id" = String, Path, description = "Alphanumeric characters and underscores")),
    responses((status = 204), (status = 400, body = Fault)))]
fn put_network_interface() {}

/// Take a network interface away from a guest that runs, over PCI. Answered as that of a drive.
#[utoipa::path(delete, path = "/network-interfaces/{iface_id}",
    params(("iface_id" = String, Path, description = "Alphanumeric characters and underscores")),
    responses((status = 204), (status = 400, body = Fault)))]
fn delete_network_interface() {}

/// Give a network interface other limits. After the start only.
#[utoipa::path(patch, path = "/network-interfaces/{iface_id}", request_body = NetworkInterfacePatch,
    params(("iface_id" = String, Path, description = "Alphanumeric characters and underscores")),
    responses((status = 204), (status = 400, body = Fault)))]
fn patch_network_interface() {}

/// Make a group of rate limits that drives and interfaces draw on together, beside their own, or give it other ones. Allowed before
/// the start and after it. (Not in Firecracker.)
#[utoipa::path(put, path = "/rate-limiter-groups/{group_id}", request_body = RateLimiter,
    params(("group_id" = String, Path, description = "Alphanumeric characters and underscores")),
    responses((status = 204), (status = 400, body = Fault)))]
fn put_rate_limiter_group() {}

/// Change a group of rate limits: a bucket that is missing stays, one of zeros takes the limit away. (Not in Firecracker.)
#[utoipa::path(patch, path = "/rate-limiter-groups/{group_id}", request_body = RateLimiter,
    params(("group_id" = String, Path, description = "Alphanumeric characters and underscores")),
    responses((status = 204), (status = 400, body = Fault)))]
fn patch_rate_limiter_group() {}

/// The limits of a group. (Not in Firecracker.)
#[utoipa::path(get, path = "/rate-limiter-groups/{group_id}",
    params(("group_id" = String, Path, description = "Alphanumeric characters and underscores")),
    responses((status = 200, body = RateLimiter), (status = 400, body = Fault)))]
fn get_rate_limiter_group() {}

/// Remove a group of rate limits that no device names. (Not in Firecracker.)
#[utoipa::path(delete, path = "/rate-limiter-groups/{group_id}",
    params(("group_id" = String, Path, description = "Alphanumeric characters and underscores")),
    responses((status = 204), (status = 400, body = Fault)))]
fn delete_rate_limiter_group() {}

/// Add the random number device, or replace it. Before the start only.
#[utoipa::path(put, path = "/entropy", request_body = Entropy,
    responses((status = 204), (status = 400, body = Fault)))]
fn put_entropy() {}

/// Add the socket device, or replace it. Before the start only.
#[utoipa::path(put, path = "/vsock", request_body = Vsock,
    responses((status = 204), (status = 400, body = Fault)))]
fn put_vsock() {}

/// Give the random number device other limits. After the start only. (Not in Firecracker.)
#[utoipa::path(patch, path = "/entropy", request_body = RateLimiterPatch,
    responses((status = 204), (status = 400, body = Fault)))]
fn patch_entropy() {}

/// Give the socket device other limits. After the start only. (Not in Firecracker.)
#[utoipa::path(patch, path = "/vsock", request_body = RateLimiterPatch,
    responses((status = 204), (status = 400, body = Fault)))]
fn patch_vsock() {}

/// Set where the serial console writes. Before the start only.
#[utoipa::path(put, path = "/serial", request_body = Serial,
    responses((status = 204), (status = 400, body = Fault)))]
fn put_serial() {}

/// Set how and where the VMM logs. Before the start only.
#[utoipa::path(put, path = "/logger", request_body = Logger,
    responses((status = 204), (status = 400, body = Fault)))]
fn put_logger() {}

/// Set where metrics are written. Before the start only, and once.
#[utoipa::path(put, path = "/metrics", request_body = Metrics,
    responses((status = 204), (status = 400, body = Fault)))]
fn put_metrics() {}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Yun microVM API",
        description = "One microVM over its Unix socket: Firecracker's API, with additions. Every refusal has status \
                       400 and a fault_message."
    ),
    paths(
        get_info,
        get_version,
        get_vm_config,
        get_machine_config,
        get_metrics,
        get_events,
        get_openapi,
        patch_vm,
        put_actions,
        put_machine_config,
        patch_machine_config,
        put_boot_source,
        put_drive,
        patch_drive,
        delete_drive,
        put_network_interface,
        patch_network_interface,
        delete_network_interface,
        put_rate_limiter_group,
        patch_rate_limiter_group,
        get_rate_limiter_group,
        delete_rate_limiter_group,
        put_entropy,
        patch_entropy,
        put_vsock,
        patch_vsock,
        put_serial,
        put_logger,
        put_metrics
    )
)]
struct Api;

/// Generates the description from the types.
pub fn document() -> String {
    let mut text = Api::openapi().to_pretty_json().expect("the description has string keys only");
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::OPENAPI_DOCUMENT;

    #[test]
    fn the_description_that_is_shown_is_the_one_generated_from_the_types() {
        let generated = document();
        if std::env::var_os("YUN_WRITE_OPENAPI").is_some() {
            std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.json"), &generated).unwrap();
            return;
        }
        assert!(
            generated == OPENAPI_DOCUMENT,
            "vmm/openapi.json is out of date: run YUN_WRITE_OPENAPI=1 cargo test -p vmm --lib openapi"
        );
    }

    #[test]
    fn every_request_it_describes_is_understood_by_the_router() {
        use crate::api::{Method, route};
        let document: serde_json::Value = serde_json::from_str(&document()).unwrap();
        for (path, methods) in document["paths"].as_object().unwrap() {
            let path = path.replace("{drive_id}", "a").replace("{iface_id}", "a").replace("{group_id}", "a");
            for method in methods.as_object().unwrap().keys() {
                let method = Method::parse(&method.to_uppercase()).unwrap();
                let has_body = matches!(method, Method::Put | Method::Patch);
                let body: &[u8] = if has_body { b"not json" } else { b"" };
                match route(method, &path, body) {
                    Ok(_) => assert!(!has_body, "{method:?} {path}"),
                    Err(error) => {
                        assert!(error.to_string().contains("deserializing"), "{method:?} {path}: {error}")
                    }
                }
            }
        }
    }
}
