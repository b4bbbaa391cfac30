//! Usage: counters of VMs and sizes of volumes, read now and then, and what they grew by as records.
//!
//! A record and the position it leads to are one commit: after any death of the agent the next sample goes on from the last
//! position that was stored, so nothing is left out and nothing is counted twice. The last position of what has ended is
//! closed, and kept until its end itself is stored: who dies in between does not begin to count again. What a VMM counted
//! after its last sample and before it died by force is lost, to the tenant's advantage.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures_util::{StreamExt, stream};

use serde::de::IgnoredAny;

use super::clock;
use super::core::Agent;
use super::model::{Denial, EgressClass, Name, VmStats};
use super::records::{Phase, Runtime, VmRecord, VolumeState};
use super::state::{Activity, Key};
use super::store::{Batch, StoreError, Table};
use super::usage::{Counters, Instant, Levels, Meter, Owner, Position, Record, Sample, advance};
use super::vms::client::{VmmClient, VmmError};
use super::vms::launch::jail_dir;
use super::vms::process;
use crate::sandbox::jail::in_words;

/// How long what was read for somebody is good enough for the next.
const FRESH: Duration = Duration::from_secs(10);
/// Old records that are removed at once.
const FORGOTTEN_AT_ONCE: usize = 10_000;
/// Records that a report has in memory at once: whoever reads one slowly holds up no more than these.
const PAGE: usize = 256;
/// Names of the threads whose time is a guest's.
const VCPU_THREADS: &str = "yun_vcpu";

/// VMs that are sampled at the same time: their records become one flush of the store, and one VMM that does not answer
/// holds up nobody else.
const SAMPLED_AT_ONCE: usize = 32;

/// Whether an incarnation has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// It runs.
    NotYet,
    /// Just now.
    Seen,
    /// Some time since the last sample.
    Unseen,
}

/// What a VMM counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VmmCounters {
    /// Bytes read from disks.
    pub read_bytes: u64,
    /// Bytes written to disks.
    pub write_bytes: u64,
    /// Read requests.
    pub reads: u64,
    /// Write requests.
    pub writes: u64,
    /// Bytes the guest received.
    pub rx_bytes: u64,
    /// Bytes the guest sent.
    pub tx_bytes: u64,
}

impl VmmCounters {
    /// Reads a VMM's OpenMetrics text: sums over its drives and interfaces.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut sums = Self::default();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let Some((head, value)) = line.rsplit_once(' ') else { continue };
            let name = head.split('{').next().unwrap_or(head);
            let Ok(value) = value.parse::<u64>() else { continue };
            let sum = match name {
                "yun_block_read_bytes_total" => &mut sums.read_bytes,
                "yun_block_write_bytes_total" => &mut sums.write_bytes,
                "yun_block_read_count_total" => &mut sums.reads,
                "yun_block_write_count_total" => &mut sums.writes,
                "yun_net_rx_bytes_count_total" => &mut sums.rx_bytes,
                "yun_net_tx_bytes_count_total" => &mut sums.tx_bytes,
                _ => continue,
            };
            *sum = sum.saturating_add(value);
        }
        sums
    }
}

/// How far records are forgotten: a clock that somebody has set forward is no reason to forget them all.
#[derive(Debug, Default)]
struct Forgetting {
    /// Up to when that went, by the clock on the wall, and when it was, by the time since boot; in nanoseconds.
    last: Option<(u64, u64)>,
}

impl Forgetting {
    /// The end of what may be forgotten now: what has expired, but from the first record on no faster than twice as fast as
    /// the time since boot goes by, which nobody can set.
    fn until(&mut self, first_ns: u64, expired_ns: u64, since_boot_ns: u64) -> u64 {
        let (last_ns, then_ns) = self.last.unwrap_or((first_ns, since_boot_ns));
        let pace_ns = since_boot_ns.saturating_sub(then_ns).saturating_mul(2);
        let until_ns = expired_ns.min(last_ns.saturating_add(pace_ns));
        self.last = Some((until_ns, since_boot_ns));
        until_ns
    }
}

impl Agent {
    fn instant(&self) -> Instant {
        Instant {
            boot_id: self.boot.clone(),
            boottime_ns: u64::try_from(clock::since_boot().as_nanos()).unwrap_or(u64::MAX),
            wall_ns: clock::wall().as_millis().saturating_mul(1_000_000),
        }
    }

