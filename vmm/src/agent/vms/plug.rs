//! Volumes that come and go while the guest runs.
//!
//! ```text
//!  attach.intent ──> opened, handed over ──> attach.stored      In:  an agent that starts asks the VMM whether it has it
//!  detach.intent ──> the guest lets go   ──> detach.stored      Out: an agent that starts asks the guest again
//! ```
//! A volume is among those the incarnation was given from the intent to attach it until it is known that its VMM has it no
//! more: as long it is nobody else's. What is refused, by guest, VMM or host, is noted and not tried again until the VM's spec
//! is put again. What a VMM says is asked of it after every failure; one that says nothing is asked again later.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;

use super::super::events::Happened;
use super::super::model::Name;
use super::super::ops::drive_id;
use super::super::records::{GivenVolume, Moving, Refusal, Runtime, VolumeRecord};
use super::super::state::Activity;
use super::super::steps::reached;
use super::client::VmmClient;
use super::decide::{Plug, Step};
use super::supervise::{Task, happened};
use crate::sandbox::jail::in_words;

/// What became of it.
enum Came {
    /// The VMM has the volume, or has it no more, as was wanted.
    Done,
    /// It was refused, in these words, and nothing has changed.
    Refused(String),
    /// Nobody knows: the VMM does not answer, in these words.
    Unknown(String),
    /// The VM is to end: that comes first.
    Ends,
    /// Its process has ended.
    Ended,
}

fn name_of(volume: &GivenVolume) -> String {
    volume.name.as_ref().map_or_else(|| volume.id.clone(), Name::to_string)
}

fn path_of(volume: &GivenVolume) -> String {
    format!("/drives/{}", drive_id(&volume.id))
}

/// Puts what is known of a volume among what a VM was given: nothing if it does not have it.
fn note(runtime: &mut Runtime, id: &str, now: Option<&GivenVolume>) {
    let Some(given) = &mut runtime.given else { return };
    match (given.volumes.iter().position(|volume| volume.id == id), now) {
        (Some(at), Some(now)) => given.volumes[at].clone_from(now),
        (Some(at), None) => drop(given.volumes.remove(at)),
        (None, Some(now)) => given.volumes.push(now.clone()),
        (None, None) => {}
    }
}

impl Task {
    /// Does the next thing that is to be done with its volumes.
    pub(super) async fn plug(&mut self) {
        let Some(incarnation) = &self.incarnation else { return self.lost().await };
        let client = incarnation.client.clone();
        match self.next_plug() {
            Some((Plug::Look, volume)) => self.look(&client, &volume).await,
            Some((Plug::Attach, volume)) => self.attach(&client, volume).await,
            Some((Plug::Detach, volume)) => self.detach(&client, volume).await,
            None => {}
        }
    }

    fn next_plug(&self) -> Option<(Plug, GivenVolume)> {
        let state = self.agent.state();
        state.plug(state.vms.get(&self.key)?)
    }

    /// Stores the intent. Whether it still is one: what is wanted may have changed while another change was being stored.
    async fn intend(&self, plug: Plug, volume: &GivenVolume, moving: Moving) -> bool {
        let moved = GivenVolume { moving: Some(moving), ..volume.clone() };
        self.save(
            |runtime| {
                if self.next_plug().is_some_and(|(next, which)| next == plug && which.id == volume.id) {
                    note(runtime, &volume.id, Some(&moved));
                }
            },
            None,
        )
        .await;
        let state = self.agent.state();
        let given = state.vms.get(&self.key).and_then(|vm| vm.runtime.given.as_ref());
        given.is_some_and(|given| {
            given.volumes.iter().any(|has| has.id == volume.id && has.moving == Some(moving))
        })
    }

    /// The agent before was about to attach it: the VMM says whether it did.
    async fn look(&mut self, client: &VmmClient, volume: &GivenVolume) {
        match client.drives().await {
            Ok(drives) => {
                self.live.does(Activity::None);
                if drives.contains(&drive_id(&volume.id)) {
                    self.has_come(volume, Came::Done).await;
                } else {
                    self.save(|runtime| note(runtime, &volume.id, None), None).await;
                }
            }
            Err(error) => self.has_come(volume, Came::Unknown(in_words(&error))).await,
        }
    }

    async fn attach(&mut self, client: &VmmClient, volume: GivenVolume) {
        self.live.does(Activity::Plugging(format!("volume {} is being attached", name_of(&volume))));
        if !self.intend(Plug::Attach, &volume, Moving::In).await {
            return;
        }
        reached("attach.intent");
        let file = match self.agent.open_late(&self.key.0, &volume).await {
            Ok(file) => file,
            // Nothing of it was handed over.
            Err(denial) => return self.has_come(&volume, Came::Refused(denial.message)).await,
        };
        let keeps = |record: &VolumeRecord| record.id == volume.id && record.preallocated;
        let discard = !self.agent.state().volumes.values().any(keeps);
        let body = serde_json::json!({
            "drive_id": drive_id(&volume.id), "path_on_host": "received:0", "is_root_device": false,
            "is_read_only": volume.read_only, "cache_type": "Writeback", "discard": discard,
        });
        let path = path_of(&volume);
        let came = self.ask(client, &volume, true, client.put_with(&path, &body, vec![file])).await;
        reached("attach.handed");
        self.has_come(&volume, came).await;
    }

