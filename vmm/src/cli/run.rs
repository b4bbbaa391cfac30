//! `yun run`: a VM that is made and started; in the foreground its life is this process's.

use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::io::AsyncReadExt;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::args::values::Which;
use super::args::vm::Run;
use super::error::{self, Failure};
use super::output::{note, print_bytes};
use super::signals::Signals;
use super::{Context, client, console, operation, spec, vm};
use crate::agent::model::{Action, ActualState, DenialCode, Name, OperationState, Power, RestartPolicy, Vm};

/// Of what the guest printed before this command was attached, so much is shown, in bytes: all there is.
const HISTORY: u64 = 1 << 20;

/// How long an agent that restarts is waited for.
const AGENT_AWAY_MAX: Duration = Duration::from_secs(60);

/// How long the console of a VM that has ended may go on.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// `yun run`.
pub(crate) async fn run(context: &Context, asked: Run) -> Result<u8, Failure> {
    let Run { vm, spec, foreground, rm, dry_run, waiting } = asked;
    let which = match vm {
        Some(vm) => vm,
        None => Which { tenant: None, name: made_up()? },
    };
    let wanted = spec::from_flags(spec, Power::Running)?;
    if !foreground {
        let made = vm::make(context, &which, wanted, dry_run).await?;
        vm::settle(context, waiting, &made, dry_run).await?;
        return Ok(error::OK);
    }
    if wanted.restart != RestartPolicy::Never {
        return Err(Failure::usage(
            "with --foreground the VM has one life, and --restart would give it more",
            "leave --restart away: whoever runs yun decides whether to run it again",
        ));
    }
    // From here on signals are for the VM.
    let signals = Signals::catch()?;
    let made = operation::sent(&signals, vm::make(context, &which, wanted, false)).await?;
    let ended = attend(context, &which, &made, &signals).await;
    if rm {
        drop(signals);
        match operation::complete(context, vm::remove(context, &which)).await {
            Ok(_) => {}
            // Its time to live removed it.
            Err(Failure::Refused(denial)) if denial.code == DenialCode::NotFound => {}
            Err(error) if ended.is_ok() => return Err(error),
            Err(error) => note(&error.denial().message),
        }
    }
    ended
}

fn made_up() -> Result<Name, Failure> {
    let mut bytes = [0; 4];
    getrandom::fill(&mut bytes)
        .map_err(|error| Failure::Failed { message: format!("no random name: {error}"), hint: None })?;
    Name::parse(&format!("run-{:08x}", u32::from_le_bytes(bytes)))
        .map_err(|error| Failure::Failed { message: error.to_string(), hint: None })
}

