//! The places where a death of the agent is tried: each follows a side effect, before the next one.
//!
//! A build with debug assertions ends itself by SIGKILL at the step that `$YUND_DIE_AT` names (`name`, or `name:N` for the
//! N-th time). Other builds have no trace of this.

/// All steps, in the order in which a VM's life passes them.
pub const STEPS: [&str; 28] = [
    "tenant.stored",
    "volume.intent",
    "volume.made",
    "volume.stored",
    "resize.intent",
    "resize.done",
    "resize.told",
    "vm.stored",
    "start.intent",
    "start.parts",
    "start.spawned",
    "start.noted",
    "start.configured",
    "start.started",
    "start.running",
    "attach.intent",
    "attach.handed",
    "attach.stored",
    "detach.intent",
    "detach.gone",
    "detach.stored",
    "stop.asked",
    "kill.done",
    "end.seen",
    "end.unplugged",
    "end.stored",
    "delete.intent",
    "delete.files",
];

/// Says that a step was reached.
pub fn reached(step: &'static str) {
    #[cfg(debug_assertions)]
    die_at::check(step);
    #[cfg(not(debug_assertions))]
    let _ = step;
}

#[cfg(debug_assertions)]
mod die_at {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    use nix::sys::signal::{Signal, raise};

    pub(super) fn check(step: &'static str) {
        debug_assert!(super::STEPS.contains(&step), "{step} is not listed");
        static WANTED: OnceLock<Option<(String, u64)>> = OnceLock::new();
        static SEEN: AtomicU64 = AtomicU64::new(0);
        let wanted = WANTED.get_or_init(|| {
            let text = std::env::var("YUND_DIE_AT").ok()?;
            let (name, nth) = text.split_once(':').unwrap_or((&text, "1"));
            Some((name.to_owned(), nth.parse().unwrap_or(1)))
        });
        if let Some((name, nth)) = wanted
            && name == step
            && SEEN.fetch_add(1, Ordering::Relaxed) + 1 == *nth
        {
            let _ = raise(Signal::SIGKILL);
        }
    }
}