    async fn detach(&mut self, client: &VmmClient, volume: GivenVolume) {
        self.live.does(Activity::Plugging(format!(
            "volume {} is being detached: its guest was asked to let go of it",
            name_of(&volume)
        )));
        if !self.intend(Plug::Detach, &volume, Moving::Out).await {
            return;
        }
        reached("detach.intent");
        let path = path_of(&volume);
        let came = self.ask(client, &volume, false, client.delete(&path)).await;
        reached("detach.gone");
        self.has_gone(&volume, came).await;
    }

    /// Has the VMM do something, unless the VM ends first. `has`: it has the volume if that succeeds.
    async fn ask(
        &self,
        client: &VmmClient,
        volume: &GivenVolume,
        has: bool,
        asked: impl Future<Output = Result<(), super::client::VmmError>>,
    ) -> Came {
        let Some(incarnation) = &self.incarnation else { return Came::Ends };
        let live = Arc::clone(&self.live);
        let (mut asked, mut ended) = (pin!(asked), pin!(incarnation.handle.ended()));
        let error = loop {
            tokio::select! {
                result = &mut asked => match result {
                    Ok(()) => return Came::Done,
                    Err(error) => break error,
                },
                () = &mut ended => return Came::Ended,
                () = live.changed.notified() => {
                    let step = self.facts().map(|(facts, _)| facts.step());
                    if matches!(step, None | Some(Step::Stop | Step::Kill)) {
                        return Came::Ends;
                    }
                }
            }
        };
        // Refused, or never answered: it may have been done all the same, now or by an agent before.
        match client.drives().await {
            Ok(drives) if drives.contains(&drive_id(&volume.id)) == has => Came::Done,
            Ok(_) => Came::Refused(in_words(&error)),
            Err(error) => Came::Unknown(in_words(&error)),
        }
    }

    async fn has_come(&mut self, volume: &GivenVolume, came: Came) {
        match came {
            Came::Done => {
                let has = GivenVolume { moving: None, ..volume.clone() };
                let told = self.told(volume, "volume.attached", "to");
                self.save(|runtime| note(runtime, &volume.id, Some(&has)), Some(told)).await;
                reached("attach.stored");
            }
            Came::Refused(why) => self.refused(volume, "attached to", &why, None).await,
            other => self.not_now(other).await,
        }
    }

    async fn has_gone(&mut self, volume: &GivenVolume, came: Came) {
        match came {
            Came::Done => {
                let told = self.told(volume, "volume.detached", "from");
                self.save(|runtime| note(runtime, &volume.id, None), Some(told)).await;
                reached("detach.stored");
            }
            Came::Refused(why) => {
                let has = GivenVolume { moving: None, ..volume.clone() };
                self.refused(volume, "detached from", &why, Some(&has)).await;
            }
            other => self.not_now(other).await,
        }
    }

    async fn refused(&self, volume: &GivenVolume, what: &str, why: &str, has: Option<&GivenVolume>) {
        let name = name_of(volume);
        log::warn!("{}/{}: volume {name} can't be {what} it: {why}", self.key.0, self.key.1);
        let why = format!(
            "volume {name} could not be {what} it ({why}); that is tried again when its spec is put again, or at its next start"
        );
        let refusal = Refusal { volume: volume.id.clone(), name: volume.name.clone(), why };
        let told = happened(&self.key, "vm.refused", refusal.why.clone());
        self.save(
            |runtime| {
                note(runtime, &volume.id, has);
                runtime.refusals.retain(|other| other.volume != volume.id);
                runtime.refusals.push(refusal.clone());
            },
            Some(told),
        )
        .await;
    }

    /// It stays as it is: on its way.
    async fn not_now(&mut self, came: Came) {
        match came {
            Came::Unknown(why) => {
                self.live.does(Activity::Silent(why));
                self.pause_for_a_while().await;
            }
            Came::Ended => self.ended_by_itself().await,
            Came::Ends | Came::Done | Came::Refused(_) => {}
        }
    }

    fn told(&self, volume: &GivenVolume, kind: &'static str, preposition: &str) -> Happened {
        let detail = format!("{preposition} VM {}, which runs", self.key.1);
        let target = Some(name_of(volume));
        Happened { target, ..happened(&self.key, kind, detail) }
    }
}
