//! Guests that say that they are somebody else, or something that a guest can't be.

use std::net::{IpAddr, Ipv4Addr};

use super::frames::{BROADCAST, arp, arp_reply, ethernet, icmp, nd_body, udp};
use super::play;
use super::world::{DOMESTIC, Guest, PORT, World, addr, neighbours, sh};
use vmm::agent::net::model::{EgressClass, GATEWAY_MAC, GATEWAY4, GATEWAY6};

fn two(world: &World) -> (Guest, Guest) {
    (world.guest("a", 2, EgressClass::International), world.guest("a", 3, EgressClass::International))
}

#[test]
fn a_packet_with_anothers_mac_or_address_goes_nowhere() {
    play(|| {
        let world = World::new();
        let (liar, victim) = two(&world);
        for to in DOMESTIC.map(addr) {
            let say = |mac, from: IpAddr| {
                let payload = world.payload();
                let (kind, packet) = udp((from, 4000), (to, PORT), &payload);
                liar.send_frame(&ethernet(GATEWAY_MAC.0, mac, kind, &packet));
                world.served(&payload)
            };
            assert!(say(liar.mac(), liar.like(to)), "as itself it is heard");
            assert!(!say(victim.mac(), liar.like(to)), "another's MAC");
            assert!(!say(liar.mac(), victim.like(to)), "another's address, {to}");
            assert!(!say(victim.mac(), victim.like(to)), "both of another, on the wrong link");
            let outside = if to.is_ipv4() { "9.9.9.7" } else { "2a09::7" };
            assert!(!say(liar.mac(), addr(outside)), "an address of nobody here");
            let unspecified = if to.is_ipv4() { "0.0.0.0" } else { "::" };
            assert!(!say(liar.mac(), addr(unspecified)));
            // Behind a VLAN tag of priority alone, which the host takes off.
            let payload = world.payload();
            let (kind, packet) = udp((victim.like(to), 4000), (to, PORT), &payload);
            let tagged = [&[0, 0][..], &kind.to_be_bytes(), &packet].concat();
            liar.send_frame(&ethernet(GATEWAY_MAC.0, liar.mac(), 0x8100, &tagged));
            assert!(!world.served(&payload));
        }
        let (payload, to) = (world.payload(), addr(DOMESTIC[1]));
        let link_local = liar.id().mac().link_local();
        liar.send(udp((link_local.into(), 4000), (to, PORT), &payload));
        assert!(!world.served(&payload), "a link-local address does not leave its link");
        // To a neighbour of the same tenant neither.
        let payload = world.payload();
        liar.send(udp((addr("10.1.0.99"), 4000), (victim.ipv4().into(), PORT), &payload));
        assert_eq!(victim.packets(), []);
    });
}

#[test]
fn arp_for_somebody_else_is_not_believed() {
    play(|| {
        let world = World::new();
        let (liar, victim) = two(&world);
        let before = neighbours();
        let ask = |ethernet_mac, arp_mac, from: Ipv4Addr, operation| {
            let (kind, packet) = arp(operation, arp_mac, from, [0; 6], GATEWAY4);
            liar.send_frame(&ethernet(BROADCAST, ethernet_mac, kind, &packet));
            liar.frames().iter().find_map(|frame| arp_reply(frame))
        };
        assert!(ask(liar.mac(), liar.mac(), liar.ipv4(), 1).is_some(), "as itself it is answered");
        assert_eq!(ask(victim.mac(), liar.mac(), liar.ipv4(), 1), None);
        assert_eq!(ask(liar.mac(), victim.mac(), liar.ipv4(), 1), None);
        assert_eq!(ask(liar.mac(), liar.mac(), victim.ipv4(), 1), None);
        assert_eq!(ask(liar.mac(), liar.mac(), GATEWAY4, 1), None);
        // Gratuitous, as a request and as a reply.
        for operation in [1, 2] {
            let (kind, packet) = arp(operation, liar.mac(), victim.ipv4(), [0; 6], victim.ipv4());
            liar.send_frame(&ethernet(BROADCAST, liar.mac(), kind, &packet));
        }
        assert_eq!(ask(liar.mac(), liar.mac(), victim.ipv4(), 2), None);
        assert_eq!(victim.frames(), Vec::<Vec<u8>>::new(), "nothing of it is on another's link");
        assert_eq!(neighbours(), before);
    });
}

