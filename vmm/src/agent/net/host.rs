//! The network put in force on this host: every function blocks, and acts on the network namespace of the calling thread.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use ed25519_dalek::VerifyingKey;
use ipnet::IpNet;
use serde::Serialize;
use utoipa::ToSchema;

use crate::host::tap::Tap;

use super::elements::{Parts, Traffic, class_change, end_flow_count, parse_counters};
use super::link::{self, LinkError};
use super::list::{ListError, ListKind, SignedList};
use super::model::{EgressClass, Interface, InterfaceId, Subnet};
use super::nft::{self, NftError};
use super::ruleset::{self, Base};
use super::sysctl::{self, SysctlError};

/// Why the network is not as it was asked to be.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The ruleset.
    #[error(transparent)]
    Nft(#[from] NftError),
    /// A kernel setting.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    /// Links, addresses, routes.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// A list that is refused; the one before stays in force.
    #[error(transparent)]
    List(#[from] ListError),
    /// The TAP device could not be made.
    #[error("can't make the TAP device {name}")]
    Tap {
        /// Its name.
        name: String,
        /// What the kernel says.
        source: io::Error,
    },
    /// There is an interface of this name: it is somebody's.
    #[error("interface {0} exists: an id is accepted whose TAP does not")]
    Taken(String),
    /// A list's file.
    #[error("can't {doing} {}", path.display())]
    File {
        /// To do what.
        doing: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the host says.
        source: io::Error,
    },
}

/// How this host's network is set up.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Interfaces by which guests' packets leave the server.
    pub uplinks: Vec<String>,
    /// Hide tenants' IPv4 addresses behind the host's on the way out.
    pub masquerade: bool,
    /// The directory that keeps the lists in force: `domestic.json`, `denied.json`.
    pub lists: PathBuf,
    /// The zone's keys: a list is accepted if one of them signed it.
    pub keys: Vec<VerifyingKey>,
    /// The `nft` program.
    pub nft: PathBuf,
}

/// Versions of the lists in force.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct Versions {
    /// Of the domestic list; without one, `domestic` reaches what `isolated` does.
    pub domestic: Option<u64>,
    /// Of the list of what is denied to all.
    pub denied: Option<u64>,
}

/// What is on this host for an interface that nobody knows.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, ToSchema)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Leftover {
    /// A TAP device; addresses, routes and neighbours are part of it.
    Tap {
        /// Its name.
        name: String,
    },
    /// Elements or counters of the ruleset.
    Rules {
        /// Whose they are.
        id: InterfaceId,
    },
}

/// The host's network. It holds no state of its own: the kernel does, and the lists' directory.
#[derive(Clone, Debug)]
pub struct HostNet {
    setup: Setup,
}

impl HostNet {
    /// The network as `setup` has it; nothing is done yet.
    #[must_use]
    pub fn new(setup: Setup) -> Self {
        Self { setup }
    }

    /// Makes what is there before any guest: tables, lists, forwarding. It may be done again at any time: running guests'
    /// elements, counters and flows stay, and there is no moment without rules.
    ///
    /// # Errors
    /// [`NetError`]; forwarding is only turned on once the rules are in force. A list's file that is damaged is
    /// [`NetError::List`]: what the kernel has of it stays.
    pub fn prepare(&self) -> Result<Versions, NetError> {
        // Whether others forwarded before we do is asked once: afterwards the answer is ours.
        let known = nft::list(&self.setup.nft, "list tables", &["tables"])?;
        let tables = known["nftables"].as_array().into_iter().flatten();
        let mut ours = tables.map(|object| &object["table"]).filter(|table| table["name"] == "yun");
        let (no_transit4, no_transit6) = if ours.any(|table| table["family"] == "inet") {
            self.no_transit()?
        } else {
            let (v4, v6) = sysctl::transit()?;
            (!v4, !v6)
        };
        let base = Base { masquerade: self.setup.masquerade, no_transit4, no_transit6 };
        nft::apply(&self.setup.nft, "make the base of the ruleset", &ruleset::base(base))?;
        let mut versions = Versions::default();
        for kind in ListKind::ALL {
            if let Some(signed) = self.stored(kind)? {
                let list = signed.verify(&self.setup.keys)?;
                self.check_kind(list.kind(), kind)?;
                nft::apply(&self.setup.nft, "load a list", &ruleset::list(&list))?;
                *version_of(&mut versions, kind) = Some(list.version());
            }
        }
        sysctl::forward(&self.setup.uplinks)?;
        Ok(versions)
    }

