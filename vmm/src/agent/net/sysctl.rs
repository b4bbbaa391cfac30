//! Settings of the kernel below /proc/sys/net, of the network namespace that the caller is in.

use std::fs;
use std::io;

/// A setting that could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("can't {verb} /proc/sys/net/{key}")]
pub struct SysctlError {
    verb: &'static str,
    key: String,
    source: io::Error,
}

/// What a setting is.
pub(super) fn get(key: &str) -> Result<String, SysctlError> {
    let text = fs::read_to_string(format!("/proc/sys/net/{key}"));
    let text = text.map_err(|source| SysctlError { verb: "read", key: key.to_owned(), source })?;
    Ok(text.trim().to_owned())
}

/// Makes a setting this, if it is not.
pub(super) fn set(key: &str, value: &str) -> Result<(), SysctlError> {
    if get(key)? == value {
        return Ok(());
    }
    fs::write(format!("/proc/sys/net/{key}"), value).map_err(|source| SysctlError {
        verb: "write",
        key: key.to_owned(),
        source,
    })
}

/// What a TAP must be before it is up: a router's port that believes nothing that it hears.
pub(super) fn prepare_tap(tap: &str, ipv6: bool) -> Result<(), SysctlError> {
    for (key, value) in [
        ("forwarding", "1"),
        ("rp_filter", "1"),
        ("log_martians", "0"),
        ("accept_redirects", "0"),
        ("secure_redirects", "0"),
        ("send_redirects", "0"),
        ("accept_source_route", "0"),
        ("accept_local", "0"),
        ("arp_accept", "0"),
        // For guests that think of their subnet as one link; the ruleset says whom they may ask for.
        ("proxy_arp", "1"),
    ] {
        set(&format!("ipv4/conf/{tap}/{key}"), value)?;
    }
    set(&format!("ipv4/neigh/{tap}/proxy_delay"), "0")?;
    if !ipv6 {
        return set(&format!("ipv6/conf/{tap}/disable_ipv6"), "1");
    }
    for (key, value) in [
        ("disable_ipv6", "0"),
        ("forwarding", "1"),
        ("accept_ra", "0"),
        ("autoconf", "0"),
        ("accept_redirects", "0"),
        ("accept_source_route", "-1"),
        ("accept_dad", "0"),
        ("dad_transmits", "0"),
        // No link-local address but the gateway's.
        ("addr_gen_mode", "1"),
    ] {
        set(&format!("ipv6/conf/{tap}/{key}"), value)?;
    }
    Ok(())
}

/// Whether packets are forwarded between others' interfaces: IPv4, IPv6.
pub(super) fn transit() -> Result<(bool, bool), SysctlError> {
    Ok((get("ipv4/ip_forward")? == "1", get("ipv6/conf/all/forwarding")? == "1"))
}

/// Turns forwarding on between guests and `uplinks`.
///
/// IPv4 has a switch for each interface; IPv6 has one for all. An interface that learns its default route from
/// advertisements (`accept_ra` 1) would forget it as a router, and is told not to (2) beforehand.
pub(super) fn forward(uplinks: &[String]) -> Result<(), SysctlError> {
    for uplink in uplinks {
        set(&format!("ipv4/conf/{uplink}/forwarding"), "1")?;
        let accept_ra = format!("ipv6/conf/{uplink}/accept_ra");
        if get(&accept_ra)? == "1" {
            set(&accept_ra, "2")?;
        }
    }
    set("ipv6/conf/all/forwarding", "1")
}
