//! Guests' networks: a link of its own for every interface, and rules that decide by address alone.
//!
//! An interface is one TAP device, and a TAP has two ends: the guest's, and the host's routing. There is no bridge, so there
//! is no layer 2 that two guests share. All gateways are alike (169.254.1.1, fe80::1, one MAC address).
//!
//! ```text
//!  guest A                          host (nftables: `inet yun`, `arp yun`)                              outside
//! ┌────────┐ TAP    ARP ─> arp input: own MAC and address, asks for the gateway (or its own tenant) ─> answered
//! │ eth0 ──┼─yunA─┐
//! └────────┘      └ IP ─> guard: own4/own6 (interface . MAC . address)? no DHCP server, no router? ── no ──> dropped
//!                           │ yes
//!                           ├─ to the host ─> input: neighbour solicitation for the gateway, else dropped
//!                           └─ forward ─> from_guest:
//!                                never (metadata, link-local, multicast, ...) ─────────> dropped
//! guest B of the tenant <─yunB─── pairs (prefix . prefix of one tenant): counted ─> accepted
//!                                tenants (anybody's prefix), another TAP ──────────────> dropped
//!                                denied (the zone's list) ─────────────────────────────> dropped
//!                                class_out (interface -> chain):
//!                                  isolated ───────────────────────────────────────────> dropped
//!                                  domestic: on the list? counted ─> accepted ───────────────────────> uplink
//!                                  international: global unicast? counted ─> accepted ───────────────> uplink
//!  guest A <─yunA── to_guest: an answer (conntrack)? source neither never, tenants nor denied?  <──────── uplink
//!                             class_in: the same test of the source, counted ─> accepted, else dropped
//! ```
//! - Every packet of a guest is judged by its destination, and every packet to it by its source too: connection tracking only
//!   tells answers from new connections. So a class, or a list, that changes ends at once the flows that it forbids, and
//!   nothing has to be flushed.
//! - What an interface is in the rules is elements of sets and maps; rules never change. A change is one transaction of `nft`.
//! - A guest's link-local IPv6 address is the one that follows from its MAC (EUI-64); it is good for asking for the gateway,
//!   nothing else. The neighbour entries of guests are permanent, so nobody can fill the host's table.
//! - A guest has at most as many flows at once as it may ([`FLOWS_MAX`]): the host's table of them is everybody's.
//! - Others' forwarding is left as it was: if there was none, [`HostNet::prepare`] keeps it so, though it turns the kernel's on.
//! - Frames that are neither ARP nor IP have no one on the host who takes them.
//!
//! | room | one idea |
//! |---|---|
//! | [`model`] | interfaces, subnets, classes: checked values |
//! | `ranges` | what is special whatever a list says |
//! | [`ipam`] | the next free address |
//! | [`list`] | signed lists of prefixes |
//! | `elements` | what the ruleset has of an interface, and the difference of two states |
//! | `ruleset` | the base, tenants' prefixes and lists as text for `nft` |
//! | [`guest`] | what the guest is told |
//! | `nft`, `link`, `sysctl` | how the host is told |
//! | [`host`] | all of it in force: [`HostNet`] |

mod elements;
pub mod guest;
pub mod host;
pub mod ipam;
mod link;
pub mod list;
pub mod model;
mod nft;
mod ranges;
mod ruleset;
mod sysctl;

pub use elements::{BothWays, Count, FLOWS_MAX, Traffic};
pub use host::{HostNet, Leftover, NetError, Setup, Versions};
pub use link::LinkError;
pub use nft::NftError;
pub use sysctl::SysctlError;