    /// Whether the ruleset is there: somebody else may have flushed it all.
    ///
    /// # Errors
    /// [`NetError::Nft`].
    pub fn stands(&self) -> Result<bool, NetError> {
        let known = nft::list(&self.setup.nft, "list tables", &["tables"])?;
        let has = |family: &str| {
            let tables = known["nftables"].as_array().into_iter().flatten().map(|object| &object["table"]);
            tables.clone().any(|table| table["name"] == "yun" && table["family"] == family)
        };
        Ok(has("inet") && has("arp"))
    }

    /// What the chain for others' packets was made with.
    fn no_transit(&self) -> Result<(bool, bool), NetError> {
        let chain = nft::list(&self.setup.nft, "list a chain", &["chain", "inet", "yun", "others"])?;
        let text = chain.to_string();
        Ok((text.contains("\"ipv4\""), text.contains("\"ipv6\"")))
    }

    /// Makes these the prefixes of all tenants: all others go, in one transaction. To be called after [`Self::prepare`] and
    /// whenever a tenant gets or loses a subnet.
    ///
    /// # Errors
    /// [`NetError::Nft`]; then the prefixes before stay.
    pub fn set_subnets(&self, subnets: &[Subnet]) -> Result<(), NetError> {
        Ok(nft::apply(&self.setup.nft, "set the tenants' prefixes", &ruleset::subnets(subnets))?)
    }

    /// The networks that the host itself is in: [`Subnet::check_apart`] wants to know.
    ///
    /// # Errors
    /// [`NetError::Link`].
    pub fn host_networks(&self) -> Result<Vec<IpNet>, NetError> {
        Ok(link::host_networks()?)
    }

    /// Makes an interface's TAP device and all that is on the host for it. The descriptor is the only thing that keeps the
    /// TAP: it is closed on `exec` (clear that in the child), and when its last copy is closed the TAP is gone.
    ///
    /// # Errors
    /// [`NetError::Taken`], and what the host says. Nothing of it stays after an error.
    pub fn plug(&self, interface: &Interface) -> Result<OwnedFd, NetError> {
        let name = interface.id().tap();
        if link::exists(&name)? {
            return Err(NetError::Taken(name));
        }
        let failed = |source| NetError::Tap { name: name.clone(), source };
        let tap = Tap::open(&name).and_then(Tap::into_fd).map_err(failed)?;
        sysctl::prepare_tap(&name, interface.ipv6().is_some())?;
        let (parts, none) = (Parts::of(interface), Parts::default());
        if let Err(error) = nft::apply(&self.setup.nft, "add an interface", &Parts::change(&none, &parts)) {
            // Something of it is there: of an interface that died uncleanly. It has no traffic, its TAP was not there.
            if self.install(std::slice::from_ref(interface)).is_err() {
                return Err(error.into());
            }
        }
        if let Err(error) = link::connect(interface) {
            drop(tap);
            // What went wrong first is what is reported; what stays here, `leftovers` finds.
            let _ = self.forget(std::slice::from_ref(interface));
            return Err(error.into());
        }
        Ok(tap)
    }