/// From its start to its end: what the VM's process ended with.
async fn attend(context: &Context, which: &Which, made: &Vm, signals: &Signals) -> Result<u8, Failure> {
    let path = context.path("vms", which)?;
    let mut stop = Stop { context, which, asked: 0 };
    let mut looks = interval(vm::LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut stream = None;
    let mut refused_until = Instant::now();
    let mut away_since = None;
    let mut buffer = vec![0; 4096];
    let last = loop {
        tokio::select! {
            signal = signals.next() => stop.signal(signal).await?,
            read = read_some(&mut stream, &mut buffer) => match read {
                Some(length) => print_bytes(buffer.get(..length).unwrap_or_default())?,
                // It ended, or the agent did. If it runs on, it is attached again.
                None => {
                    stream = None;
                    refused_until = Instant::now() + Duration::from_secs(1);
                }
            },
            _ = looks.tick() => {
                let now = match context.client.find::<Vm>(&path).await {
                    Ok(Some(now)) => now,
                    Ok(None) => {
                        let message = format!("VM {} is gone, and with it how it ended", context.title(which)?);
                        return Err(Failure::Failed { message, hint: None });
                    }
                    // The agent may be away for a while: the VM is not.
                    Err(error @ (Failure::Unreachable { .. } | Failure::Broken { .. })) => {
                        if away_since.get_or_insert_with(Instant::now).elapsed() > AGENT_AWAY_MAX {
                            return Err(error);
                        }
                        continue;
                    }
                    Err(error) => return Err(error),
                };
                away_since = None;
                let begun = now.status.incarnation > made.status.incarnation || now.status.last_end.is_some();
                if over(&now, begun) && !still_starting(context, made, begun).await? {
                    break now;
                }
                let up = matches!(now.status.state, ActualState::Running | ActualState::Paused | ActualState::Stopping);
                if up && stream.is_none() && Instant::now() >= refused_until {
                    match console::open(context, which, false, if stop.asked == 0 { HISTORY } else { 0 }).await {
                        Ok(opened) => stream = Some(opened),
                        Err(_) => refused_until = Instant::now() + Duration::from_secs(1),
                    }
                }
            }
        }
    };
    match stream {
        Some(open) => {
            let mut open = Some(open);
            // What the guest said last is on its way.
            let _ = timeout(LAST_WORDS, async {
                while let Some(length) = read_some(&mut open, &mut buffer).await {
                    print_bytes(buffer.get(..length).unwrap_or_default())?;
                }
                Ok::<(), Failure>(())
            })
            .await;
        }
        // It was over before anybody could look.
        None => {
            let path = format!("{path}/logs?source=console");
            if let Ok(mut whole) = context.client.stream(&path).await {
                while let Ok(Some(bytes)) = whole.next().await {
                    print_bytes(&bytes)?;
                }
            }
        }
    }
    Ok(status(&last))
}

/// Whether it is over with this VM.
fn over(vm: &Vm, begun: bool) -> bool {
    match vm.status.state {
        ActualState::Failed => true,
        ActualState::Stopped => begun || vm.operation.is_none(),
        ActualState::Starting
        | ActualState::Running
        | ActualState::Paused
        | ActualState::Stopping
        | ActualState::Unknown
        | ActualState::Deleting => false,
    }
}

/// Whether the operation that starts it is still under way.
///
/// # Errors
/// [`Failure::Operation`] if it failed.
async fn still_starting(context: &Context, made: &Vm, begun: bool) -> Result<bool, Failure> {
    let Some(id) = made.operation.as_ref().filter(|_| !begun) else { return Ok(false) };
    let path = format!("/v1/operations/{}", client::escape(id));
    match context.client.find::<crate::agent::model::Operation>(&path).await? {
        Some(operation) if operation.state == OperationState::Running => Ok(true),
        Some(operation) if operation.state != OperationState::Succeeded => {
            Err(Failure::Operation(Box::new(operation)))
        }
        _ => Ok(false),
    }
}

/// Bytes of the console; for ever if there is none, `None` at its end.
async fn read_some(
    stream: &mut Option<hyper_util::rt::TokioIo<hyper::upgrade::Upgraded>>,
    buffer: &mut [u8],
) -> Option<usize> {
    match stream {
        Some(stream) => stream.read(buffer).await.ok().filter(|length| *length > 0),
        None => std::future::pending().await,
    }
}

/// The VM's exit status is this process's: that of its process, or 128 and a signal's number.
fn status(vm: &Vm) -> u8 {
    let Some(end) = &vm.status.last_end else {
        note(&format!("{}/{} did not run: {}", vm.tenant, vm.name, vm.status.reason));
        return error::FAILED;
    };
    match (end.status, end.signal) {
        (Some(status), _) => u8::try_from(status & 0xff).unwrap_or(error::FAILED),
        (None, Some(signal)) => u8::try_from(signal.saturating_add(128)).unwrap_or(error::FAILED),
        (None, None) => {
            note(&format!("nobody saw how {}/{} ended: {}", vm.tenant, vm.name, end.reason));
            error::FAILED
        }
    }
}

/// What signals did so far.
struct Stop<'a> {
    context: &'a Context,
    which: &'a Which,
    asked: u32,
}

impl Stop<'_> {
    /// The first stops the VM, the next ones kill it.
    async fn signal(&mut self, signal: Signal) -> Result<(), Failure> {
        let action = if self.asked == 0 { Action::Stop } else { Action::Kill };
        note(&match action {
            Action::Stop => format!("{}: the VM is asked to stop; once more kills it", signal.as_str()),
            _ => format!("{}: the VM is killed", signal.as_str()),
        });
        match vm::request(self.context, self.which, action, None).await {
            Ok(_) => {
                self.asked += 1;
                Ok(())
            }
            Err(Failure::Unreachable { .. } | Failure::Broken { .. }) => {
                note("the agent is away, and the VM was not told: once more tells it again");
                Ok(())
            }
            // It has ended meanwhile, or is on its way to.
            Err(Failure::Refused(denial))
                if denial.code.status() == 409 || denial.code == DenialCode::NotFound =>
            {
                self.asked += 1;
                note(&denial.message);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn ended(status: serde_json::Value) -> Vm {
        let mut vm = json!({
            "tenant": "acme", "name": "job", "id": "vm-1", "generation": 1, "created_at": "t",
            "spec": {"image": "x"},
            "status": {"state": "stopped", "reason": "", "since": "t", "observed_generation": 1, "incarnation": 1,
                "restarts": 0, "interfaces": []}
        });
        vm["status"]["last_end"] = status;
        serde_json::from_value(vm).unwrap()
    }

    #[test]
    fn the_exit_status_is_the_vms() {
        for (end, code) in [
            (json!({"status": 0, "reason": "", "at": ""}), 0),
            (json!({"status": 42, "reason": "", "at": ""}), 42),
            (json!({"signal": 9, "reason": "", "at": ""}), 137),
            (json!({"reason": "", "at": ""}), 1),
            (json!({"signal": i32::MAX, "reason": "", "at": ""}), 1),
            (serde_json::Value::Null, 1),
        ] {
            assert_eq!(status(&ended(end.clone())), code, "{end}");
        }
    }

    #[test]
    fn a_vm_that_waits_for_its_start_is_not_over() {
        let mut vm = ended(serde_json::Value::Null);
        assert!(over(&vm, true));
        vm.operation = Some("op-1".to_owned());
        assert!(!over(&vm, false));
        vm.status.state = ActualState::Unknown;
        assert!(!over(&vm, true));
        vm.status.state = ActualState::Failed;
        assert!(over(&vm, false));
    }
}