#[test]
fn neighbour_discovery_for_somebody_else_is_not_believed() {
    play(|| {
        let world = World::new();
        let (liar, victim) = two(&world);
        let before = neighbours();
        let gateway = IpAddr::from(GATEWAY6);
        let answered = |from: IpAddr, target, hops| {
            liar.send(icmp(from, gateway, 135, hops, &nd_body(0, target, 1, liar.mac())));
            liar.packets().iter().any(|packet| packet.protocol == 58)
        };
        assert!(answered(liar.ipv6().into(), GATEWAY6, 255), "as itself it is answered");
        assert!(!answered(victim.ipv6().into(), GATEWAY6, 255));
        assert!(!answered(addr("fe80::2"), GATEWAY6, 255), "a link-local address that its MAC does not have");
        assert!(!answered(gateway, GATEWAY6, 255));
        assert!(!answered(addr("::"), GATEWAY6, 255));
        assert!(
            !answered(liar.ipv6().into(), "2a0d::1".parse().unwrap(), 255),
            "it asks for the gateway only"
        );
        assert!(!answered(liar.ipv6().into(), victim.ipv6(), 255));
        assert!(!answered(liar.ipv6().into(), GATEWAY6, 64), "from further than the link");
        for target in [victim.ipv6(), GATEWAY6] {
            // Solicited, overriding, from a router: as bold as can be.
            let body = nd_body(0xe000_0000, target, 2, liar.mac());
            for to in [gateway, victim.ipv6().into(), addr("ff02::1")] {
                liar.send(icmp(liar.ipv6().into(), to, 136, 255, &body));
            }
        }
        assert_eq!(victim.frames(), Vec::<Vec<u8>>::new());
        assert_eq!(neighbours(), before);
    });
}

#[test]
fn a_guest_is_neither_a_dhcp_server_nor_a_router() {
    play(|| {
        let world = World::new();
        let (liar, victim) = two(&world);
        let routes = || sh("ip route; ip -6 route");
        let before = routes();
        for (port, to) in [(67, victim.ipv4().into()), (547, victim.ipv6().into())] {
            let say = |from_port| {
                liar.send(udp((liar.like(to), from_port), (to, port + 1), b"offer"));
                !victim.packets().is_empty()
            };
            assert!(say(4000), "from another port it is heard");
            assert!(!say(port), "as a DHCP server it is not");
        }
        for (port, to) in [(67, DOMESTIC[0]), (547, DOMESTIC[1])] {
            let payload = world.payload();
            liar.send(udp((liar.like(addr(to)), port), (addr(to), PORT), &payload));
            assert!(!world.served(&payload));
        }
        // Router advertisement with a default route; redirects of both families.
        let own = liar.id().mac().link_local();
        let advertisement = [0x40, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0];
        for to in [addr("ff02::1"), GATEWAY6.into(), victim.ipv6().into()] {
            for from in [own.into(), liar.ipv6().into()] {
                liar.send(icmp(from, to, 134, 255, &advertisement));
                let redirect =
                    [&[0; 4][..], &own.octets(), &[0x20, 1, 0xd, 0xb8, 0, 0xd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]];
                liar.send(icmp(from, to, 137, 255, &redirect.concat()));
            }
        }
        for to in [GATEWAY4, victim.ipv4()] {
            liar.send(icmp(
                liar.ipv4().into(),
                to.into(),
                5,
                64,
                &[&liar.ipv4().octets()[..], &[0; 28]].concat(),
            ));
            liar.send(icmp(liar.ipv4().into(), to.into(), 9, 64, &[1, 2, 0, 60, 10, 1, 0, 2, 0, 0, 0, 0]));
        }
        assert_eq!(victim.frames(), Vec::<Vec<u8>>::new());
        assert_eq!(routes(), before);
        assert_eq!(sh("cat /proc/sys/net/ipv6/conf/yun0000000102/accept_ra").trim(), "0");
    });
}

#[test]
fn the_host_is_silent_on_a_guests_link() {
    play(|| {
        let world = World::new();
        let guest = world.guest("a", 2, EgressClass::International);
        // What a service of the host tells to its neighbours, and what the kernel says of its groups.
        for (socket, to) in [("0.0.0.0:0", "10.1.0.2:5353"), ("[::]:0", "[fd01::2]:5353")] {
            let sent = std::net::UdpSocket::bind(socket).unwrap().send_to(b"hello", to);
            assert_eq!(sent.unwrap_err().kind(), std::io::ErrorKind::PermissionDenied);
        }
        world.fence();
        assert_eq!(guest.frames(), Vec::<Vec<u8>>::new());
    });
}
