//! What to do next with a VM: wanted and actual state in, one step out. No I/O, no clock, no threads.

use super::super::model::{Power, RestartPolicy};
use super::super::records::{GivenVolume, Moving, Phase, Refusal};

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
    /// What is next to be done with its volumes (see [`plug`]).
    pub plug: Option<Plug>,
}

/// What to do with a volume of a guest that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plug {
    /// Find out whether the VMM has it.
    Look,
    /// Hand it over.
    Attach,
    /// Have the guest let go of it.
    Detach,
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
    /// Attach or detach a volume, as [`plug`] says.
    Plug,
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
            Phase::Running if self.plug.is_some() => Step::Plug,
            Phase::Running => Step::Rest,
        }
    }
}

/// What to do next with the volumes of a guest that runs, and with which: it has what was `given`, and is to have what is
/// `wanted`. What it refused is left alone. A guest that stands still lets go of nothing. The root file system stays as it is,
/// and so does whether a volume that it has can be written to.
#[must_use]
pub fn plug<'a>(
    given: &'a [GivenVolume],
    wanted: &'a [GivenVolume],
    refused: &[Refusal],
    paused: bool,
) -> Option<(Plug, &'a GivenVolume)> {
    let is_in = |volumes: &[GivenVolume], id: &str| volumes.iter().any(|volume| volume.id == id);
    let is_left = |volume: &GivenVolume| volume.root || refused.iter().any(|other| other.volume == volume.id);
    // The agent before had begun with it, and nobody knows how far it came.
    if let Some(volume) = given.iter().find(|volume| volume.moving == Some(Moving::In)) {
        return Some((Plug::Look, volume));
    }
    // Also if it is wanted again: whoever was asked before may let go of it at any time.
    let goes = |volume: &&GivenVolume| {
        volume.moving == Some(Moving::Out) || !is_in(wanted, &volume.id) && !is_left(volume)
    };
    if let Some(volume) = given.iter().find(goes).filter(|_| !paused) {
        return Some((Plug::Detach, volume));
    }
    let comes = |volume: &&GivenVolume| !is_in(given, &volume.id) && !is_left(volume);
    wanted.iter().find(comes).map(|volume| (Plug::Attach, volume))
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
        let plug = prop_oneof![
            Just(None),
            Just(Some(Plug::Look)),
            Just(Some(Plug::Attach)),
            Just(Some(Plug::Detach))
        ];
        (power, phase, plug, any::<[bool; 8]>()).prop_map(|(power, phase, plug, bits)| {
            let [deleting, expired, held, paused, over, reset, kill, backing_off] = bits;
            Facts { power, deleting, expired, held, phase, paused, over, reset, kill, backing_off, plug }
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
                facts.plug = None;
                (facts.reset, facts.kill) = (false, false);
            }
            Step::Pause => facts.paused = true,
            Step::Resume => facts.paused = false,
            Step::Plug => facts.plug = None,
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
                prop_assert!(steps.len() <= 6, "{start:?}: {steps:?}");
                if matches!(step, Step::Rest | Step::Remove) {
                    break;
                }
                facts = apply(facts, step);
            }
            prop_assert_eq!(facts.phase == Phase::Running, facts.wants_process());
            if facts.wants_process() {
                prop_assert_eq!(facts.plug, None);
                prop_assert_eq!(facts.paused, facts.power == Power::Paused);
            }
            prop_assert_eq!(steps.last() == Some(&Step::Remove), start.deleting);
        }

        #[test]
        fn what_runs_as_it_is_wanted_is_left_alone(start in facts()) {
            let fine = start.phase == Phase::Running && start.wants_process() && !start.reset && !start.kill
                && start.plug.is_none() && start.paused == (start.power == Power::Paused);
            prop_assert_eq!(fine, start.phase == Phase::Running && start.step() == Step::Rest);
        }

        #[test]
        fn a_guest_is_ended_unasked_only_if_that_was_said(start in facts()) {
            if start.step() == Step::Kill && start.phase == Phase::Running {
                prop_assert!(start.deleting || start.reset || start.kill);
            }
        }
    }

    fn volume(id: u8) -> impl Strategy<Value = GivenVolume> {
        let moving = prop_oneof![3 => Just(None), 1 => Just(Some(Moving::In)), 1 => Just(Some(Moving::Out))];
        (moving, any::<bool>(), prop::bool::weighted(0.2)).prop_map(move |(moving, read_only, root)| {
            GivenVolume { id: format!("vol-{id}"), name: None, read_only, root, moving }
        })
    }

    /// Some of four volumes, in any order.
    fn volumes() -> impl Strategy<Value = Vec<GivenVolume>> {
        let all = (volume(0), volume(1), volume(2), volume(3));
        all.prop_flat_map(|(a, b, c, d)| prop::sample::subsequence(vec![a, b, c, d], 0..=4).prop_shuffle())
    }

    fn ids(volumes: &[GivenVolume]) -> std::collections::BTreeSet<&str> {
        volumes.iter().map(|volume| volume.id.as_str()).collect()
    }

    proptest! {
        #[test]
        fn whatever_a_vmm_answers_volumes_come_to_rest_and_are_as_wanted_or_refused(
            given in volumes(),
            wanted in volumes(),
            paused in any::<bool>(),
            answers in prop::collection::vec(prop::bool::weighted(0.3), 12),
        ) {
            let wanted: Vec<_> = wanted.into_iter().map(|v| GivenVolume { moving: None, ..v }).collect();
            let (mut now, mut refused, mut answers) = (given.clone(), Vec::new(), answers.into_iter());
            while let Some((plug, volume)) = plug(&now, &wanted, &refused, paused) {
                let yes = answers.next();
                prop_assert!(yes.is_some(), "{given:?} {wanted:?}: it spins");
                let (volume, yes) = (volume.clone(), yes == Some(true));
                prop_assert!(plug != Plug::Detach || !paused);
                let others: Vec<_> = now.iter().filter(|other| other.id != volume.id).cloned().collect();
                let has = match plug {
                    Plug::Look | Plug::Attach => yes,
                    Plug::Detach => !yes,
                };
                if !yes && plug != Plug::Look {
                    refused.push(Refusal { volume: volume.id.clone(), name: None, why: String::new() });
                }
                now = others;
                now.extend(has.then_some(GivenVolume { moving: None, ..volume }));
            }
            for id in ids(&now).symmetric_difference(&ids(&wanted)) {
                let root = given.iter().chain(&wanted).any(|volume| volume.id == **id && volume.root);
                let stays = paused && ids(&now).contains(id);
                prop_assert!(stays || root || refused.iter().any(|refusal| refusal.volume == **id), "{id}: {now:?}");
            }
        }

        #[test]
        fn volumes_that_are_as_wanted_are_left_alone(given in volumes(), paused in any::<bool>()) {
            let given: Vec<_> = given.into_iter().map(|v| GivenVolume { moving: None, ..v }).collect();
            let mut wanted = given.clone();
            wanted.reverse();
            for volume in &mut wanted {
                volume.read_only = !volume.read_only;
            }
            prop_assert_eq!(plug(&given, &wanted, &[], paused), None);
        }
    }

    #[test]
    fn what_goes_makes_room_first_and_what_was_refused_is_not_tried_again() {
        let volume = |id: &str| GivenVolume {
            id: id.to_owned(),
            name: None,
            read_only: false,
            root: false,
            moving: None,
        };
        let next = |given: &[GivenVolume], wanted: &[GivenVolume], refused: &[&str], paused| {
            let refused: Vec<_> = refused
                .iter()
                .map(|id| Refusal { volume: (*id).to_owned(), name: None, why: String::new() })
                .collect();
            plug(given, wanted, &refused, paused).map(|(plug, volume)| (plug, volume.id.clone()))
        };
        let (old, new) = ([volume("old")], [volume("new")]);
        assert_eq!(next(&old, &new, &[], false), Some((Plug::Detach, "old".to_owned())));
        assert_eq!(next(&old, &new, &["old"], false), Some((Plug::Attach, "new".to_owned())));
        assert_eq!(next(&old, &new, &[], true), Some((Plug::Attach, "new".to_owned())), "it stands still");
        assert_eq!(next(&old, &new, &["old", "new"], false), None);
        let coming = [GivenVolume { moving: Some(Moving::In), ..volume("new") }];
        assert_eq!(next(&coming, &new, &["new"], true), Some((Plug::Look, "new".to_owned())));
        let going = [GivenVolume { moving: Some(Moving::Out), ..volume("new") }];
        assert_eq!(next(&going, &new, &["new"], false), Some((Plug::Detach, "new".to_owned())));
        let root = [GivenVolume { root: true, ..volume("root") }];
        assert_eq!(next(&root, &[], &[], false), None);
        assert_eq!(next(&[], &root, &[], false), None);
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
