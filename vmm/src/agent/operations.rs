//! Long work that is under way or was done lately: who asked, how far it is, how it ended.
//!
//! Operations are of one agent's life. What they were about is in the store: an agent that starts goes on with it, or undoes
//! it, under no operation.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::clock;
use super::model::{Denial, DenialCode, Name, Operation, OperationKind, OperationState};
use super::progress::Work;

/// Operations that have ended and are remembered.
const REMEMBERED: usize = 512;
/// Operations under way at the same time.
pub const AT_ONCE_MAX: usize = 4096;
/// Of these, those on one tenant's things.
const OF_A_TENANT_MAX: usize = AT_ONCE_MAX / 4;

/// What an operation is about.
#[derive(Clone, Debug)]
pub struct About {
    /// What is done.
    pub kind: OperationKind,
    /// Whose thing it is done to.
    pub tenant: Option<Name>,
    /// To what.
    pub target: String,
    /// What it counts: `bytes`, `steps` or `vms`.
    pub unit: &'static str,
    /// Whether it can be cancelled.
    pub cancellable: bool,
    /// Who asked.
    pub requestor: String,
}

#[derive(Debug)]
struct Ending {
    state: OperationState,
    ended_at: Option<String>,
    error: Option<Denial>,
}

/// One operation. It ends once; later endings change nothing.
#[derive(Debug)]
pub struct Op {
    id: String,
    about: About,
    created_at: String,
    work: Work,
    ending: Mutex<Ending>,
    ended: watch::Sender<bool>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Op {
    /// Its id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What it is about.
    #[must_use]
    pub fn about(&self) -> &About {
        &self.about
    }

    /// Its progress, and the wish that it ends early.
    #[must_use]
    pub fn work(&self) -> &Work {
        &self.work
    }

    /// Whether it has not ended.
    #[must_use]
    pub fn is_running(&self) -> bool {
        lock(&self.ending).state == OperationState::Running
    }

    /// It ends so.
    pub fn end(&self, result: Result<(), Denial>) {
        let state = if result.is_ok() { OperationState::Succeeded } else { OperationState::Failed };
        self.end_as(state, result.err());
    }

    /// It was cancelled, for this reason.
    pub fn cancelled(&self, why: &str) {
        self.end_as(OperationState::Cancelled, Some(Denial::new(DenialCode::State, why)));
    }

    fn end_as(&self, state: OperationState, error: Option<Denial>) {
        let mut ending = lock(&self.ending);
        if ending.state == OperationState::Running {
            *ending = Ending { state, ended_at: Some(clock::now()), error };
            drop(ending);
            self.ended.send_replace(true);
        }
    }

    /// Waits until it has ended, `within` at most.
    pub async fn wait(&self, within: Duration) {
        let mut ended = self.ended.subscribe();
        // Over in time or not: whoever asked looks at its state.
        let _ = tokio::time::timeout(within, ended.wait_for(|ended| *ended)).await;
    }

    /// What is shown of it.
    #[must_use]
    pub fn view(&self) -> Operation {
        let ending = lock(&self.ending);
        Operation {
            id: self.id.clone(),
            kind: self.about.kind,
            tenant: self.about.tenant.clone(),
            target: self.about.target.clone(),
            state: ending.state,
            done: self.work.progress().done(),
            total: self.work.progress().total(),
            unit: self.about.unit.to_owned(),
            cancellable: self.about.cancellable && ending.state == OperationState::Running,
            requestor: self.about.requestor.clone(),
            created_at: self.created_at.clone(),
            ended_at: ending.ended_at.clone(),
            error: ending.error.clone(),
        }
    }
}

/// All of them.
#[derive(Debug, Default)]
pub struct Operations(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    next: u64,
    /// By number.
    all: BTreeMap<u64, Arc<Op>>,
}

impl Operations {
    /// Begins one.
    ///
    /// # Errors
    /// [`DenialCode::TooMany`] if too many are under way.
    pub fn begin(&self, about: About) -> Result<Arc<Op>, Denial> {
        let mut inner = lock(&self.0);
        let running = inner.all.values().filter(|op| op.is_running()).count();
        if running >= AT_ONCE_MAX {
            let text = format!("{running} operations are under way, and {AT_ONCE_MAX} are accepted");
            return Err(Denial::new(DenialCode::TooMany, text).hint("wait for some of them"));
        }
        if let Some(tenant) = &about.tenant {
            let theirs = |op: &&Arc<Op>| op.is_running() && op.about.tenant.as_ref() == Some(tenant);
            let theirs = inner.all.values().filter(theirs).count();
            if theirs >= OF_A_TENANT_MAX {
                let text = format!(
                    "{theirs} operations on what tenant {tenant} has are under way, and {OF_A_TENANT_MAX} are accepted"
                );
                return Err(Denial::new(DenialCode::TooMany, text).hint("wait for some of them"));
            }
        }
        let mut excess = (inner.all.len() - running).saturating_sub(REMEMBERED - 1);
        inner.all.retain(|_, op| {
            let forget = excess > 0 && !op.is_running();
            excess -= usize::from(forget);
            !forget
        });
        let number = inner.next;
        inner.next += 1;
        let op = Arc::new(Op {
            id: new_id("op"),
            about,
            created_at: clock::now(),
            work: Work::new(),
            ending: Mutex::new(Ending { state: OperationState::Running, ended_at: None, error: None }),
            ended: watch::Sender::new(false),
        });
        inner.all.insert(number, Arc::clone(&op));
        Ok(op)
    }