    /// When an incarnation began, as far as that is known.
    fn beginning(&self, runtime: &Runtime) -> Instant {
        let now = self.instant();
        let Some(started_ms) = runtime.started_ms else { return now };
        let started_ns = started_ms.saturating_mul(1_000_000).min(now.boottime_ns);
        let ago = now.boottime_ns - started_ns;
        Instant { boottime_ns: started_ns, wall_ns: now.wall_ns.saturating_sub(ago), ..now }
    }

    fn client_of(&self, record: &VmRecord, runtime: &Runtime) -> VmmClient {
        let jail = jail_dir(&self.config.jails(), &self.config.vmm, &record.incarnation(runtime.incarnation));
        VmmClient::new(jail.join("root/run/firecracker.socket"), self.config.vmm_timeout)
    }

    /// Reads what a VM's incarnation used so far. What can't be read is left out, and caught up with later.
    async fn counters(
        self: &Arc<Self>,
        record: &VmRecord,
        runtime: &Runtime,
        traffic: &Traffic,
    ) -> (Counters, Option<VmmError>) {
        let mut counters = Counters::default();
        if let Some(process) = &runtime.process
            && process.lives()
            && let Some(ns) = process::cpu_ns(process.pid, VCPU_THREADS)
        {
            counters.set(Meter::VcpuNs, ns);
        }
        for interface in &runtime.interfaces {
            for (class, sums) in traffic.of(&interface.tap) {
                let add = |meter: Meter, more: u64, counters: &mut Counters| {
                    let so_far = counters.get(&meter).unwrap_or(0);
                    counters.set(meter, so_far + u128::from(more));
                };
                add(Meter::NetRxBytes(class), sums.0, &mut counters);
                add(Meter::NetTxBytes(class), sums.1, &mut counters);
            }
        }
        let failure = match self.client_of(record, runtime).get("/metrics").await {
            Ok(text) => {
                let read = VmmCounters::parse(&text);
                counters.set(Meter::DiskReadBytes, read.read_bytes);
                counters.set(Meter::DiskWrittenBytes, read.write_bytes);
                counters.set(Meter::DiskReads, read.reads);
                counters.set(Meter::DiskWrites, read.writes);
                None
            }
            Err(error) => Some(error),
        };
        (counters, failure)
    }

    /// Records what was used since the last sample.
    async fn sample(
        &self,
        position: Position,
        mut counters: Counters,
        levels: &Levels,
        at: Instant,
        is_last: bool,
    ) -> Result<(), Denial> {
        let incarnation = position.incarnation.clone();
        if position.is_closed {
            // An agent that died since has written the last record.
            return Ok(());
        }
        if at.boot_id == position.at.boot_id {
            levels.accrue(&position, &at, &mut counters);
        } else {
            // Of another boot: closed where it was seen last.
            counters = Counters::default();
        }
        let sample = Sample { incarnation: incarnation.clone(), at, counters, is_last };
        let (mut record, mut next) = match advance(&position, sample) {
            Ok(advanced) => advanced,
            Err(error) => {
                log::error!("usage of {incarnation}: {error}");
                if !is_last {
                    return Ok(());
                }
                return self.forget_position(&incarnation).await;
            }
        };
        // A volume outlives a boot, and the numbers of its records go on.
        (record.is_last, next.is_closed) = (is_last, is_last);
        let mut batch = Batch::new();
        batch.put(Table::Usage, format!("{:020}-{}", record.end_ns, record.id), &record);
        batch.put(Table::Samples, incarnation.as_str(), &next);
        self.commit(batch, None).await?;
        self.meters().insert(incarnation, next);
        Ok(())
    }

    /// Forgets where counting ended with everything that has ended: their ends are stored.
    pub(super) async fn forget_closed(&self) {
        let closed: Vec<String> = {
            let meters = self.meters();
            meters.values().filter(|p| p.is_closed).map(|p| p.incarnation.clone()).collect()
        };
        for incarnation in closed {
            self.forget_ended(&incarnation).await;
        }
    }

    /// Forgets where counting ended with an incarnation whose end is stored. If that fails, the next start of an agent does.
    pub(super) async fn forget_ended(&self, incarnation: &str) {
        if self.meters().contains_key(incarnation)
            && let Err(denial) = self.forget_position(incarnation).await
        {
            log::warn!("usage of {incarnation}: {denial}");
        }
    }

