//! Networks as the agent uses them: which address is whose, and what of that the host is told.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::config::Config;
use super::core::{AGENT, Agent, blocking};
use super::events::Happened;
use super::metering::Traffic;
use super::model::{
    Denial, DenialCode, EgressClass, InterfaceSpec, Leftover, Name, SubnetSpec, Vm, VmPut, VmSpec,
};
use super::net::list::{ListError, ListKind, SignedList};
use super::net::model::{Interface, InterfaceId, Subnet};
use super::net::{self, HostNet, NetError, Setup, guest, ipam};
use super::records::{InterfaceRecord, Phase, VmRecord};
use super::state::Key;
use super::store::Batch;
use super::vms::launch::NetPart;
use crate::sandbox::jail::in_words;

/// How often the rules are looked for.
const LOOK: std::time::Duration = std::time::Duration::from_secs(10);

/// The host's network as the agent is told to have it. Nothing is changed yet.
pub(super) fn of(config: &Config) -> Result<HostNet, String> {
    let uplinks = match config.uplinks.as_slice() {
        [] => default_uplinks(&std::fs::read_to_string("/proc/net/route").unwrap_or_default()),
        named => named.to_vec(),
    };
    Ok(HostNet::new(Setup {
        uplinks,
        masquerade: config.masquerade,
        lists: config.state_dir.join("lists"),
        keys: config.list_keys.clone(),
        nft: config.nft.clone(),
    }))
}

/// Interfaces of default routes, from the text of /proc/net/route.
fn default_uplinks(routes: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for line in routes.lines().skip(1) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        if let [name, "00000000", _, _, _, _, _, "00000000", ..] = fields.as_slice()
            && !found.iter().any(|other| other == name)
        {
            found.push((*name).to_owned());
        }
    }
    found
}

fn denied(error: &NetError) -> Denial {
    Denial::host(in_words(error))
}

fn nets(tenant: &Name, spec: &SubnetSpec) -> Vec<Subnet> {
    let nets = [spec.ipv4.map(IpNet::from), spec.ipv6.map(IpNet::from)];
    // They were checked when they were taken.
    nets.into_iter().flatten().filter_map(|net| Subnet::new(tenant.as_str(), net).ok()).collect()
}

impl Agent {
    fn host_net(&self) -> Result<&HostNet, Denial> {
        self.net.as_ref().ok_or_else(|| {
            Denial::invalid("this agent has no networks").hint("start it without --no-network")
        })
    }

    fn subnets(&self) -> Vec<Subnet> {
        self.state().subnets.iter().flat_map(|((tenant, _), record)| nets(tenant, &record.spec)).collect()
    }

    /// An interface as the host's network knows it.
    fn interface(
        &self,
        tenant: &Name,
        record: &InterfaceRecord,
        subnets: &[Subnet],
    ) -> Result<Interface, Denial> {
        let id = InterfaceId::of_tap(&record.tap)
            .ok_or_else(|| Denial::host(format!("the TAP device's name {} is none of ours", record.tap)))?;
        Interface::new(id, tenant.as_str(), record.ipv4, record.ipv6, record.class, subnets)
            .map_err(|error| Denial::host(error.to_string()))
    }

    /// Brings the host's network into the state that the store describes; running guests' flows go on.
    pub(super) async fn network_in_force(self: &Arc<Self>) -> Result<(), String> {
        let Some(net) = self.net.clone() else { return Ok(()) };
        let subnets = self.subnets();
        let mut interfaces = Vec::new();
        {
            let state = self.state();
            for vm in state.vms.values().filter(|vm| vm.runtime.phase != Phase::Stopped) {
                for record in &vm.runtime.interfaces {
                    match self.interface(&vm.record.tenant, record, &subnets) {
                        Ok(interface) => interfaces.push(interface),
                        Err(denial) => log::error!("{}/{}: {denial}", vm.record.tenant, vm.record.name),
                    }
                }
            }
        }
        let done = blocking(move || {
            match net.prepare() {
                Ok(versions) => log::info!("lists in force: {versions:?}"),
                // What the kernel has stays in force; a file that was spoilt is no reason to let nobody in.
                Err(error @ NetError::List(_)) => log::error!("{}", in_words(&error)),
                Err(error) => return Err(denied(&error)),
            }
            net.set_subnets(&subnets).map_err(|error| denied(&error))?;
            let gone = net.restore(&interfaces).map_err(|error| denied(&error))?;
            for id in gone {
                log::info!("{} has gone with its VMM", id.tap());
            }
            Ok(())
        });
        done.await.map_err(|denial| denial.message)
    }