    /// The one with this id.
    ///
    /// # Errors
    /// [`DenialCode::NotFound`].
    pub fn get(&self, id: &str) -> Result<Arc<Op>, Denial> {
        let found = lock(&self.0).all.values().find(|op| op.id == id).cloned();
        found.ok_or_else(|| {
            Denial::not_found("operation", id)
                .hint("operations are forgotten some time after they ended, and when the agent starts again; look at what it was about")
        })
    }

    /// Forgets those on things of a tenant that is gone.
    pub fn forget_of(&self, tenant: &Name) {
        lock(&self.0).all.retain(|_, op| op.about.tenant.as_ref() != Some(tenant));
    }

    /// All, the oldest first.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<Op>> {
        lock(&self.0).all.values().cloned().collect()
    }
}

/// A new id: `prefix-` and 16 hexadecimal digits that nobody can guess.
#[must_use]
pub fn new_id(prefix: &str) -> String {
    let number = getrandom::u64().expect("the kernel has random numbers");
    format!("{prefix}-{number:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about() -> About {
        About {
            kind: OperationKind::VmStart,
            tenant: None,
            target: "a".to_owned(),
            unit: "steps",
            cancellable: true,
            requestor: "uid:0".to_owned(),
        }
    }

    #[test]
    fn an_operation_ends_once_and_who_waits_hears_of_it() {
        let operations = Operations::default();
        let op = operations.begin(about()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            op.wait(Duration::from_millis(1)).await;
            assert_eq!(op.view().state, OperationState::Running);
            let (waited, ()) = tokio::join!(op.wait(Duration::from_secs(60)), async { op.end(Ok(())) });
            assert_eq!(waited, ());
        });
        op.cancelled("too late");
        let view = operations.get(op.id()).unwrap().view();
        assert_eq!((view.state, view.error, view.cancellable), (OperationState::Succeeded, None, false));
        assert_eq!(operations.get("op-0").unwrap_err().code, DenialCode::NotFound);
    }

    #[test]
    fn one_tenant_does_not_use_up_the_operations_of_all() {
        let operations = Operations::default();
        let of = |tenant: &str| About { tenant: tenant.parse().ok(), ..about() };
        let first = operations.begin(of("a")).unwrap();
        for _ in 1..OF_A_TENANT_MAX {
            operations.begin(of("a")).unwrap();
        }
        let denial = operations.begin(of("a")).unwrap_err();
        assert_eq!(denial.code, DenialCode::TooMany);
        assert_eq!(
            denial.message,
            "1024 operations on what tenant a has are under way, and 1024 are accepted"
        );
        operations.begin(of("b")).unwrap();
        operations.begin(about()).unwrap();
        first.end(Ok(()));
        operations.begin(of("a")).unwrap();
    }

    #[test]
    fn ended_ones_are_forgotten_before_those_under_way() {
        let operations = Operations::default();
        let first = operations.begin(about()).unwrap();
        for _ in 0..2 * REMEMBERED {
            operations.begin(about()).unwrap().end(Ok(()));
        }
        let all = operations.list();
        assert!(all.len() <= REMEMBERED + 1, "{}", all.len());
        assert_eq!(all[0].id(), first.id());
    }
}
