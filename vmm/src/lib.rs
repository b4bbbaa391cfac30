//! The Yun virtual machine monitor: one process, one microVM, driven over a Unix socket by Firecracker's REST API.
//!
//! # Rooms, and which way their arrows point
//!
//! ```text
//!   bin/yun-vmm ──> api ──> control ──> machine ──> { vcpu, boot, arch, kvm, mem, host } ──> devices (its own crate)
//!                    └───────> spec <──────┘        events, metrics, logger, output: leaves that anybody may use
//!   bin/yund ──> agent ──> { spec, sandbox (locks of jails), host::peer }       bin/yun ──> cli ──> agent::model (its words)
//!   bin/yun-jailer ──> jailer_args ──> sandbox ──> spec (the id): has nothing to do with the above until it executes it
//! ```
//! | room | one idea |
//! |---|---|
//! | [`agent`] | many VMs on one host: tenants, store, supervision, images, volumes, networks, usage, audit; talks to a VMM only through its socket |
//! | [`args`], [`jailer_args`] | the command lines of `yun-vmm` and `yun-jailer` |
//! | [`spec`] | what can be asked for: JSON bodies and checked values; no I/O |
//! | [`api`] | HTTP on the socket; a request becomes a [`control::Command`], an answer becomes a reply |
//! | [`control`] | which command is allowed when (pure), what was configured, and the one thread that carries it out |
//! | [`machine`] | RAM, vCPUs and devices put together; a device's thread |
//! | [`vcpu`] | the vCPUs' threads: run, pause, stop |
//! | [`boot`] | kernel images, command line, the boot protocols' structures |
//! | [`arch`] | address map, CPUID, registers, ACPI and MP tables: data in, data out |
//! | [`kvm`] | ioctls; `unsafe` |
//! | [`mem`] | guest RAM on the host, vectored I/O into it; `unsafe` |
//! | [`host`] | disk images, TAP devices, the kernel's network path (vhost-net), the guest's sockets, the console's ends, who is at the other end of a socket |
//! | [`sandbox`] | what a VMM can reach and may do: jails and cgroups, seccomp and Landlock; `unsafe` |
//! | [`cli`] | `yun`, the shell: asks the agent over its socket, and knows only its wire types ([`agent::model`]) |
//! | [`events`], [`metrics`], [`logger`] | what happened, how often, and in words |
//!
//! `unsafe` is in the rooms that say so, and the compiler refuses it in all others (`unsafe_code`). [`host`] has none of its own: it
//! makes its ioctls by [`kvm`], vectored I/O by [`mem`], and asks about descriptors and peers through [`sandbox`].
//!
//! # Threads
//!
//! | thread | owns | woken by |
//! |---|---|---|
//! | main (`Driver::run`) | the machine and what was configured; the console's ends | commands, signals, the guest's end, the console, time |
//! | `yun_api` | the socket and its connections | the socket; answers; new events |
//! | `yun_vcpu N` | one vCPU | its guest's exits; a signal to pause or stop |
//! | `yun_<device>` | one running device and its queues | kicks, the device's descriptors, orders from a transport or the driver |
//! | `yun_<drive>.N` | queue N of a running drive; started when its guest first uses that queue | kicks of that queue, orders from `yun_<drive>` |
//! | `yun_<interface>.N` | queues N and N + 1, a pair, of a running interface; likewise | kicks of those queues, the pair's wire, orders from `yun_<interface>` |
//!
//! A vCPU's thread touches a device only through its transport's registers; bytes move on the device's own thread.
//!
//! # One request
//!
//! `api::server` reads it within bounds, `api::route` makes it a command, `control::lifecycle::admit` says whether it is
//! allowed now, the driver does it, and `api::reply` makes the answer. HTTP is never on the path of a block request.

pub mod agent;
pub mod api;
pub mod arch;
pub mod args;
pub mod boot;
pub mod cli;
pub mod control;
pub mod events;
pub mod host;
pub mod jailer_args;
#[allow(unsafe_code)]
pub mod kvm;
pub mod logger;
pub mod machine;
#[allow(unsafe_code)]
pub mod mem;
pub mod metrics;
mod output;
#[allow(unsafe_code)]
pub mod sandbox;
pub mod spec;
mod utc;
pub mod vcpu;

/// Stack of a thread that serves a guest, in bytes: address space, of which only what is touched is memory.
pub(crate) const THREAD_STACK: usize = 256 << 10;