    /// Looks now and then whether the rules are still there.
    pub(super) async fn watch_network(self: Arc<Self>) {
        while self.net.is_some() {
            tokio::time::sleep(LOOK).await;
            self.keep_network().await;
        }
    }

    /// Puts the rules in force again if somebody else has flushed them: without them guests' packets would be anybody's.
    pub(super) async fn keep_network(self: &Arc<Self>) {
        let Some(net) = self.net.clone() else { return };
        match blocking(move || net.stands().map_err(|error| denied(&error))).await {
            Ok(true) => return,
            Ok(false) => log::error!("the rules for guests' packets are gone: they are put in force again"),
            Err(denial) => return log::error!("whether the rules for guests' packets are there: {denial}"),
        }
        if let Err(why) = self.network_in_force().await {
            return log::error!("the rules for guests' packets can't be put in force: {why}");
        }
        let happened = Happened {
            kind: "network.restored",
            requestor: AGENT.to_owned(),
            detail: "somebody else had removed the rules for guests' packets".to_owned(),
            ..Happened::default()
        };
        if let Err(denial) = self.commit(Batch::new(), [happened]).await {
            log::error!("{denial}");
        }
    }

    /// Whether a subnet keeps clear of the host's own networks.
    pub(super) async fn check_prefixes(&self, key: &Key, spec: &SubnetSpec) -> Result<(), Denial> {
        let Some(net) = self.net.clone() else { return Ok(()) };
        let host = blocking(move || net.host_networks().map_err(|error| denied(&error))).await?;
        for subnet in [spec.ipv4.map(IpNet::from), spec.ipv6.map(IpNet::from)].into_iter().flatten() {
            let subnet =
                Subnet::new(key.0.as_str(), subnet).map_err(|error| Denial::invalid(error.to_string()))?;
            subnet.check_apart(&[], &host).map_err(|error| Denial::invalid(error.to_string()))?;
        }
        Ok(())
    }

    /// Tells the host which prefixes are whose: what is stored, and one more.
    pub(super) async fn subnets_in_force(
        self: &Arc<Self>,
        more: Option<(&Key, &SubnetSpec)>,
    ) -> Result<(), Denial> {
        let Some(net) = self.net.clone() else { return Ok(()) };
        let mut subnets: Vec<Subnet> = {
            let state = self.state();
            let others = state.subnets.iter().filter(|(key, _)| more.is_none_or(|(new, _)| new != *key));
            others.flat_map(|((tenant, _), record)| nets(tenant, &record.spec)).collect()
        };
        subnets.extend(more.into_iter().flat_map(|(key, spec)| nets(&key.0, spec)));
        blocking(move || net.set_subnets(&subnets).map_err(|error| denied(&error))).await
    }

    /// Gives each interface that is wanted a TAP device's name, a MAC address and addresses; it keeps those it has.
    pub(super) fn choose_interfaces(
        &self,
        key: &Key,
        spec: &VmSpec,
        old: Option<&VmRecord>,
    ) -> Result<Vec<InterfaceRecord>, Denial> {
        if spec.interfaces.is_empty() {
            return Ok(Vec::new());
        }
        self.host_net()?;
        let mut chosen: Vec<InterfaceRecord> = Vec::new();
        for wanted in &spec.interfaces {
            let before = old
                .and_then(|old| old.interfaces.iter().find(|interface| interface.name == wanted.name))
                .filter(|interface| interface.subnet == wanted.subnet);
            let record = self.choose(key, wanted, before, &chosen)?;
            chosen.push(record);
        }
        Ok(chosen)
    }

