//! `yund`: the agent of a server. Arguments, logging, and hand over.

use std::io::Write;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use clap::Parser;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::stat::{Mode, umask};
use tokio::sync::mpsc;
use vmm::agent::api::{Server, listen, openapi_document};
use vmm::agent::args::Args;
use vmm::agent::core::{AGENT, Agent, set_audit_aside};
use vmm::agent::store;
use vmm::sandbox::jail::in_words;

/// Threads for work that blocks: file copies, the store, `nft`.
const BLOCKING_THREADS: usize = 32;
/// Stack of a thread, in bytes.
const STACK: usize = 1 << 20;

fn main() -> ExitCode {
    // Or each of the threads for what blocks would keep the most it ever needed.
    vmm::mem::heap::share();
    let args = Args::parse();
    if args.openapi {
        return match std::io::stdout().write_all(openapi_document().as_bytes()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        };
    }
    if let Some(copy) = &args.try_store {
        return match store::try_here(copy) {
            Ok(()) => ExitCode::SUCCESS,
            Err(why) => {
                eprintln!("{why}");
                ExitCode::FAILURE
            }
        };
    }
    // Store, consoles and logs are nobody else's to read.
    umask(Mode::S_IRWXG | Mode::S_IRWXO);
    if args.set_aside_audit {
        return match set_audit_aside(&args.state_dir) {
            Ok(aside) if aside.is_empty() => {
                println!("the audit log is whole: nothing was put aside");
                ExitCode::SUCCESS
            }
            Ok(aside) => {
                aside.iter().for_each(|path| println!("put aside: {}", path.display()));
                ExitCode::SUCCESS
            }
            Err(error) => {
                eprintln!("yund: {}", in_words(&error));
                ExitCode::FAILURE
            }
        };
    }
    let signals = match signals() {
        Ok(signals) => signals,
        Err(error) => {
            eprintln!("yund: signals can't be waited for: {error}");
            return ExitCode::FAILURE;
        }
    };
    env_logger::Builder::new().filter_level(args.log_level).format_timestamp_millis().init();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_stack_size(STACK)
        .build();
    let result = match runtime {
        Ok(runtime) => {
            let result = runtime.block_on(run(&args, signals));
            // What still blocks (a copy, say) is an intent in the store; the next agent undoes it.
            runtime.shutdown_background();
            result
        }
        Err(error) => Err(format!("no runtime: {error}")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            log::error!("{why}");
            eprintln!("yund: {why}");
            ExitCode::FAILURE
        }
    }
}

/// Signals as they come, taken by a thread of their own: tokio's way would give every runtime of this crate, also that of a
/// confined VMM, a pair of sockets. To be called before there is any other thread.
fn signals() -> std::io::Result<mpsc::UnboundedReceiver<Signal>> {
    let mut set = SigSet::empty();
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGPWR].into_iter().for_each(|signal| set.add(signal));
    set.thread_block()?;
    let (sender, receiver) = mpsc::unbounded_channel();
    std::thread::Builder::new().name("signals".to_owned()).stack_size(64 << 10).spawn(move || {
        while let Ok(signal) = set.wait() {
            if sender.send(signal).is_err() {
                return;
            }
        }
    })?;
    Ok(receiver)
}

/// Tries a store in a process of its own, for the database may panic over it.
fn try_elsewhere(copy: &Path) -> Result<(), String> {
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    let output = Command::new(own).arg("--try-store").arg(copy).env_clear().output();
    let output = output.map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(said.trim().lines().last().unwrap_or("the database can't make sense of it").to_owned())
}

/// The socket that systemd passed (sd_listen_fds(3)), or our own.
fn socket(args: &Args) -> Result<UnixListener, String> {
    let mut passed = sd_notify::listen_fds().map_err(|error| format!("LISTEN_FDS: {error}"))?;
    match passed.next() {
        Some(fd) => Ok(UnixListener::from(vmm::sandbox::descriptors::copy(fd).map_err(|e| e.to_string())?)),
        None => {
            if let Some(dir) = args.socket.parent() {
                std::fs::create_dir_all(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
            }
            listen(&args.socket).map_err(|error| format!("{}: {error}", args.socket.display()))
        }
    }
}

async fn run(args: &Args, mut signals: mpsc::UnboundedReceiver<Signal>) -> Result<(), String> {
    let groups = std::fs::read_to_string("/etc/group").unwrap_or_default();
    let config = args.config(&groups).map_err(|error| error.to_string())?;
    let agent = Agent::start(config, &try_elsewhere).await.map_err(|error| in_words(&error))?;
    let listener = socket(args)?;
    let server = tokio::spawn(Server::new(agent.clone()).serve(listener));
    notify(&[sd_notify::NotifyState::Ready]);
    log::info!("answering on {}", args.socket.display());
    if let Some(every) = sd_notify::watchdog_enabled() {
        tokio::spawn(watchdog(every / 2));
    }
    tokio::pin!(server);
    loop {
        tokio::select! {
            ended = &mut server => {
                return Err(match ended {
                    Ok(Ok(never)) => match never {},
                    Ok(Err(error)) => format!("the socket can't be listened on: {error}"),
                    Err(error) => error.to_string(),
                });
            }
            // systemd's signal for a failing power supply, and Incus's for a host that is switched off.
            signal = signals.recv() => if signal == Some(Signal::SIGPWR) {
                log::warn!("the host is being switched off");
                match agent.drain(true, AGENT).await {
                    Ok(op) => log::info!("stopping all VMs: {}", op.id()),
                    Err(denial) => log::error!("{denial}"),
                }
            } else {
                break;
            },
        }
    }
    log::info!("ending; VMs go on");
    notify(&[sd_notify::NotifyState::Stopping]);
    agent.close().await;
    Ok(())
}

async fn watchdog(every: Duration) {
    loop {
        notify(&[sd_notify::NotifyState::Watchdog]);
        tokio::time::sleep(every).await;
    }
}

fn notify(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        log::debug!("systemd was not told: {error}");
    }
}
