//! Links, addresses, routes and neighbours, over rtnetlink. Each function blocks on a runtime of its own, in the network
//! namespace that the calling thread is in.

use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressScope};
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::packet_route::neighbour::NeighbourState;
use rtnetlink::packet_route::route::RouteScope;
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};

use super::ipam;
use super::model::{GATEWAY_MAC, GATEWAY4, GATEWAY6, Interface, TAP_PREFIX};

/// What the kernel would not do.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// No socket, or no runtime.
    #[error("can't talk to the kernel over netlink")]
    Socket(#[source] io::Error),
    /// There is no such interface.
    #[error("interface {0} does not exist")]
    Missing(String),
    /// A request failed.
    #[error("can't {doing} {of}")]
    Request {
        /// To do what.
        doing: &'static str,
        /// Of what.
        of: String,
        /// What the kernel says.
        source: rtnetlink::Error,
    },
}

fn failed(doing: &'static str, of: &str) -> impl FnOnce(rtnetlink::Error) -> LinkError {
    let of = of.to_owned();
    move |source| LinkError::Request { doing, of, source }
}

fn block_on<T, F: Future<Output = Result<T, LinkError>>>(
    work: impl FnOnce(Handle) -> F,
) -> Result<T, LinkError> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(LinkError::Socket)?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(LinkError::Socket)?;
        tokio::spawn(connection);
        work(handle).await
    })
}

async fn index_of(handle: &Handle, name: &str) -> Result<u32, LinkError> {
    let mut links = handle.link().get().match_name(name.to_owned()).execute();
    match links.try_next().await {
        Ok(Some(link)) => Ok(link.header.index),
        Ok(None) => Err(LinkError::Missing(name.to_owned())),
        Err(error) if is_missing(&error) => Err(LinkError::Missing(name.to_owned())),
        Err(error) => Err(failed("look up", name)(error)),
    }
}

fn is_missing(error: &rtnetlink::Error) -> bool {
    let rtnetlink::Error::NetlinkError(message) = error else { return false };
    message.code.is_some_and(|code| code.get() == -(nix::Error::ENODEV as i32))
}

/// Gives a TAP the gateway's addresses, brings it up, and leads the guest's addresses to it. All of it goes with the TAP;
/// what is there already is left as it is.
pub(super) fn connect(interface: &Interface) -> Result<(), LinkError> {
    block_on(async |handle| {
        let tap = interface.id().tap();
        let index = index_of(&handle, &tap).await?;
        let up = LinkUnspec::new_with_index(index).address(GATEWAY_MAC.0.to_vec()).up().build();
        handle.link().set(up).execute().await.map_err(failed("bring up", &tap))?;
        let mac = interface.id().mac();
        let neighbour = |address: IpAddr| {
            let add = handle.neighbours().add(index, address).state(NeighbourState::Permanent);
            add.link_layer_address(&mac.0).replace().execute()
        };
        if let Some(net) = interface.ipv4() {
            // The second is for guests whose configuration knows no gateway outside their subnet.
            for gateway in [GATEWAY4.into(), ipam::gateway(&net.into())] {
                let mut address = handle.address().add(index, gateway, 32).replace();
                address.message_mut().header.scope = AddressScope::Link;
                address.execute().await.map_err(failed("give an IPv4 gateway's address to", &tap))?;
            }
            neighbour(net.addr().into()).await.map_err(failed("add the IPv4 neighbour of", &tap))?;
            let route = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(net.addr(), 32);
            let route = route.output_interface(index).scope(RouteScope::Link).pref_source(GATEWAY4).build();
            let add = handle.route().add(route).replace().execute();
            add.await.map_err(failed("add the IPv4 route to", &tap))?;
        }
        if let Some(net) = interface.ipv6() {
            let mut address = handle.address().add(index, GATEWAY6.into(), 64).replace();
            address.message_mut().header.flags |= AddressHeaderFlags::Nodad;
            address.execute().await.map_err(failed("give the IPv6 gateway's address to", &tap))?;
            for own in [net.addr(), mac.link_local()] {
                neighbour(own.into()).await.map_err(failed("add the IPv6 neighbour of", &tap))?;
            }
            let route = RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(net.addr(), 128);
            let route = route.output_interface(index).build();
            let add = handle.route().add(route).replace().execute();
            add.await.map_err(failed("add the IPv6 route to", &tap))?;
        }
        Ok(())
    })
}

/// The names of all interfaces that look like our TAPs.
pub(super) fn taps() -> Result<Vec<String>, LinkError> {
    block_on(async |handle| {
        let mut found = Vec::new();
        let mut links = handle.link().get().execute();
        while let Some(link) = links.try_next().await.map_err(failed("list", "interfaces"))? {
            found.extend(link.attributes.into_iter().filter_map(|attribute| match attribute {
                LinkAttribute::IfName(name) if name.starts_with(TAP_PREFIX) => Some(name),
                _ => None,
            }));
        }
        Ok(found)
    })
}

/// Whether there is an interface of this name.
pub(super) fn exists(name: &str) -> Result<bool, LinkError> {
    block_on(async |handle| match index_of(&handle, name).await {
        Ok(_) => Ok(true),
        Err(LinkError::Missing(_)) => Ok(false),
        Err(error) => Err(error),
    })
}

/// Removes an interface, also from under who has it open. That there is none is no error.
pub(super) fn remove(name: &str) -> Result<(), LinkError> {
    block_on(async |handle| {
        let index = match index_of(&handle, name).await {
            Err(LinkError::Missing(_)) => return Ok(()),
            found => found?,
        };
        match handle.link().del(index).execute().await {
            Err(error) if !is_missing(&error) => Err(failed("remove", name)(error)),
            _ => Ok(()),
        }
    })
}

/// The networks that the host itself is in; what is on our TAPs, and what no guest can reach anyway, is not among them.
pub(super) fn host_networks() -> Result<Vec<IpNet>, LinkError> {
    block_on(async |handle| {
        let mut found = Vec::new();
        let mut addresses = handle.address().get().execute();
        while let Some(message) = addresses.try_next().await.map_err(failed("list", "addresses"))? {
            let prefix_len = message.header.prefix_len;
            let ours =
                |a: &AddressAttribute| matches!(a, AddressAttribute::Label(l) if l.starts_with(TAP_PREFIX));
            if message.attributes.iter().any(ours) {
                continue;
            }
            found.extend(message.attributes.into_iter().filter_map(|attribute| match attribute {
                AddressAttribute::Address(address) => IpNet::new(address, prefix_len).ok(),
                _ => None,
            }));
        }
        found.retain(|net| !super::ranges::never().any(|never| never.contains(net)));
        Ok(found)
    })
}