    fn choose(
        &self,
        key: &Key,
        wanted: &InterfaceSpec,
        before: Option<&InterfaceRecord>,
        chosen: &[InterfaceRecord],
    ) -> Result<InterfaceRecord, Denial> {
        let state = self.state();
        let subnet_key = (key.0.clone(), wanted.subnet.clone());
        let subnet = state
            .subnets
            .get(&subnet_key)
            .ok_or_else(|| Denial::not_found("subnet", format!("{}/{}", key.0, wanted.subnet)))?
            .spec
            .clone();
        let mut taken: BTreeSet<IpAddr> = state.addresses(&key.0, &wanted.subnet, Some(&key.1)).collect();
        taken.extend(
            chosen
                .iter()
                .flat_map(|other| [other.ipv4.map(IpAddr::from), other.ipv6.map(IpAddr::from)])
                .flatten(),
        );
        let address = |family: &str, net: Option<IpNet>, asked: Option<IpAddr>, had: Option<IpAddr>| {
            let Some(net) = net else {
                return match asked {
                    Some(asked) => Err(Denial::invalid(format!(
                        "spec.interfaces: {}: {family} {asked}: subnet {} has no {family} prefix",
                        wanted.name, wanted.subnet
                    ))),
                    None => Ok(None),
                };
            };
            match asked {
                Some(asked) if !ipam::gives(&net, asked) => Err(Denial::invalid(format!(
                    "spec.interfaces: {}: {family} {asked}: accepted are addresses of {net} for guests",
                    wanted.name
                ))),
                Some(asked) if taken.contains(&asked) => Err(Denial::new(
                    DenialCode::InUse,
                    format!("spec.interfaces: {}: {family} {asked} is taken", wanted.name),
                )
                .hint("leave it out, and the next free one is chosen")),
                Some(asked) => Ok(Some(asked)),
                None => match had.filter(|had| ipam::gives(&net, *had) && !taken.contains(had)) {
                    Some(had) => Ok(Some(had)),
                    None => ipam::next_free(net, &taken, None)
                        .map(Some)
                        .map_err(|error| Denial::new(DenialCode::CapacityExceeded, error.to_string())),
                },
            }
        };
        let ipv4 = address(
            "ipv4",
            subnet.ipv4.map(IpNet::from),
            wanted.ipv4.map(IpAddr::from),
            before.and_then(|before| before.ipv4.map(IpAddr::from)),
        )?;
        let ipv6 = address(
            "ipv6",
            subnet.ipv6.map(IpNet::from),
            wanted.ipv6.map(IpAddr::from),
            before.and_then(|before| before.ipv6.map(IpAddr::from)),
        )?;
        let tap = match before {
            Some(before) => before.tap.clone(),
            None => {
                let used: BTreeSet<&str> = state
                    .vms
                    .values()
                    .flat_map(|vm| vm.record.interfaces.iter().chain(&vm.runtime.interfaces))
                    .map(|interface| interface.tap.as_str())
                    .chain(chosen.iter().map(|interface| interface.tap.as_str()))
                    .collect();
                loop {
                    let tap = random_id().tap();
                    if !used.contains(tap.as_str()) {
                        break tap;
                    }
                }
            }
        };
        let mac = InterfaceId::of_tap(&tap).map(|id| id.mac().to_string()).unwrap_or_default();
        Ok(InterfaceRecord {
            name: wanted.name.clone(),
            subnet: wanted.subnet.clone(),
            tap,
            mac,
            ipv4: ipv4.and_then(|address| match address {
                IpAddr::V4(address) => Some(address),
                IpAddr::V6(_) => None,
            }),
            ipv6: ipv6.and_then(|address| match address {
                IpAddr::V6(address) => Some(address),
                IpAddr::V4(_) => None,
            }),
            class: wanted.class,
        })
    }

    /// Gives the interfaces of a running incarnation the classes that are wanted now; whether any changed. Flows that the new
    /// class forbids end at once.
    pub(super) async fn change_classes(
        self: &Arc<Self>,
        key: &Key,
        wanted: &[InterfaceRecord],
    ) -> Result<bool, Denial> {
        let Some(net) = self.net.clone() else { return Ok(false) };
        let (changes, live) = {
            let state = self.state();
            let Some(vm) = state.vms.get(key) else { return Ok(false) };
            let changed = |now: &InterfaceRecord| {
                let wanted = wanted.iter().find(|wanted| wanted.tap == now.tap)?;
                let id = InterfaceId::of_tap(&now.tap)?;
                (wanted.class != now.class).then_some((id, wanted.class))
            };
            let changes: Vec<_> = vm.runtime.interfaces.iter().filter_map(changed).collect();
            (changes, Arc::clone(&vm.live))
        };
        if changes.is_empty() {
            return Ok(false);
        }
        // What went over it so far went under the class before.
        let traffic = self.traffic().await;
        self.sample_before_change(key, &traffic).await;
        let done = changes.clone();
        blocking(move || {
            done.iter().try_for_each(|(id, class)| net.set_class(*id, *class)).map_err(|error| denied(&error))
        })
        .await?;
        // A restart of the agent brings back what is noted here.
        let _saving = live.saving.lock().await;
        let noted = {
            let state = self.state();
            state.vms.get(key).map(|vm| {
                let mut runtime = vm.runtime.clone();
                for interface in &mut runtime.interfaces {
                    let new = changes.iter().find(|(id, _)| id.tap() == interface.tap);
                    interface.class = new.map_or(interface.class, |(_, class)| *class);
                }
                (vm.record.id.clone(), runtime)
            })
        };
        if let Some((id, runtime)) = noted {
            let mut batch = Batch::new();
            batch.put(super::store::Table::Runtimes, id, &runtime);
            self.commit(batch, None).await?;
            if let Some(vm) = self.state().vms.get_mut(key) {
                vm.runtime = runtime;
            }
        }
        Ok(true)
    }

