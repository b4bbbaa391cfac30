//! Why what a running guest has differs from what is wanted of it, in words. Pure.

use super::super::model::VolumeAttachment;
use super::super::records::{GivenVolume, Moving, Phase, Runtime, VmRecord};

/// What is said of what no running guest takes up.
pub const NEXT_START: &str =
    "it was started with an older generation; what changed takes effect at its next start";

/// Why the volumes of a VM that runs are not those that are wanted; empty if they are, or if it does not run.
#[must_use]
pub fn volumes(record: &VmRecord, runtime: &Runtime) -> String {
    let Some(given) = runtime.given.as_ref().filter(|_| runtime.phase == Phase::Running) else {
        return String::new();
    };
    // An agent of before names were noted gave what was wanted then; what is wanted now can't be told from it.
    if given.volumes.iter().any(|has| has.name.is_none()) {
        return String::new();
    }
    let wanted = &record.spec.volumes;
    let of_had = given.volumes.iter().filter_map(|has| {
        let wanted = wanted.iter().find(|wanted| has.name.as_ref() == Some(&wanted.volume));
        of_had(has, wanted, runtime)
    });
    let missing = wanted
        .iter()
        .filter(|wanted| given.volumes.iter().all(|has| has.name.as_ref() != Some(&wanted.volume)));
    let mut reasons: Vec<String> = of_had.chain(missing.map(|wanted| of_missing(wanted, runtime))).collect();
    reasons.dedup();
    reasons.join("; ")
}

fn of_had(has: &GivenVolume, wanted: Option<&VolumeAttachment>, runtime: &Runtime) -> Option<String> {
    let name = has.name.as_ref()?;
    match (wanted, has.moving) {
        (_, Some(Moving::In)) => Some(format!("volume {name} is being attached")),
        (_, Some(Moving::Out)) => Some(format!("volume {name} is being detached")),
        (Some(wanted), None) => {
            let same = (wanted.read_only, wanted.root) == (has.read_only, has.root);
            (!same).then(|| NEXT_START.to_owned())
        }
        (None, None) if has.root => Some(NEXT_START.to_owned()),
        (None, None) => {
            let refusal = runtime.refusals.iter().find(|refusal| refusal.volume == has.id);
            let when = if runtime.paused { "when its guest goes on" } else { "soon" };
            Some(refusal.map_or_else(|| format!("volume {name} is detached {when}"), |r| r.why.clone()))
        }
    }
}

fn of_missing(wanted: &VolumeAttachment, runtime: &Runtime) -> String {
    let name = &wanted.volume;
    let refusal = runtime.refusals.iter().find(|refusal| refusal.name.as_ref() == Some(name));
    match refusal {
        _ if wanted.root => NEXT_START.to_owned(),
        Some(refusal) => refusal.why.clone(),
        None => format!("volume {name} is attached soon"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::model::Name;
    use super::super::super::records::{Given, Refusal};
    use super::*;

    fn name(text: &str) -> Name {
        Name::parse(text).unwrap()
    }

    /// Of a VM with these volumes, how `wanted` differs.
    fn said(wanted: &serde_json::Value, given: Vec<GivenVolume>, paused: bool, refused: &[&str]) -> String {
        let record = serde_json::json!({
            "tenant": "t", "name": "vm", "id": "vm-1", "generation": 2, "image": "", "slot": 0, "created_at": "",
            "spec": { "image": "i", "volumes": wanted },
        });
        let refusals = refused.iter().map(|volume| Refusal {
            volume: format!("vol-{volume}"),
            name: Some(name(volume)),
            why: format!("{volume} was refused"),
        });
        let runtime = Runtime {
            phase: Phase::Running,
            given: Some(Given { volumes: given, ..Given::default() }),
            refusals: refusals.collect(),
            paused,
            ..Runtime::default()
        };
        volumes(&serde_json::from_value(record).unwrap(), &runtime)
    }

    fn has(volume: &str) -> GivenVolume {
        GivenVolume {
            id: format!("vol-{volume}"),
            name: Some(name(volume)),
            read_only: false,
            root: false,
            moving: None,
        }
    }

    #[test]
    fn every_difference_is_said_with_what_becomes_of_it() {
        let (none, a) = (serde_json::json!([]), serde_json::json!([{ "volume": "a" }]));
        assert_eq!(said(&a, vec![has("a")], false, &[]), "");
        assert_eq!(said(&a, vec![], false, &[]), "volume a is attached soon");
        assert_eq!(said(&none, vec![has("a")], false, &[]), "volume a is detached soon");
        assert_eq!(said(&none, vec![has("a")], true, &[]), "volume a is detached when its guest goes on");
        assert_eq!(said(&none, vec![has("a")], false, &["a"]), "a was refused");
        assert_eq!(said(&a, vec![has("b")], false, &["b"]), "b was refused; volume a is attached soon");
        let coming = GivenVolume { moving: Some(Moving::In), ..has("a") };
        assert_eq!(said(&a, vec![coming], false, &[]), "volume a is being attached");
        let going = GivenVolume { moving: Some(Moving::Out), ..has("a") };
        assert_eq!(said(&a, vec![going], false, &[]), "volume a is being detached");
        for odd in [GivenVolume { read_only: true, ..has("a") }, GivenVolume { root: true, ..has("a") }] {
            assert_eq!(said(&a, vec![odd], false, &[]), NEXT_START);
        }
        assert_eq!(said(&none, vec![GivenVolume { root: true, ..has("a") }], false, &[]), NEXT_START);
    }

    #[test]
    fn what_an_agent_of_before_gave_is_no_difference() {
        let old = serde_json::json!({ "vcpus": 1, "memory_mib": 1, "volumes": [{ "id": "vol-a", "read_only": true }] });
        let given: Given = serde_json::from_value(old).unwrap();
        assert_eq!(said(&serde_json::json!([{ "volume": "a" }]), given.volumes, false, &[]), "");
    }
}