    async fn forget_position(&self, incarnation: &str) -> Result<(), Denial> {
        let mut batch = Batch::new();
        batch.remove(Table::Samples, incarnation);
        self.commit(batch, None).await?;
        self.meters().remove(incarnation);
        Ok(())
    }

    /// Where counting is with an incarnation or a volume; it begins here if it has not begun.
    fn position(&self, incarnation: &str, owner: Owner, begin: Instant) -> Position {
        let known = self.meters().get(incarnation).cloned();
        known.unwrap_or_else(|| Position::begin(incarnation.to_owned(), owner, begin))
    }

    /// Whose usage it is that a VM or volume of this id has.
    fn owner(&self, tenant: &Name, name: &Name, id: &str) -> Owner {
        let tenant_id = self.state().tenants.get(tenant).map(|tenant| tenant.id.clone()).unwrap_or_default();
        Owner { tenant: tenant.to_string(), tenant_id, vm: name.to_string(), vm_id: id.to_owned() }
    }

    async fn sample_vm(self: &Arc<Self>, key: &Key, traffic: &Traffic, end: End) -> Result<(), String> {
        let Some((record, runtime, live)) = ({
            let state = self.state();
            let vm = state.vms.get(key);
            vm.map(|vm| (vm.record.clone(), vm.runtime.clone(), Arc::clone(&vm.live)))
        }) else {
            return Ok(());
        };
        let had_mib = runtime.given.as_ref().map_or(record.spec.memory_mib, |given| given.memory_mib);
        if runtime.phase != Phase::Running {
            return Ok(());
        }
        // One at a time: two would go on from the same position.
        let _turn = live.sampling.lock().await;
        let (mut counters, failure) = self.counters(&record, &runtime, traffic).await;
        let incarnation = record.incarnation(runtime.incarnation);
        let still = self.state().vms.get(key).is_some_and(|vm| {
            vm.runtime.phase == Phase::Running && vm.runtime.incarnation == runtime.incarnation
        });
        if !still {
            return Ok(());
        }
        let owner = self.owner(&record.tenant, &record.name, &record.id);
        let position = self.position(&incarnation, owner, self.beginning(&runtime));
        // Nobody knows when one ended that ended unseen: not paid for.
        let mem_mib = if end == End::Unseen { 0 } else { had_mib };
        let levels = Levels { mem_mib, volume_bytes: BTreeMap::new() };
        // Threads of a process that is ending are gone one by one, and their time with them.
        if let (Some(now), Some(before)) = (counters.get(&Meter::VcpuNs), position.totals.get(&Meter::VcpuNs))
        {
            counters.set(Meter::VcpuNs, now.max(before));
        }
        let sampled = self.sample(position, counters, &levels, self.instant(), end != End::NotYet).await;
        sampled.map_err(|denial| denial.message)?;
        match failure {
            None => Ok(()),
            Some(failure) => {
                let silent = matches!(failure, VmmError::Silent { .. }) && end == End::NotYet;
                if silent && live.activity() == Activity::None {
                    // Its task asks again until it answers.
                    live.does(Activity::Silent(in_words(&failure)));
                    live.changed.notify_one();
                }
                Err(in_words(&failure))
            }
        }
    }

    /// A record of what was used up to now, before its VM is ended.
    pub(super) async fn sample_before_end(self: &Arc<Self>, key: &Key) {
        // Network is counted elsewhere, to the end.
        if let Err(why) = self.sample_vm(key, &Traffic::default(), End::NotYet).await {
            log::debug!("usage of {}/{}: {why}", key.0, key.1);
        }
    }

    /// A record of what was used up to now, before its network changes.
    pub(super) async fn sample_before_change(self: &Arc<Self>, key: &Key, traffic: &Traffic) {
        if let Err(why) = self.sample_vm(key, traffic, End::NotYet).await {
            log::debug!("usage of {}/{}: {why}", key.0, key.1);
        }
    }

    /// The last record of an incarnation that has ended, before what counted for it is taken away.
    pub(super) async fn last_sample(self: &Arc<Self>, key: &Key, end: End) {
        let taps = {
            let state = self.state();
            state.vms.get(key).is_some_and(|vm| !vm.runtime.interfaces.is_empty())
        };
        let traffic = if taps { self.traffic().await } else { Arc::default() };
        // Its API is gone; time and network are counted to the end.
        let _ = self.sample_vm(key, &traffic, end).await;
    }