    /// What the guest is told of its addresses: cloud-init's network configuration, and the kernel's `ip=`.
    pub(super) fn guest_network(&self, record: &VmRecord) -> (Option<String>, Option<String>) {
        if record.interfaces.is_empty() {
            return (None, None);
        }
        let subnets = self.subnets();
        let interfaces: Vec<Interface> = record
            .interfaces
            .iter()
            .filter_map(|interface| self.interface(&record.tenant, interface, &subnets).ok())
            .collect();
        let config = guest::network_config(&interfaces, &self.config.nameservers).ok();
        let first = interfaces.first();
        let parameter = first.and_then(|first| guest::kernel_parameter(first, record.name.as_str(), "eth0"));
        (config, parameter)
    }

    /// Plugs a VM's interfaces in. Blocks.
    pub(super) fn plug(&self, record: &VmRecord) -> Result<Vec<NetPart>, Denial> {
        let mut parts = Vec::new();
        if record.interfaces.is_empty() {
            return Ok(parts);
        }
        let (net, subnets) = (self.host_net()?, self.subnets());
        for (nth, interface) in record.interfaces.iter().enumerate() {
            let known = self.interface(&record.tenant, interface, &subnets)?;
            let tap = net.plug(&known).map_err(|error| denied(&error))?;
            parts.push(NetPart { id: format!("eth{nth}"), mac: interface.mac.clone(), tap });
        }
        Ok(parts)
    }

    /// Takes away what the host has for an incarnation's interfaces. What can't be taken away is left over, for `gc`.
    pub(super) async fn unplug(self: &Arc<Self>, interfaces: Vec<InterfaceRecord>, record: &VmRecord) {
        let Some(net) = self.net.clone().filter(|_| !interfaces.is_empty()) else { return };
        let (agent, tenant, subnets) = (Arc::clone(self), record.tenant.clone(), self.subnets());
        let done = blocking(move || {
            let known = interfaces.iter().map(|interface| agent.interface(&tenant, interface, &subnets));
            net.unplug(&known.collect::<Result<Vec<_>, _>>()?).map_err(|error| denied(&error))
        });
        if let Err(denial) = done.await {
            log::error!("{}/{}: {denial}", record.tenant, record.name);
        }
    }

    /// What has gone over all interfaces when this is called, or a little more.
    pub(super) async fn traffic(self: &Arc<Self>) -> Arc<Traffic> {
        // A listing takes as long for one as for all of them, and VMs end in crowds.
        self.traffic_read.get(async || self.read_traffic().await).await
    }

    async fn read_traffic(&self) -> Traffic {
        let Some(net) = self.net.clone() else { return Traffic::default() };
        let read = blocking(move || net.read_counters().map_err(|error| denied(&error))).await;
        let read = match read {
            Ok(read) => read,
            Err(denial) => {
                log::warn!("traffic can't be read: {denial}");
                return Traffic::default();
            }
        };
        let of = |traffic: &net::Traffic| {
            [
                (EgressClass::Isolated, traffic.isolated),
                (EgressClass::Domestic, traffic.domestic),
                (EgressClass::International, traffic.international),
            ]
            .map(|(class, both)| (class, (both.received.bytes, both.sent.bytes)))
            .to_vec()
        };
        Traffic(read.iter().map(|(id, traffic)| (id.tap(), of(traffic))).collect())
    }