    /// Removes all that is on the host for these interfaces, whose counts end with it. That some of it, or all, is gone already
    /// is no error. Whoever still has a TAP open is cut off.
    ///
    /// # Errors
    /// [`NetError`]; it may be called again.
    pub fn unplug(&self, interfaces: &[Interface]) -> Result<(), NetError> {
        for interface in interfaces {
            link::remove(&interface.id().tap())?;
        }
        self.forget(interfaces)
    }

    /// Takes interfaces out of the ruleset, whatever is there of them.
    fn forget(&self, interfaces: &[Interface]) -> Result<(), NetError> {
        let parts = interfaces.iter().map(Parts::of).fold(Parts::default(), Parts::with);
        let mut script = Parts::change(&parts, &Parts::default());
        script.extend(interfaces.iter().map(|interface| end_flow_count(interface.id())));
        match nft::apply(&self.setup.nft, "remove interfaces", &script) {
            Ok(()) => Ok(()),
            Err(NftError::Refused { .. }) => self.clear(&parts.ids()),
            Err(error) => Err(error.into()),
        }
    }

    fn clear(&self, ids: &BTreeSet<InterfaceId>) -> Result<(), NetError> {
        let there = self.present()?.only(ids);
        self.change(&there, &Parts::default())
    }

    /// Gives an interface another class, at once for all its flows.
    ///
    /// # Errors
    /// [`NetError::Nft`], also if it is not plugged; then its class is as before.
    pub fn set_class(&self, id: InterfaceId, class: EgressClass) -> Result<(), NetError> {
        Ok(nft::apply(&self.setup.nft, "change a class", &class_change(id, class))?)
    }

    /// Puts a list in force: verified, newer than the one before, swapped in one transaction, kept for the next
    /// [`Self::prepare`].
    ///
    /// # Errors
    /// [`NetError::List`], [`NetError::File`], [`NetError::Nft`]; then the list before stays in force.
    pub fn load_list(&self, signed: &SignedList) -> Result<Versions, NetError> {
        let list = signed.clone().verify(&self.setup.keys)?;
        let kind = list.kind();
        let mut versions = self.versions()?;
        if let Some(in_force) = *version_of(&mut versions, kind)
            && list.version() <= in_force
        {
            return Err(ListError::Old { got: list.version(), in_force }.into());
        }
        // The file is written beside its place, and takes it once the kernel has the list: the two can only differ if the
        // agent dies in between, and then `prepare` makes them equal.
        let (path, part) = (self.path(kind), self.path(kind).with_extension("part"));
        let failed = |doing, path: &PathBuf| {
            let path = path.clone();
            move |source| NetError::File { doing, path, source }
        };
        let json = serde_json::to_vec(signed).map_err(|source| ListError::Json { source })?;
        let written = fs::File::create(&part).and_then(|mut file| {
            io::Write::write_all(&mut file, &json)?;
            file.sync_all()
        });
        written.map_err(failed("write", &part))?;
        nft::apply(&self.setup.nft, "load a list", &ruleset::list(&list))?;
        fs::rename(&part, &path).map_err(failed("replace", &path))?;
        let dir = fs::File::open(&self.setup.lists).and_then(|dir| dir.sync_all());
        dir.map_err(failed("sync", &self.setup.lists))?;
        *version_of(&mut versions, kind) = Some(list.version());
        Ok(versions)
    }

    /// Versions of the lists that are kept.
    ///
    /// # Errors
    /// [`NetError::File`], [`NetError::List`].
    pub fn versions(&self) -> Result<Versions, NetError> {
        let mut versions = Versions::default();
        for kind in ListKind::ALL {
            *version_of(&mut versions, kind) = self.stored(kind)?.map(|signed| signed.version);
        }
        Ok(versions)
    }

    fn path(&self, kind: ListKind) -> PathBuf {
        self.setup.lists.join(format!("{}.json", kind.name()))
    }

    fn stored(&self, kind: ListKind) -> Result<Option<SignedList>, NetError> {
        let path = self.path(kind);
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(SignedList::parse(&bytes)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(NetError::File { doing: "read", path, source }),
        }
    }

