//! What is done with VMs by name.

use std::time::Duration;

use hyper::{Method, StatusCode};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::args::Waiting;
use super::args::values::{Seconds, Which};
use super::args::vm::{Act, Create, Destroy, Explain, Ls, Restart, Show, Wait};
use super::confirm::{Answer, confirm};
use super::error::Failure;
use super::manifest::{self, Manifest};
use super::output::{Record, note, word};
use super::records::ended;
use super::{Context, operation, spec};
use crate::agent::model::{
    Action, ActionRequest, ActualState, Denial, DenialCode, Operation, Power, Vm, VmPut, VmSpec,
};

/// How often a VM is looked at by those who wait for it.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(250);

/// `yun ls`.
pub(crate) async fn ls(context: &Context, asked: &Ls) -> Result<(), Failure> {
    let path = match &context.tenant {
        Some(tenant) if !asked.all_tenants => format!("/v1/tenants/{tenant}/vms"),
        _ => "/v1/vms".to_owned(),
    };
    let mut vms: Vec<Vm> = context.client.get(&path).await?;
    if !asked.state.is_empty() {
        vms.retain(|vm| asked.state.contains(&vm.status.state));
    }
    context.out.list(&vms)
}

/// `yun show`.
pub(crate) async fn show(context: &Context, asked: &Show) -> Result<(), Failure> {
    let vm: Vm = context.client.get(&context.path("vms", &asked.vm)?).await?;
    if asked.manifest { manifest::print(context, vm) } else { context.out.one(&vm) }
}

/// `yun create`.
pub(crate) async fn create(context: &Context, asked: Create) -> Result<(), Failure> {
    let Create { vm, file, spec, power, dry_run, waiting } = asked;
    let wanted = match (vm, file) {
        (Some(vm), _) => vec![(vm, spec::from_flags(spec, power)?)],
        (None, Some(file)) => {
            let mut wanted = Vec::new();
            for document in manifest::read(&file)? {
                match document {
                    Manifest::Vm { tenant, name, spec, .. } => wanted.push((Which { tenant, name }, spec)),
                    other => {
                        let message =
                            format!("create makes VMs, and {} has a {}", file.display(), other.kind());
                        return Err(Failure::usage(message, "`yun apply -f` takes all kinds"));
                    }
                }
            }
            wanted
        }
        (None, None) => return Err(Failure::usage("no VM is named", "yun create NAME, or -f FILE")),
    };
    for (which, spec) in wanted {
        let vm = make(context, &which, spec, dry_run).await?;
        settle(context, waiting, &vm, dry_run).await?;
    }
    Ok(())
}

/// A VM that does not exist yet.
pub(crate) async fn make(
    context: &Context,
    which: &Which,
    spec: VmSpec,
    dry_run: bool,
) -> Result<Vm, Failure> {
    let path = context.path("vms", which)?;
    let path = if dry_run { path + "?dry_run=true" } else { path };
    // The first generation: one that exists differently is refused by the agent, and the same is seen by the status.
    let put = VmPut { generation: Some(1), spec };
    let answer = context.client.send_seeing_status(Method::PUT, &path, &put).await;
    let exists = || {
        let message = format!("VM {} exists", context.title(which).unwrap_or_default());
        Denial::new(DenialCode::Exists, message).hint("`yun apply -f` changes what exists")
    };
    match answer {
        Ok((StatusCode::OK, _)) if !dry_run => Err(Failure::Refused(exists())),
        Err(Failure::Refused(denial)) if denial.code == DenialCode::StaleGeneration => {
            Err(Failure::Refused(exists()))
        }
        other => Ok(other?.1),
    }
}

