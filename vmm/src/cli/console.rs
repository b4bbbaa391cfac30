//! `yun console`: the guest's serial console on this terminal.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep_until};

use super::Context;
use super::args::values::Which;
use super::args::vm::Console;
use super::client::with_query;
use super::confirm::{ask, means_yes};
use super::error::Failure;
use super::escape::{Escape, EscapeKey};
use super::output::{note, print_bytes};
use super::signals::Signals;
use super::terminal::{self, Raw, Take};
use crate::agent::model::Denial;

/// How long an escape waits for a second one.
const MOMENT: Duration = Duration::from_millis(400);

/// Opens a VM's console.
pub(crate) async fn open(
    context: &Context,
    vm: &Which,
    write: bool,
    history: u64,
) -> Result<TokioIo<Upgraded>, Failure> {
    let path = format!("{}/console", context.path("vms", vm)?);
    let query = [("write", Some(write.to_string())), ("history", Some(history.to_string()))];
    context.client.upgrade(&with_query(&path, &query), "yun-console").await
}

/// `yun console`.
pub(crate) async fn attach(context: &Context, asked: &Console) -> Result<(), Failure> {
    // From here on signals end the loop below, so that the terminal is given back.
    let signals = Signals::catch()?;
    let (mut stream, read_only) = match open(context, &asked.vm, !asked.read_only, asked.history).await {
        Err(Failure::Refused(denial)) if denial.code.status() == 409 && !asked.read_only => {
            drop(signals);
            (watch_instead(context, asked, denial).await?, true)
        }
        opened => (opened?, asked.read_only),
    };
    let signals = Signals::catch()?;
    let terminal = std::io::stdin().is_terminal();
    let key = match asked.escape {
        Some(key) => key,
        None if terminal => EscapeKey::default(),
        None => EscapeKey::none(),
    };
    if terminal {
        let how = if read_only { "watching" } else { "attached to" };
        let title = context.title(&asked.vm)?;
        if key.is_some() {
            note(&format!("{how} the console of {title}; {key} detaches, {key}{key} sends one"));
        } else {
            note(&format!("{how} the console of {title}; there is no escape: end this process to detach"));
        }
    }
    let ended = {
        let _raw = Raw::take(Take::Keys)?;
        relay(&mut stream, &signals, Escape::new(key), read_only, terminal).await?
    };
    if terminal {
        let _ = writeln!(std::io::stderr());
        note(match ended {
            Ended::Detached => "detached; the VM goes on",
            Ended::Closed => "the console was closed: the VM ended, or the agent did",
        });
    }
    Ok(())
}

/// Someone else writes, or the VM has no console now: says so, and offers to read.
async fn watch_instead(
    context: &Context,
    asked: &Console,
    denial: Denial,
) -> Result<TokioIo<Upgraded>, Failure> {
    let hint = || "`--read-only` watches: many may".to_owned();
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        let hint = denial.hint.clone().or_else(|| Some(hint()));
        return Err(Failure::Refused(Denial { hint, ..denial }));
    }
    note(&denial.message);
    match ask("Watch instead? [y/N] ")? {
        Some(answer) if means_yes(&answer) => open(context, &asked.vm, false, asked.history).await,
        _ => Err(Failure::Refused(denial)),
    }
}

enum Ended {
    Detached,
    Closed,
}

/// Bytes both ways, until the user, the guest or a signal ends it.
async fn relay(
    stream: &mut TokioIo<Upgraded>,
    signals: &Signals,
    mut escape: Escape,
    read_only: bool,
    terminal: bool,
) -> Result<Ended, Failure> {
    let broken = |source| Failure::System { what: "the console broke off", source };
    let (mut from_guest, mut to_guest) = tokio::io::split(stream);
    let mut typed = terminal::stdin()?;
    let mut open = true;
    let mut buffer = [0; 4096];
    let mut patience = Instant::now();
    loop {
        tokio::select! {
            read = from_guest.read(&mut buffer) => match read {
                Ok(0) => return Ok(Ended::Closed),
                Ok(length) => print_bytes(buffer.get(..length).unwrap_or_default())?,
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return Ok(Ended::Closed),
                Err(error) => return Err(broken(error)),
            },
            bytes = typed.recv(), if open => match bytes {
                // The terminal is gone.
                None if terminal => return Ok(Ended::Detached),
                // The guest may still have something to say to what it was sent.
                None => open = false,
                Some(bytes) => {
                    let typed = escape.feed(&bytes);
                    if !read_only && !typed.send.is_empty() {
                        // A guest that takes nothing does not keep a signal waiting.
                        tokio::select! {
                            written = to_guest.write_all(&typed.send) => written.map_err(broken)?,
                            signal = signals.next() => return Err(Failure::Interrupted { signal }),
                        }
                        to_guest.flush().await.map_err(broken)?;
                    }
                    if typed.detach {
                        return Ok(Ended::Detached);
                    }
                    patience = Instant::now() + MOMENT;
                }
            },
            () = sleep_until(patience), if escape.is_held() => return Ok(Ended::Detached),
            signal = signals.next() => return Err(Failure::Interrupted { signal }),
        }
    }
}
