//! Long work: it is begun, waited for with a bar on the terminal, and let go by Ctrl-C.

use std::future::Future;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use hyper::Method;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::Context;
use super::args::Waiting;
use super::client::escape;
use super::error::Failure;
use super::output::{Format, print};
use super::signals::Signals;
use crate::agent::model::{Operation, OperationKind, OperationState};

/// How long the agent is asked to keep an answer, so that a bar moves.
const STEP: Duration = Duration::from_secs(1);

/// An agent that answers at once, although nothing has ended, is asked again after this.
const PAUSE: Duration = Duration::from_millis(100);

/// How long an agent that restarts is waited for, in tries, and the time between them.
const AWAY_MAX: (u32, Duration) = (30, Duration::from_secs(1));

/// What it does, to what: `start of VM acme/web`.
pub(crate) fn describe(operation: &Operation) -> String {
    let (what, thing) = match operation.kind {
        OperationKind::VmReconcile => ("change", "VM"),
        OperationKind::VmStart => ("start", "VM"),
        OperationKind::VmStop => ("stop", "VM"),
        OperationKind::VmKill => ("kill", "VM"),
        OperationKind::VmPause => ("pause", "VM"),
        OperationKind::VmResume => ("resume", "VM"),
        OperationKind::VmReset => ("reset", "VM"),
        OperationKind::VmDelete => ("removal", "VM"),
        OperationKind::ImageImport => ("import", "image"),
        OperationKind::ImageVerify => ("check", "image"),
        OperationKind::VolumeCreate => ("creation", "volume"),
        OperationKind::VolumeResize => ("resize", "volume"),
        OperationKind::HostDrain => ("drain", "host"),
        OperationKind::HostShutdown => ("shutdown", "host"),
    };
    match &operation.tenant {
        Some(tenant) => format!("{what} of {thing} {tenant}/{}", operation.target),
        None => format!("{what} of {thing} {}", operation.target).trim_end().to_owned(),
    }
}

/// Sends `request`, which signals do not break off half-way, and does with the operation what `waiting` says.
pub(crate) async fn begin(
    context: &Context,
    waiting: Waiting,
    request: impl Future<Output = Result<Operation, Failure>>,
) -> Result<(), Failure> {
    let signals = Signals::catch()?;
    let operation = sent(&signals, request).await?;
    finish(context, waiting, &signals, operation).await
}

/// As [`begin`], and waits in any case; nothing is printed.
pub(crate) async fn complete(
    context: &Context,
    request: impl Future<Output = Result<Operation, Failure>>,
) -> Result<Operation, Failure> {
    let signals = Signals::catch()?;
    let operation = sent(&signals, request).await?;
    wait(context, &signals, operation, None).await
}

/// `request`, unless a signal comes first.
pub(crate) async fn sent<T>(
    signals: &Signals,
    request: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    tokio::select! {
        biased;
        answer = request => answer,
        signal = signals.next() => Err(Failure::Interrupted { signal }),
    }
}

async fn finish(
    context: &Context,
    waiting: Waiting,
    signals: &Signals,
    operation: Operation,
) -> Result<(), Failure> {
    if waiting.no_wait {
        return show_begun(context, &operation);
    }
    let ended = wait(context, signals, operation, None).await?;
    show_ended(context, &ended)
}

fn show_begun(context: &Context, operation: &Operation) -> Result<(), Failure> {
    match context.out.format {
        Format::Json | Format::Yaml => context.out.value(operation),
        Format::Table | Format::Wide | Format::Name => print(&format!("{}\n", operation.id)),
    }
}

/// Prints an operation that succeeded.
pub(crate) fn show_ended(context: &Context, operation: &Operation) -> Result<(), Failure> {
    match context.out.format {
        Format::Json | Format::Yaml => context.out.value(operation),
        Format::Name => print(&format!("{}\n", operation.id)),
        Format::Table | Format::Wide => print(&format!("{}: done\n", describe(operation))),
    }
}

/// Waits until it has ended.
///
/// # Errors
/// [`Failure::Operation`] if it did not succeed, [`Failure::Detached`] at a signal, [`Failure::Late`] after `limit`.
pub(crate) async fn wait(
    context: &Context,
    signals: &Signals,
    mut operation: Operation,
    limit: Option<Duration>,
) -> Result<Operation, Failure> {
    let bar = bar(&operation);
    let begun = Instant::now();
    let mut away = 0;
    while operation.state == OperationState::Running {
        let left = limit.map_or(STEP, |limit| limit.saturating_sub(begun.elapsed()));
        if left.is_zero() {
            bar.finish_and_clear();
            let what = format!("{} ({})", describe(&operation), operation.id);
            return Err(Failure::Late { what, after: limit.unwrap_or_default() });
        }
        let step = left.min(STEP);
        let asked = Instant::now();
        // Whole seconds, as the API has them, and at least one.
        let seconds = step.as_secs().max(1);
        let path = format!("/v1/operations/{}/wait?timeout_seconds={seconds}", escape(&operation.id));
        let answer = tokio::select! {
            answer = tokio::time::timeout(left, context.client.call_waiting(Method::GET, &path, STEP)),
                if limit.is_some() => answer.ok(),
            answer = context.client.call_waiting(Method::GET, &path, STEP), if limit.is_none() => Some(answer),
            signal = signals.next() => {
                bar.finish_and_clear();
                return Err(Failure::Detached { id: operation.id, signal });
            }
        };
        let Some(answer) = answer else { continue };
        let pause = match answer {
            Ok(now) => {
                operation = now;
                away = 0;
                show(&bar, &operation);
                PAUSE.saturating_sub(asked.elapsed())
            }
            // What is under way goes on when the agent is back: so does this.
            Err(Failure::Unreachable { .. } | Failure::Broken { .. }) if away < AWAY_MAX.0 => {
                away += 1;
                AWAY_MAX.1
            }
            Err(error) => return Err(error),
        };
        if operation.state == OperationState::Running && !pause.is_zero() {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                signal = signals.next() => {
                    bar.finish_and_clear();
                    return Err(Failure::Detached { id: operation.id, signal });
                }
            }
        }
    }
    bar.finish_and_clear();
    match operation.state {
        OperationState::Running | OperationState::Succeeded => Ok(operation),
        OperationState::Failed | OperationState::Cancelled => Err(Failure::Operation(Box::new(operation))),
    }
}

/// On stderr, and only on a terminal.
fn bar(operation: &Operation) -> ProgressBar {
    if !std::io::stderr().is_terminal() || operation.state != OperationState::Running {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    bar.set_message(describe(operation));
    show(&bar, operation);
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

fn show(bar: &ProgressBar, operation: &Operation) {
    if bar.is_hidden() {
        return;
    }
    let template = match (operation.total, operation.unit.as_str()) {
        (0, _) => "{spinner} {msg} {elapsed}",
        (_, "bytes") => "{spinner} {msg} [{bar:30}] {binary_bytes}/{binary_total_bytes} {eta}",
        _ => "{spinner} {msg} [{bar:30}] {pos}/{len}",
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    if operation.total > 0 {
        bar.set_length(operation.total);
    }
    bar.set_position(operation.done);
}