/// Waits for what a change of a VM began, and prints the VM.
pub(crate) async fn settle(
    context: &Context,
    waiting: Waiting,
    vm: &Vm,
    dry_run: bool,
) -> Result<(), Failure> {
    match &vm.operation {
        Some(id) if !dry_run && waiting.no_wait => super::output::print(&format!("{id}\n")),
        Some(id) if !dry_run => {
            let path = format!("/v1/operations/{}", super::client::escape(id));
            operation::complete(context, context.client.get(&path)).await?;
            let path = format!("/v1/tenants/{}/vms/{}", vm.tenant, vm.name);
            brief(context, &context.client.get(&path).await?)
        }
        _ if dry_run && context.out.is_table() => {
            note(&format!("VM {} could be made; nothing was changed", vm.key()));
            Ok(())
        }
        _ => brief(context, vm),
    }
}

/// What became of a VM, in a line.
fn brief(context: &Context, vm: &Vm) -> Result<(), Failure> {
    if context.out.is_table() {
        super::output::print(&format!("{} is {}\n", vm.key(), word(&vm.status.state)))
    } else {
        context.out.one(vm)
    }
}

/// Asks for an action.
pub(crate) async fn request(
    context: &Context,
    vm: &Which,
    action: Action,
    timeout: Option<Seconds>,
) -> Result<Operation, Failure> {
    let timeout_seconds = timeout.map(|time| u32::try_from(time.0).unwrap_or(u32::MAX));
    let path = format!("{}/actions", context.path("vms", vm)?);
    context.client.send(Method::POST, &path, &ActionRequest { action, timeout_seconds }).await
}

/// Does something with each of them, even if it fails with one; the first failure is the result, the others are told.
async fn each(vms: &[Which], mut one: impl AsyncFnMut(&Which) -> Result<(), Failure>) -> Result<(), Failure> {
    let mut first = Ok(());
    for vm in vms {
        match one(vm).await {
            Ok(()) => {}
            // Whoever interrupts means all of it.
            Err(error @ (Failure::Interrupted { .. } | Failure::Detached { .. } | Failure::Usage { .. })) => {
                return Err(error);
            }
            Err(error) if first.is_ok() => first = Err(error),
            Err(error) => note(&error.denial().message),
        }
    }
    first
}

/// `yun start`, `stop`, `pause`, `resume`.
pub(crate) async fn act(
    context: &Context,
    asked: &Act,
    action: Action,
    timeout: Option<Seconds>,
) -> Result<(), Failure> {
    each(&asked.vms, async |vm| {
        operation::begin(context, asked.waiting, request(context, vm, action, timeout)).await
    })
    .await
}

/// `yun kill`, `reset`; `rm` without an action.
pub(crate) async fn destroy(
    context: &Context,
    asked: &Destroy,
    action: Option<Action>,
) -> Result<(), Failure> {
    let verb = action.map_or_else(|| "remove".to_owned(), |action| word(&action));
    let titles: Result<Vec<String>, Failure> = asked.act.vms.iter().map(|vm| context.title(vm)).collect();
    if confirm(asked.sure, &format!("{verb} VM {}", titles?.join(", ")))? == Answer::DryRun {
        return Ok(());
    }
    each(&asked.act.vms, async |vm| match action {
        Some(action) => {
            operation::begin(context, asked.act.waiting, request(context, vm, action, None)).await
        }
        None => operation::begin(context, asked.act.waiting, remove(context, vm)).await,
    })
    .await
}

/// Asks for a removal.
pub(crate) async fn remove(context: &Context, vm: &Which) -> Result<Operation, Failure> {
    context.client.call(Method::DELETE, &context.path("vms", vm)?).await
}

/// `yun restart`.
pub(crate) async fn restart(context: &Context, asked: &Restart) -> Result<(), Failure> {
    each(&asked.vms, async |vm| {
        let stopped = operation::complete(context, request(context, vm, Action::Stop, asked.timeout)).await;
        if let Err(Failure::Detached { .. }) = &stopped {
            note(&format!("{} stops, and is not started again: `yun start`", context.title(vm)?));
        }
        stopped?;
        operation::begin(context, Waiting::default(), request(context, vm, Action::Start, None)).await
    })
    .await
}