    /// Gives an interface another class.
    pub(super) async fn set_class(
        self: &Arc<Self>,
        key: &Key,
        interface: &Name,
        class: EgressClass,
        requestor: &str,
    ) -> Result<Vm, Denial> {
        let (mut spec, generation) = {
            let state = self.state();
            let vm = state.vm(key)?;
            (vm.record.spec.clone(), vm.record.generation)
        };
        let found = spec.interfaces.iter_mut().find(|other| other.name == *interface);
        found.ok_or_else(|| Denial::not_found("interface", interface))?.class = class;
        let put = VmPut { generation: Some(generation + 1), spec };
        Ok(self.put_vm(key, put, false, requestor).await?.0)
    }

    /// Versions of the lists in force.
    pub(super) fn lists(&self) -> Result<serde_json::Value, Denial> {
        let versions = self.host_net()?.versions().map_err(|error| denied(&error))?;
        serde_json::to_value(versions).map_err(|error| Denial::host(error.to_string()))
    }

    /// Puts a newer signed list in force, for all or not at all.
    pub(super) async fn put_list(
        self: &Arc<Self>,
        list: &str,
        body: &[u8],
        requestor: &str,
    ) -> Result<serde_json::Value, Denial> {
        let net = self.host_net()?.clone();
        let kind = ListKind::ALL.into_iter().find(|kind| kind.name() == list);
        let kind =
            kind.ok_or_else(|| Denial::not_found("list", list).hint("accepted are domestic and denied"))?;
        let invalid = |error: &ListError| Denial::invalid(in_words(error));
        let signed = SignedList::parse(body).map_err(|error| invalid(&error))?;
        if signed.kind != kind {
            return Err(Denial::invalid(format!("kind: this is a list of kind {}", signed.kind.name())));
        }
        let version = signed.version;
        let _turn = self.admission.lock().await;
        blocking(move || match net.load_list(&signed) {
            Ok(_) => Ok(()),
            Err(NetError::List(error)) => Err(invalid(&error)),
            Err(error) => Err(denied(&error)),
        })
        .await?;
        let happened = Happened {
            kind: "network.list",
            tenant: None,
            target: Some(kind.name().to_owned()),
            requestor: requestor.to_owned(),
            detail: format!("version {version}"),
        };
        self.commit(Batch::new(), [happened]).await?;
        self.lists()
    }

    /// What the host has for interfaces that no running VM has.
    pub(super) fn network_leftovers(&self) -> Result<Vec<Leftover>, Denial> {
        let Some(net) = &self.net else { return Ok(Vec::new()) };
        let subnets = self.subnets();
        let known: Vec<Interface> = {
            let state = self.state();
            let running = state.vms.values().filter(|vm| vm.runtime.phase != Phase::Stopped);
            running
                .flat_map(|vm| vm.runtime.interfaces.iter().map(|interface| (&vm.record.tenant, interface)))
                .filter_map(|(tenant, interface)| self.interface(tenant, interface, &subnets).ok())
                .collect()
        };
        let found = net.leftovers(&known).map_err(|error| denied(&error))?;
        Ok(found
            .into_iter()
            .map(|leftover| {
                let (kind, name) = match leftover {
                    net::Leftover::Tap { name } => ("tap", name),
                    net::Leftover::Rules { id } => ("nft", id.to_string()),
                };
                let reason = "no running VM has this interface".to_owned();
                Leftover { kind: kind.to_owned(), name, reason, removed: false }
            })
            .collect())
    }

    pub(super) async fn remove_network_leftover(self: &Arc<Self>, leftover: &Leftover) -> Result<(), String> {
        let Some(net) = self.net.clone() else { return Ok(()) };
        let found = match leftover.kind.as_str() {
            "tap" => net::Leftover::Tap { name: leftover.name.clone() },
            _ => match leftover.name.parse() {
                Ok(id) => net::Leftover::Rules { id },
                Err(_) => return Err(format!("{AGENT} does not know {}", leftover.name)),
            },
        };
        let removed = blocking(move || net.remove(&found).map_err(|error| denied(&error))).await;
        removed.map_err(|denial| denial.message)
    }
}

fn random_id() -> InterfaceId {
    loop {
        let number = getrandom::u64().expect("the kernel has random numbers") >> 24;
        if let Ok(id) = InterfaceId::new(number) {
            return id;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_uplink_is_that_of_the_default_route() {
        let routes = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
                      eth0\t00000000\t0100A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                      eth1\t0000A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n\
                      eth0\t00000000\t0200A8C0\t0003\t0\t0\t9\t00000000\t0\t0\t0\n";
        assert_eq!(default_uplinks(routes), ["eth0"]);
        assert!(default_uplinks("").is_empty());
    }
}
