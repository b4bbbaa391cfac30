//! `yun-vmm`: one process, one microVM. Arguments, logging, and hand over.
//!
//! Without std's own start: it reads `/proc/self/maps` to find its stack and gives every thread a page to report an
//! overflow from, a sixth of all that runs between the process's start and the first answer of its API. What else it
//! does is done here: standard descriptors are there, SIGPIPE ends nothing. An overflow still hits a guard page.
#![cfg_attr(not(test), no_main)]
#![cfg_attr(test, allow(dead_code, unused_imports))] // a test harness brings a main of its own

use std::ffi::c_int;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use vmm::api::{ApiCounters, ApiServer, ApiSocket, Limits, Services};
use vmm::args::{self, Args, Invocation, OnReboot};
use vmm::control::driver::{Driver, Options, Shared, block_signals};
use vmm::events::EventRing;
use vmm::metrics::Metrics;
use vmm::sandbox::seccomp::Seccomp;
use vmm::sandbox::seccomp::rules::Kind;
use vmm::spec::ConfigFile;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Exit statuses, Firecracker's: an error, a refused configuration, refused arguments.
const FAILED: u8 = 1;
const BAD_CONFIGURATION: u8 = 152;
const BAD_ARGUMENTS: u8 = 153;

/// How long answers and event streams may take to reach their clients after the guest ended.
const GRACE: Duration = Duration::from_millis(250);

/// Why the process could not do its work, and what it exits with.
struct Failure {
    what: String,
    status: u8,
}

fn failure(status: u8, context: &str) -> impl FnOnce(&dyn std::fmt::Display) -> Failure {
    move |error| Failure { what: format!("{context}{error}"), status }
}

// SAFETY: no other symbol of this program has that name, and the C library calls it as it is declared here: it passes
// arguments that the callee may leave alone, which std has already taken note of.
#[cfg(not(test))]
#[allow(unsafe_code)] // a name that the linker looks for; there is no other way to give it
#[unsafe(no_mangle)]
extern "C" fn main() -> c_int {
    c_int::from(start())
}

/// Does what the command line asks for; the process's exit status.
fn start() -> u8 {
    if let Err(error) = vmm::host::stdio::fill_gaps() {
        eprintln!("yun-vmm: no /dev/null in place of a closed standard descriptor: {error}");
        return FAILED;
    }
    let print = |text: &str| {
        let mut stdout = std::io::stdout().lock();
        let written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
        if written.is_ok() { 0 } else { FAILED }
    };
    let args = match Invocation::parse(std::env::args_os().skip(1)) {
        Ok(Invocation::Help) => return print(args::HELP),
        Ok(Invocation::Version) => return print(&args::version()),
        Ok(Invocation::OpenApi) => return print(&vmm::api::openapi_document()),
        Ok(Invocation::Run(args)) => args,
        Err(error) => {
            eprintln!("{error}");
            return BAD_ARGUMENTS;
        }
    };
    vmm::logger::init(&args.id);
    match run(*args) {
        Ok(status) => status,
        Err(Failure { what, status }) => {
            log::error!("{what}");
            eprintln!("yun-vmm: {what}");
            status
        }
    }
}

fn of_configuration(path: &Path) -> String {
    format!("the configuration file {}: ", path.display())
}

fn configuration(path: &Path) -> Result<ConfigFile, Failure> {
    let context = of_configuration(path);
    let json = std::fs::read(path).map_err(|e| failure(BAD_CONFIGURATION, &context)(&e))?;
    ConfigFile::parse(&json).map_err(|e| failure(BAD_CONFIGURATION, &context)(&e))
}