    /// The last record of a volume.
    pub(super) async fn last_volume_sample(&self, id: &str) {
        // One at a time: two would go on from the same position.
        let _turn = self.sampling_volumes.lock().await;
        let Some(position) = self.meters().get(id).cloned() else { return };
        let size = self.state().volumes.values().find(|volume| volume.id == id).map_or(0, |v| v.size_bytes);
        let levels = Levels { mem_mib: 0, volume_bytes: [(id.to_owned(), size)].into() };
        if let Err(denial) = self.sample(position, Counters::default(), &levels, self.instant(), true).await {
            log::error!("usage of {id}: {denial}");
        }
    }

    async fn sample_volume(&self, key: &Key) {
        let _turn = self.sampling_volumes.lock().await;
        let Some(record) = self.state().volumes.get(key).cloned() else { return };
        if record.state == VolumeState::Creating || record.state == VolumeState::Deleting {
            return;
        }
        let owner = self.owner(&key.0, &key.1, &record.id);
        let begins = !self.meters().contains_key(&record.id);
        let position = self.position(&record.id, owner, self.instant());
        if begins {
            let mut batch = Batch::new();
            batch.put(Table::Samples, record.id.as_str(), &position);
            if self.commit(batch, None).await.is_ok() {
                self.meters().insert(record.id, position);
            }
            return;
        }
        let levels = Levels { mem_mib: 0, volume_bytes: [(record.id.clone(), record.size_bytes)].into() };
        if let Err(denial) = self.sample(position, Counters::default(), &levels, self.instant(), false).await
        {
            log::error!("usage of {}: {denial}", record.id);
        }
    }

    /// Samples everything once.
    pub async fn sample_all(self: &Arc<Self>) {
        let (vms, volumes): (Vec<Key>, Vec<Key>) = {
            let state = self.state();
            let running = state.vms.iter().filter(|(_, vm)| vm.runtime.phase == Phase::Running);
            (running.map(|(key, _)| key.clone()).collect(), state.volumes.keys().cloned().collect())
        };
        let traffic = if vms.is_empty() { Arc::default() } else { self.traffic().await };
        stream::iter(vms)
            .for_each_concurrent(SAMPLED_AT_ONCE, |key| {
                let traffic = &traffic;
                async move {
                    if let Err(why) = self.sample_vm(&key, traffic, End::NotYet).await {
                        log::debug!("usage of {}/{}: {why}", key.0, key.1);
                    }
                }
            })
            .await;
        for key in volumes {
            self.sample_volume(&key).await;
        }
    }

    /// Samples everything again and again.
    pub(super) async fn meter(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(self.config.usage_interval);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut forgetting = Forgetting::default();
        loop {
            ticks.tick().await;
            self.sample_all().await;
            if let Err(denial) = self.forget_old_usage(&mut forgetting).await {
                log::error!("usage: {denial}");
            }
        }
    }

    /// Samples everything, unless that was done just now: whoever reads a bill again and again makes no records by it.
    pub async fn sample_for_a_reader(self: &Arc<Self>) {
        let now = clock::since_boot();
        let last = self.sampled_for_readers.lock().unwrap_or_else(PoisonError::into_inner).replace(now);
        if last.is_none_or(|last| now.saturating_sub(last) >= FRESH) {
            self.sample_all().await;
        }
    }

    /// Removes records that are older than they are kept, some at a time.
    async fn forget_old_usage(&self, forgetting: &mut Forgetting) -> Result<(), Denial> {
        let failed = |error: StoreError| super::core::store_denial(&error);
        let rows: Vec<(String, IgnoredAny)> =
            self.store.scan(Table::Usage, "", FORGOTTEN_AT_ONCE).await.map_err(failed)?;
        let Some(first) = rows.first().and_then(|(key, _)| key.get(..20)?.parse().ok()) else {
            return Ok(());
        };
        let keep = u64::try_from(self.config.usage_keep.as_nanos()).unwrap_or(u64::MAX);
        let now = self.instant();
        let expired = now.wall_ns.saturating_sub(keep);
        let oldest = Self::usage_from(forgetting.until(first, expired, now.boottime_ns));
        let mut batch = Batch::new();
        for (key, _) in rows.into_iter().take_while(|(key, _)| *key < oldest) {
            batch.remove(Table::Usage, key);
        }
        self.commit(batch, None).await
    }

