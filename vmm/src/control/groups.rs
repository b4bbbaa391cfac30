//! Rate limits that several devices of a microVM have together, by their names.

use std::collections::BTreeMap;

use devices::clock::monotonic_ns;
use devices::limiter::Group;

use super::config::{HostFiles, VmResources};
use super::planning::limits;
use super::{Denial, GroupError, Outcome};
use crate::spec::RateLimiter;

/// Groups of one microVM at most: more than it can have devices.
const GROUPS_MAX: usize = 64;

struct Entry {
    spec: RateLimiter,
    group: Group,
}

/// All groups. They outlive machines: a guest that is started again finds them as they are.
#[derive(Default)]
pub(super) struct Groups(BTreeMap<String, Entry>);

impl Groups {
    /// Makes a group, or gives one that is there other limits.
    pub(super) fn put(&mut self, id: &str, spec: RateLimiter) -> Result<(), GroupError> {
        let spec = spec.effective().unwrap_or_default();
        let full = self.0.len() >= GROUPS_MAX;
        match self.0.get_mut(id) {
            Some(entry) => {
                entry.spec = spec;
                entry.group.set(&limits(spec.effective()), monotonic_ns());
            }
            None if full => return Err(GroupError::TooMany(GROUPS_MAX)),
            None => {
                let group = Group::new(&limits(spec.effective()), monotonic_ns());
                self.0.insert(id.to_owned(), Entry { spec, group });
            }
        }
        Ok(())
    }

    /// Changes the buckets that `change` names.
    pub(super) fn patch(&mut self, id: &str, change: RateLimiter) -> Result<(), GroupError> {
        let spec = RateLimiter::merge(Some(self.get(id)?), Some(change));
        self.put(id, spec.unwrap_or_default())
    }

    /// What a group may do.
    pub(super) fn get(&self, id: &str) -> Result<RateLimiter, GroupError> {
        let entry = self.0.get(id).ok_or_else(|| GroupError::Unknown(id.to_owned()))?;
        Ok(entry.spec)
    }

    /// Forgets a group that nobody is in.
    pub(super) fn remove(&mut self, id: &str) {
        self.0.remove(id);
    }

    /// The group of this name, if a name is given.
    pub(super) fn find(&self, id: Option<&String>) -> Option<&Group> {
        id.and_then(|id| self.0.get(id)).map(|entry| &entry.group)
    }

    /// Whether a device may name `id`.
    pub(super) fn check(&self, id: Option<&String>) -> Result<(), GroupError> {
        id.map_or(Ok(()), |id| self.get(id).map(drop))
    }

    /// All of them, as they were asked for.
    pub(super) fn view(&self) -> BTreeMap<String, RateLimiter> {
        self.0.iter().map(|(id, entry)| (id.clone(), entry.spec)).collect()
    }
}

impl<H: HostFiles> VmResources<H> {
    /// The group of rate limits of this name, if a name is given.
    pub fn group(&self, id: Option<&String>) -> Option<&Group> {
        self.groups.find(id)
    }

    /// What a group of rate limits may do.
    ///
    /// # Errors
    /// [`GroupError::Unknown`].
    pub fn get_group(&self, id: &str) -> Result<Outcome, Denial> {
        Ok(Outcome::RateLimiter(self.groups.get(id)?))
    }

    /// Changes the limits of a group that `change` names.
    ///
    /// # Errors
    /// [`GroupError::Unknown`].
    pub fn patch_group(&mut self, id: &str, change: RateLimiter) -> Result<Outcome, Denial> {
        self.groups.patch(id, change)?;
        Ok(Outcome::Done)
    }

    /// Removes a group that no device is in.
    ///
    /// # Errors
    /// [`GroupError::Unknown`], [`GroupError::InUse`].
    pub fn remove_group(&mut self, id: &str) -> Result<Outcome, Denial> {
        self.groups.get(id)?;
        let drives = self.drives().iter().map(|drive| (&drive.spec.id, &drive.spec.group));
        let nets = self.nets().iter().map(|net| (&net.spec.iface_id, &net.spec.rate_limiter_group));
        if let Some((device, _)) = drives.chain(nets).find(|(_, of)| of.as_deref() == Some(id)) {
            return Err(GroupError::InUse { id: id.to_owned(), device: device.clone() }.into());
        }
        self.groups.remove(id);
        Ok(Outcome::Done)
    }
}

#[cfg(test)]
#[path = "groups_tests.rs"]
mod tests;
