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