    /// Some records of usage, from one on, and the key of the next; none if those are the last.
    ///
    /// # Errors
    /// What the store says.
    pub async fn usage(&self, from: String) -> Result<(Vec<Record>, Option<String>), Denial> {
        let page: Vec<(String, Record)> = self
            .store
            .scan(Table::Usage, from, PAGE)
            .await
            .map_err(|error| super::core::store_denial(&error))?;
        // The next key after the last.
        let next = page.last().filter(|_| page.len() == PAGE).map(|(key, _)| format!("{key}\0"));
        Ok((page.into_iter().map(|(_, record)| record).collect(), next))
    }

    /// Key of the first record whose period ends at `ns` or later (nanoseconds since 1970).
    #[must_use]
    pub fn usage_from(ns: u64) -> String {
        format!("{ns:020}")
    }

    /// Counters of a VM's present incarnation, as they are now.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn stats(self: &Arc<Self>, key: &Key) -> Result<VmStats, Denial> {
        let (record, runtime, view, (vcpus, memory_mib)) = {
            let state = self.state();
            let vm = state.vm(key)?;
            (vm.record.clone(), vm.runtime.clone(), vm.view(), vm.size())
        };
        let runs = runtime.phase == Phase::Running;
        let read = match runs {
            true => self.client_of(&record, &runtime).get("/metrics").await.ok(),
            false => None,
        };
        let read = read.map(|text| VmmCounters::parse(&text)).unwrap_or_default();
        let pid = runtime.process.as_ref().filter(|process| process.lives()).map(|process| process.pid);
        let since_boot_ms = u64::try_from(clock::since_boot().as_millis()).unwrap_or(u64::MAX);
        Ok(VmStats {
            tenant: record.tenant,
            name: record.name,
            state: view.status.state,
            vcpus,
            memory_mib,
            vcpu_ns: pid.and_then(|pid| process::cpu_ns(pid, VCPU_THREADS)).unwrap_or(0),
            rss_kib: pid.and_then(process::rss_kib).unwrap_or(0),
            disk_read_bytes: read.read_bytes,
            disk_written_bytes: read.write_bytes,
            disk_operations: read.reads + read.writes,
            net_rx_bytes: read.rx_bytes,
            net_tx_bytes: read.tx_bytes,
            uptime_seconds: runtime.started_ms.map_or(0, |ms| since_boot_ms.saturating_sub(ms) / 1000),
        })
    }
}

/// Bytes by TAP device and class: received by the guest, and sent.
#[derive(Clone, Debug, Default)]
pub struct Traffic(pub(super) BTreeMap<String, Vec<ClassTraffic>>);

/// What went over an interface under one class: received by the guest, and sent.
pub type ClassTraffic = (EgressClass, (u64, u64));

impl Traffic {
    fn of(&self, tap: &str) -> impl Iterator<Item = ClassTraffic> {
        self.0.get(tap).into_iter().flatten().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_forgotten_when_they_expire_and_not_when_the_clock_is_set_forward() {
        let mut forgetting = Forgetting::default();
        // An agent that was away for 100 catches up; then it keeps up.
        assert_eq!(forgetting.until(1000, 1100, 0), 1000);
        assert_eq!(forgetting.until(1000, 1110, 10), 1020);
        assert_eq!(forgetting.until(1020, 1220, 120), 1220);
        assert_eq!(forgetting.until(1220, 1230, 130), 1230);
        // A year too far, found out 50 later: 100 are lost, which were about to expire.
        assert_eq!(forgetting.until(1230, 999_999, 130), 1230);
        assert_eq!(forgetting.until(1230, 999_999, 180), 1330);
        assert_eq!(forgetting.until(1330, 1280, 180), 1280);
        assert_eq!(forgetting.until(1330, 1290, 190), 1290);
        // Nothing that old is there.
        assert_eq!(Forgetting::default().until(5000, 100, 7), 100);
    }

    #[test]
    fn a_vmms_metrics_are_summed_over_its_devices() {
        let text = "# TYPE yun_block_read_bytes counter\nyun_block_read_bytes_total{id=\"a\"} 5\n\
                    yun_block_read_bytes_total{id=\"b\"} 7\nyun_block_write_count_total 3\nyun_net_tx_bytes_count_total x\n# EOF\n";
        let read = VmmCounters::parse(text);
        assert_eq!(read, VmmCounters { read_bytes: 12, writes: 3, ..VmmCounters::default() });
    }
}
