//! What to do next with a VM: wanted and actual state in, one step out. No I/O, no clock, no threads.

use super::super::model::{Power, RestartPolicy};
use super::super::records::Phase;

/// What is known of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// What is wanted.
    pub power: Power,
    /// It is being removed.
    pub deleting: bool,
    /// Its time to live is over.
    pub expired: bool,
    /// The host drains or shuts down, and it is to stop for that.
    pub held: bool,
    /// Where its incarnation is.
    pub phase: Phase,
    /// Its vCPUs stand still.
    pub paused: bool,
    /// The wanted generation is over (see `Runtime::over`).
    pub over: bool,
    /// Its incarnation is to end and another to follow.
    pub reset: bool,
    /// It is to end without being asked.
    pub kill: bool,
    /// Its restart has to wait.
    pub backing_off: bool,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing: it is as it should be, or has to wait for something.
    Rest,
    /// Make an incarnation.
    Start,
    /// Ask the guest to switch itself off; end it when its time is over.
    Stop,
    /// End it at once.
    Kill,
    /// Let its vCPUs stand still.
    Pause,
    /// Let them go on.
    Resume,
    /// Forget it.
    Remove,
}

impl Facts {
    /// Whether an incarnation should exist.
    #[must_use]
    pub fn wants_process(&self) -> bool {
        !self.deleting && !self.expired && !self.held && !self.over && self.power != Power::Stopped
    }

    /// The next step.
    #[must_use]
    pub fn step(&self) -> Step {
        match self.phase {
            Phase::Stopped if self.deleting => Step::Remove,
            Phase::Stopped if self.wants_process() && !self.backing_off => Step::Start,
            Phase::Stopped => Step::Rest,
            // Only seen by an agent that starts: it has found out whether there is a process, and has not.
            Phase::Starting => Step::Kill,
            Phase::Running if self.deleting || self.reset || self.kill => Step::Kill,
            Phase::Running if !self.wants_process() => Step::Stop,
            Phase::Running if self.power == Power::Paused && !self.paused => Step::Pause,
            Phase::Running if self.power == Power::Running && self.paused => Step::Resume,
            Phase::Running => Step::Rest,
        }
    }
}

/// What follows the end of an incarnation that nobody wanted to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// It is over, until something else is wanted.
    Over,
    /// Another one follows.
    Again,
}

/// Applies a restart policy. `clean`: the guest switched itself off or rebooted.
#[must_use]
pub fn after_end(policy: RestartPolicy, clean: bool) -> After {
    match policy {
        RestartPolicy::Always => After::Again,
        RestartPolicy::OnFailure if !clean => After::Again,
        RestartPolicy::OnFailure | RestartPolicy::Never => After::Over,
    }
}

/// How long the n-th restart in a row waits, in milliseconds: twice as long each time, up to a minute.
#[must_use]
pub fn backoff_ms(restarts: u64) -> u64 {
    50 << restarts.min(10)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn facts() -> impl Strategy<Value = Facts> {
        let power = prop_oneof![Just(Power::Running), Just(Power::Paused), Just(Power::Stopped)];
        let phase = prop_oneof![Just(Phase::Stopped), Just(Phase::Starting), Just(Phase::Running)];
        (power, phase, any::<[bool; 8]>()).prop_map(|(power, phase, bits)| {
            let [deleting, expired, held, paused, over, reset, kill, backing_off] = bits;
            Facts { power, deleting, expired, held, phase, paused, over, reset, kill, backing_off }
        })
    }

    /// What the world makes of a step.
    fn apply(mut facts: Facts, step: Step) -> Facts {
        match step {
            Step::Start => {
                facts.phase = Phase::Running;
                facts.paused = false;
            }
            Step::Stop | Step::Kill => {
                facts.phase = Phase::Stopped;
                (facts.reset, facts.kill) = (false, false);
            }
            Step::Pause => facts.paused = true,
            Step::Resume => facts.paused = false,
            Step::Rest | Step::Remove => {}
        }
        facts
    }

    proptest! {
        #[test]
        fn every_state_comes_to_rest_as_it_is_wanted(start in facts()) {
            let mut facts = Facts { backing_off: false, ..start };
            let mut steps = Vec::new();
            loop {
                let step = facts.step();
                steps.push(step);
                prop_assert!(steps.len() <= 5, "{start:?}: {steps:?}");
                if matches!(step, Step::Rest | Step::Remove) {
                    break;
                }
                facts = apply(facts, step);
            }
            prop_assert_eq!(facts.phase == Phase::Running, facts.wants_process());
            if facts.wants_process() {
                prop_assert_eq!(facts.paused, facts.power == Power::Paused);
            }
            prop_assert_eq!(steps.last() == Some(&Step::Remove), start.deleting);
        }

        #[test]
        fn what_runs_as_it_is_wanted_is_left_alone(start in facts()) {
            let fine = start.phase == Phase::Running && start.wants_process() && !start.reset && !start.kill
                && start.paused == (start.power == Power::Paused);
            prop_assert_eq!(fine, start.phase == Phase::Running && start.step() == Step::Rest);
        }

        #[test]
        fn a_guest_is_ended_unasked_only_if_that_was_said(start in facts()) {
            if start.step() == Step::Kill && start.phase == Phase::Running {
                prop_assert!(start.deleting || start.reset || start.kill);
            }
        }
    }

    #[test]
    fn policies_tell_a_clean_end_from_a_failure() {
        use RestartPolicy::{Always, Never, OnFailure};
        for (policy, clean, again) in [
            (Never, true, false),
            (Never, false, false),
            (OnFailure, true, false),
            (OnFailure, false, true),
            (Always, true, true),
            (Always, false, true),
        ] {
            assert_eq!(after_end(policy, clean) == After::Again, again, "{policy:?} {clean}");
        }
    }

    #[test]
    fn restarts_wait_longer_each_time_and_never_over_a_minute() {
        let waits: Vec<u64> = (0..64).map(backoff_ms).collect();
        assert_eq!(waits[0], 50);
        assert!(waits.windows(2).all(|pair| pair[0] <= pair[1]), "{waits:?}");
        assert!(waits.iter().all(|wait| *wait <= 60_000), "{waits:?}");
        assert_eq!(waits[20], 51_200);
    }
}