    fn check_kind(&self, got: ListKind, need: ListKind) -> Result<(), ListError> {
        if got == need { Ok(()) } else { Err(ListError::Kind { got, need }) }
    }

    /// The traffic of all interfaces.
    ///
    /// # Errors
    /// [`NetError::Nft`].
    pub fn read_counters(&self) -> Result<BTreeMap<InterfaceId, Traffic>, NetError> {
        let counters = ["counters", "table", "inet", "yun"];
        Ok(parse_counters(&nft::list(&self.setup.nft, "list counters", &counters)?))
    }

    /// After a restart of the agent: sees that each interface has in the ruleset what it should, and no more. Counters and
    /// flows go on. Says which of them have no TAP any more, because their VMM ended: those are to be unplugged.
    ///
    /// # Errors
    /// [`NetError`]; then nothing has changed, or routes of some are missing and it may be called again.
    pub fn restore(&self, interfaces: &[Interface]) -> Result<Vec<InterfaceId>, NetError> {
        let taps: BTreeSet<String> = link::taps()?.into_iter().collect();
        let (alive, dead): (Vec<Interface>, Vec<Interface>) =
            interfaces.iter().cloned().partition(|interface| taps.contains(&interface.id().tap()));
        self.install(&alive)?;
        for interface in &alive {
            match link::connect(interface) {
                // It has ended just now; the next look will tell.
                Err(LinkError::Missing(_)) => {}
                done => done?,
            }
        }
        Ok(dead.iter().map(Interface::id).collect())
    }

    /// Makes the ruleset have of these interfaces exactly what it should, in one transaction, whether their TAPs are there
    /// or not. [`Self::restore`] does this and more.
    ///
    /// # Errors
    /// [`NetError::Nft`]; then the ruleset is as before.
    pub fn install(&self, interfaces: &[Interface]) -> Result<(), NetError> {
        let wanted = interfaces.iter().map(Parts::of).fold(Parts::default(), Parts::with);
        self.change(&self.present()?.only(&wanted.ids()), &wanted)
    }

    fn change(&self, from: &Parts, to: &Parts) -> Result<(), NetError> {
        let script = Parts::change(from, to);
        if script.is_empty() {
            return Ok(());
        }
        Ok(nft::apply(&self.setup.nft, "change interfaces", &script)?)
    }

    /// What the ruleset has of all interfaces.
    fn present(&self) -> Result<Parts, NetError> {
        let table = |family| nft::list(&self.setup.nft, "list a table", &["table", family, "yun"]);
        Ok(Parts::parse(&[table("inet")?, table("arp")?]))
    }

    /// What is on this host for interfaces that are not `known`.
    ///
    /// # Errors
    /// [`NetError`].
    pub fn leftovers(&self, known: &[Interface]) -> Result<Vec<Leftover>, NetError> {
        let known: BTreeSet<InterfaceId> = known.iter().map(Interface::id).collect();
        let strange = |name: &String| InterfaceId::of_tap(name).is_some_and(|id| !known.contains(&id));
        let taps = link::taps()?.into_iter().filter(strange).map(|name| Leftover::Tap { name });
        let ids = self.present()?.ids();
        let rules = ids.difference(&known).map(|id| Leftover::Rules { id: *id });
        Ok(taps.chain(rules).collect())
    }

    /// Removes one of [`Self::leftovers`].
    ///
    /// # Errors
    /// [`NetError`].
    pub fn remove(&self, leftover: &Leftover) -> Result<(), NetError> {
        match leftover {
            Leftover::Tap { name } => Ok(link::remove(name)?),
            Leftover::Rules { id } => self.clear(&BTreeSet::from([*id])),
        }
    }
}

fn version_of(versions: &mut Versions, kind: ListKind) -> &mut Option<u64> {
    match kind {
        ListKind::Domestic => &mut versions.domestic,
        ListKind::Denied => &mut versions.denied,
    }
}
