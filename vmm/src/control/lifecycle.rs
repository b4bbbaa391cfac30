//! Which command is allowed when. Pure: no I/O, no clock, no thread.
//!
//! ```text
//!                Start            Pause
//!  NotStarted ──────────▶ Running ──────▶ Paused
//!                            ▲   ◀────────  │
//!                            │     Resume   │        guest powers off, resets, panics, or the VMM is told to stop
//!                            └──────┬───────┘ ──────▶ Ended
//! ```

use super::{Command, Configure, Denial};
use crate::spec::VmStatus;

/// Where a microVM is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Being configured.
    NotStarted,
    /// The guest runs.
    Running,
    /// The guest stands still.
    Paused,
    /// The guest is no more.
    Ended,
}

impl From<State> for VmStatus {
    fn from(state: State) -> Self {
        match state {
            State::NotStarted | State::Ended => Self::NotStarted,
            State::Running => Self::Running,
            State::Paused => Self::Paused,
        }
    }
}

/// What to do with a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Carry it out.
    Do,
    /// Nothing: what it asks for is so already. Answer success.
    AlreadySo,
    /// Nothing: answer this.
    Deny(Denial),
}

/// Whether `command` may be carried out on a microVM in `state`.
pub fn admit(state: State, command: &Command) -> Verdict {
    use State::{Ended, NotStarted, Paused, Running};
    match command {
        Command::GetInfo
        | Command::GetVersion
        | Command::GetVmConfig
        | Command::GetMachineConfig
        | Command::GetRateLimiterGroup(_) => Verdict::Do,
        Command::Configure(
            Configure::Drive(_) | Configure::NetworkInterface(_) | Configure::RateLimiterGroup(..),
        )
        | Command::PatchRateLimiterGroup(..)
        | Command::DeleteRateLimiterGroup(_) => match state {
            NotStarted | Running | Paused => Verdict::Do,
            Ended => Verdict::Deny(Denial::Ended),
        },
        Command::Configure(_) | Command::PutLogger(_) | Command::PutMetrics(_) | Command::Start => {
            match state {
                NotStarted => Verdict::Do,
                Running | Paused | Ended => Verdict::Deny(Denial::AfterStart),
            }
        }
        Command::Pause => match state {
            Running => Verdict::Do,
            Paused => Verdict::AlreadySo,
            NotStarted => Verdict::Deny(Denial::BeforeStart),
            Ended => Verdict::Deny(Denial::Ended),
        },
        Command::Resume => match state {
            Paused => Verdict::Do,
            Running => Verdict::AlreadySo,
            NotStarted => Verdict::Deny(Denial::BeforeStart),
            Ended => Verdict::Deny(Denial::Ended),
        },
        Command::SendCtrlAltDel
        | Command::PressPowerButton
        | Command::FlushMetrics
        | Command::PatchDrive(_)
        | Command::PatchNetworkInterface(_)
        | Command::PatchEntropy(_)
        | Command::PatchVsock(_)
        | Command::Unplug(_) => match state {
            Running | Paused => Verdict::Do,
            NotStarted => Verdict::Deny(Denial::BeforeStart),
            Ended => Verdict::Deny(Denial::Ended),
        },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::super::Unplug;
    use super::*;
    use crate::spec::{
        BootSource, DrivePatch, Entropy, Logger, MachineConfigPatch, Metrics, NetworkInterfacePatch,
        RateLimiter, Serial, Vsock,
    };

    const STATES: [State; 4] = [State::NotStarted, State::Running, State::Paused, State::Ended];

    fn reads() -> Vec<Command> {
        let group = Command::GetRateLimiterGroup(String::new());
        vec![Command::GetInfo, Command::GetVersion, Command::GetVmConfig, Command::GetMachineConfig, group]
    }

    fn before_the_start() -> Vec<Command> {
        vec![
            Command::Configure(Configure::BootSource(BootSource::default())),
            Command::Configure(Configure::Machine(MachineConfigPatch::default())),
            Command::Configure(Configure::Entropy(Entropy::default())),
            Command::Configure(Configure::Vsock(Vsock::default())),
            Command::Configure(Configure::Serial(Serial::default())),
            Command::PutLogger(Logger::default()),
            Command::PutMetrics(Metrics { metrics_path: String::new() }),
            Command::Start,
        ]
    }

    fn after_the_start() -> Vec<Command> {
        vec![
            Command::Pause,
            Command::Resume,
            Command::SendCtrlAltDel,
            Command::PressPowerButton,
            Command::FlushMetrics,
            Command::PatchDrive(DrivePatch {
                drive_id: String::new(),
                path_on_host: None,
                rate_limiter: None,
            }),
            Command::PatchNetworkInterface(NetworkInterfacePatch {
                iface_id: String::new(),
                rx_rate_limiter: None,
                tx_rate_limiter: None,
            }),
            Command::PatchEntropy(RateLimiter::default()),
            Command::PatchVsock(RateLimiter::default()),
            Command::Unplug(Unplug::Drive(String::new())),
            Command::Unplug(Unplug::NetworkInterface(String::new())),
        ]
    }

    fn at_any_time() -> Vec<Command> {
        let (id, limits) = (String::new(), RateLimiter::default());
        vec![
            Command::Configure(Configure::RateLimiterGroup(id.clone(), limits)),
            Command::PatchRateLimiterGroup(id.clone(), limits),
            Command::DeleteRateLimiterGroup(id),
        ]
    }

    fn every_command() -> Vec<Command> {
        [reads(), before_the_start(), after_the_start(), at_any_time()].concat()
    }

    /// The state after a command that was admitted and worked.
    fn after(state: State, command: &Command) -> State {
        match (admit(state, command), command) {
            (Verdict::Do, Command::Start | Command::Resume) => State::Running,
            (Verdict::Do, Command::Pause) => State::Paused,
            _ => state,
        }
    }

    #[test]
    fn reading_is_always_allowed() {
        for (state, command) in STATES.iter().flat_map(|state| reads().into_iter().map(move |c| (*state, c)))
        {
            assert_eq!(admit(state, &command), Verdict::Do, "{state:?} {command:?}");
        }
    }

    #[test]
    fn configuration_and_start_are_refused_after_the_start() {
        for command in before_the_start() {
            assert_eq!(admit(State::NotStarted, &command), Verdict::Do);
            for state in [State::Running, State::Paused, State::Ended] {
                let Verdict::Deny(denial) = admit(state, &command) else { panic!("{state:?} {command:?}") };
                assert_eq!(
                    denial.to_string(),
                    "The requested operation is not supported after starting the microVM."
                );
            }
        }
    }

    #[test]
    fn what_needs_a_guest_is_refused_before_the_start_and_after_the_end() {
        for command in after_the_start() {
            let Verdict::Deny(denial) = admit(State::NotStarted, &command) else { panic!("{command:?}") };
            assert_eq!(
                denial.to_string(),
                "The requested operation is not supported before starting the microVM."
            );
            assert_eq!(admit(State::Ended, &command), Verdict::Deny(Denial::Ended));
        }
    }

    #[test]
    fn groups_of_rate_limits_change_until_the_end() {
        for command in at_any_time() {
            for state in [State::NotStarted, State::Running, State::Paused] {
                assert_eq!(admit(state, &command), Verdict::Do);
            }
            assert_eq!(admit(State::Ended, &command), Verdict::Deny(Denial::Ended));
        }
    }

    #[test]
    fn pausing_and_resuming_twice_is_success() {
        assert_eq!(admit(State::Running, &Command::Pause), Verdict::Do);
        assert_eq!(admit(State::Paused, &Command::Pause), Verdict::AlreadySo);
        assert_eq!(admit(State::Paused, &Command::Resume), Verdict::Do);
        assert_eq!(admit(State::Running, &Command::Resume), Verdict::AlreadySo);
    }

    proptest! {
        #[test]
        fn a_vm_starts_at_most_once_and_never_returns_to_configuration(
            commands in prop::collection::vec(select(every_command()), 0..64)
        ) {
            let mut state = State::NotStarted;
            let mut starts = 0;
            for command in &commands {
                let admitted = admit(state, command) == Verdict::Do;
                starts += usize::from(admitted && *command == Command::Start);
                let next = after(state, command);
                prop_assert!(state == State::NotStarted || next != State::NotStarted);
                state = next;
            }
            prop_assert!(starts <= 1);
            prop_assert_eq!(starts == 0, state == State::NotStarted);
        }

        #[test]
        fn repeating_a_pause_or_resume_never_changes_the_answer_to_success(
            state in select(STATES.to_vec()), command in select(vec![Command::Pause, Command::Resume])
        ) {
            let first = admit(state, &command);
            let again = admit(after(state, &command), &command);
            prop_assert_eq!(matches!(first, Verdict::Deny(_)), matches!(again, Verdict::Deny(_)));
        }

        #[test]
        fn a_command_is_denied_before_or_after_the_start_but_not_both(command in select(every_command())) {
            let refused = |state| matches!(admit(state, &command), Verdict::Deny(_));
            prop_assert!(!(refused(State::NotStarted) && refused(State::Running)));
            prop_assert_eq!(refused(State::Running), refused(State::Paused));
        }
    }
}