/// `yun wait`.
pub(crate) async fn wait(context: &Context, asked: &Wait) -> Result<(), Failure> {
    let state = asked.state.trim_start_matches("state=");
    let path = context.path("vms", &asked.vm)?;
    // A time that is too long to be reckoned with has no end.
    let end = asked.timeout.and_then(|time| Instant::now().checked_add(time.duration()));
    loop {
        let look = context.client.find::<Vm>(&path);
        let found = match end {
            Some(end) => timeout_at(end, look).await.map_err(|_| late(asked, state))?,
            None => look.await,
        };
        match found? {
            None if state == "deleted" => return Ok(()),
            None => {
                let title = context.title(&asked.vm)?;
                return Err(Failure::Refused(Denial::not_found("VM", title)));
            }
            Some(vm) if word(&vm.status.state) == state => return Ok(()),
            Some(vm) if vm.status.state == ActualState::Failed && state != "deleted" => {
                let message = format!("{} failed: {}", vm.key(), vm.status.reason);
                let hint = Some(format!("yun explain {}", vm.key()));
                return Err(Failure::Failed { message, hint });
            }
            Some(_) => {}
        }
        let next = Instant::now() + LOOK_EVERY;
        if end.is_some_and(|end| next >= end) {
            return Err(late(asked, state));
        }
        sleep_until(next).await;
    }
}

fn late(asked: &Wait, state: &str) -> Failure {
    let after = asked.timeout.map(Seconds::duration).unwrap_or_default();
    Failure::Late { what: format!("VM {} to be {state}", asked.vm.name), after }
}

/// `yun explain`.
pub(crate) async fn explain(context: &Context, asked: &Explain) -> Result<(), Failure> {
    let vm: Vm = context.client.get(&context.path("vms", &asked.vm)?).await?;
    if context.out.is_table() { context.out.details(&why(&vm)) } else { context.out.one(&vm) }
}

/// Wanted, actual, and why they differ.
fn why(vm: &Vm) -> Vec<(&'static str, String)> {
    let (spec, status) = (&vm.spec, &vm.status);
    let as_wanted = matches!(
        (spec.power, status.state),
        (Power::Running, ActualState::Running)
            | (Power::Paused, ActualState::Paused)
            | (Power::Stopped, ActualState::Stopped)
    );
    let mut told = vec![
        ("vm", vm.key()),
        ("wanted", format!("{} (generation {})", word(&spec.power), vm.generation)),
        ("actual", format!("{} since {}", word(&status.state), status.since)),
    ];
    let mut reasons = Vec::new();
    if !status.reason.is_empty() {
        reasons.push(status.reason.clone());
    }
    if status.observed_generation < vm.generation {
        let seen = status.observed_generation;
        reasons
            .push(format!("it runs with generation {seen}: what changed since counts from its next start"));
    }
    if let Some(id) = &vm.operation {
        reasons.push(format!("operation {id} is under way: yun operation show {id}"));
    }
    match (as_wanted, reasons.is_empty()) {
        (true, true) => told.push(("why", "it is as it is wanted".to_owned())),
        (false, true) => told.push(("why", "the agent has not said yet".to_owned())),
        _ => told.push(("why", reasons.join("\n"))),
    }
    if let Some(end) = &status.last_end {
        told.push(("last end", ended(end)));
    }
    let policy = format!("{}, {} restarts so far", word(&spec.restart), status.restarts);
    told.push(("restart policy", policy));
    if let Some(expires) = &status.expires_at {
        let then = if spec.ttl_deletes { "removed" } else { "stopped" };
        told.push(("time to live", format!("{then} at {expires}")));
    }
    let next = match status.state {
        ActualState::Failed => {
            format!("yun logs {0}; yun logs {0} --source console; yun start {0}", vm.key())
        }
        ActualState::Unknown => format!("yun doctor; yun logs {0}; yun kill {0} ends it", vm.key()),
        _ => return told,
    };
    told.push(("try", next));
    told
}

#[cfg(test)]
#[path = "vm_tests.rs"]
mod tests;