fn run(args: Args) -> Result<u8, Failure> {
    let host = |error: std::io::Error| failure(FAILED, "the host refused: ")(&error);
    vmm::mem::heap::share();
    vmm::logger::configure(&args.logger).map_err(|e| failure(BAD_ARGUMENTS, "")(&e))?;
    args.warnings.iter().for_each(|warning| log::warn!("{warning}"));
    if args.core_scheduling {
        match vmm::sandbox::harden::own_cores() {
            Err(e) if e.raw_os_error() == Some(libc::ENODEV) => {
                log::info!("no SMT: no core has siblings to share")
            }
            result => result.map_err(|e| failure(FAILED, "--core-scheduling: ")(&e))?,
        }
    }
    vmm::sandbox::harden::harden().map_err(host)?;
    let file = args.config_file.as_deref().map(configuration).transpose()?;
    // Its sockets' files are all that it has to remove. A name without a directory is in the working directory.
    let vsock = file.iter().filter_map(|file| file.vsock.as_ref()).map(|vsock| Path::new(&vsock.uds_path));
    let socket_dirs = args.api_sock.as_deref().into_iter().chain(vsock).filter_map(Path::parent);
    let socket_dirs = socket_dirs.map(|dir| if dir.as_os_str().is_empty() { Path::new(".") } else { dir });
    let removable: Vec<_> = socket_dirs.collect();
    if !vmm::sandbox::landlock::restrict(&removable).map_err(|e| failure(FAILED, "Landlock: ")(&e))? {
        log::info!("this kernel has no Landlock");
    }
    // Before any thread: they inherit which signals are blocked, and the first filter.
    let signals = block_signals().map_err(host)?;
    let descriptors_max = vmm::host::descriptors_max().map_err(host)?;
    args.seccomp.confine(Kind::Process).map_err(|e| failure(FAILED, "seccomp: ")(&e))?;
    match args.seccomp {
        Seccomp::On => vmm::sandbox::harden::forget_backtraces(),
        Seccomp::Off => log::warn!("--no-seccomp: this process may make any system call"),
    }
    let metrics = Metrics::new();
    let events = EventRing::new(EventRing::CAPACITY_DEFAULT);
    let wake = Arc::new(EventFd::new(EFD_NONBLOCK).map_err(host)?);
    let waker = Arc::clone(&wake);
    let (commands, inbox) = vmm::control::channel(move || {
        // EAGAIN: the driver has been woken more often than it can count.
        let _ = waker.write(1);
    });
    let options = Options {
        id: args.id,
        pci: args.enable_pci,
        boot_timer: args.boot_timer,
        reset_on_reboot: args.on_reboot == OnReboot::Reset,
        shutdown_timeout: args.shutdown_timeout,
        transparent_huge_pages: args.transparent_huge_pages,
        lock_memory: args.lock_memory,
        descriptors_max,
        seccomp: args.seccomp,
    };
    let shared = Shared { events: Arc::clone(&events), metrics: Arc::clone(&metrics), wake };
    let mut driver = Driver::new(options, shared, inbox, &signals).map_err(host)?;
    if let Some(path) = args.metrics_path {
        metrics
            .open(&vmm::spec::Metrics { metrics_path: path })
            .map_err(|e| failure(BAD_ARGUMENTS, "")(&e))?;
    }
    // The socket before the guest: a name that is taken is found out while nothing runs.
    // Who may speak is looked at with each connection where users are named.
    let mode = if args.api_peer_uids.is_empty() { 0o600 } else { 0o666 };
    let socket = match &args.api_sock {
        Some(path) => Some(ApiSocket::bind(path, mode).map_err(|e| failure(FAILED, "")(&e))?),
        None => None,
    };
    let server = match socket {
        Some(socket) => {
            let limits = Limits { body_len_max: args.body_len_max, ..Limits::default() };
            let counters = ApiCounters::registered_with(&metrics);
            let services = Services {
                commands,
                counters,
                metrics,
                events,
                limits,
                peer_uids: args.api_peer_uids.into(),
            };
            Some(
                ApiServer::start(socket, services, move || args.seccomp.confine_or_abort(Kind::Api))
                    .map_err(host)?,
            )
        }
        None => None,
    };
    // After the API's thread: once its guest runs, the driver can start no thread. Requests wait until then.
    if let Some((path, file)) = args.config_file.as_deref().zip(file) {
        driver.start_from(file).map_err(|e| failure(BAD_CONFIGURATION, &of_configuration(path))(&e))?;
    }
    let reason = driver.run().map_err(host)?;
    if let Some(server) = server {
        server.stop(GRACE);
    }
    Ok(reason.exit_status())
}
