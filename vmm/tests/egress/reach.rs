//! Who reaches whom.

use super::frames::{ACK, BROADCAST, SYN, arp, arp_reply, ethernet, icmp, nd_body, tcp, udp};
use super::play;
use super::world::{DENIED, DOMESTIC, FOREIGN, Guest, HOST, METADATA, PORT, PRIVATE, World, addr};
use vmm::agent::net::model::{EgressClass, GATEWAY_MAC, GATEWAY4, GATEWAY6};
use vmm::agent::net::{HostNet, Setup};

fn each_target_is_reached_as_the_class_says(class: EgressClass) {
    let world = World::new();
    let (from, neighbour) = (world.guest("a", 2, class), world.guest("a", 3, EgressClass::Isolated));
    let other = world.guest("b", 2, EgressClass::International);
    for family in [0, 1] {
        let mut targets = vec![
            ("domestic", addr(DOMESTIC[family]), class != EgressClass::Isolated),
            ("foreign", addr(FOREIGN[family]), class == EgressClass::International),
            ("metadata", addr(METADATA[family]), false),
            ("private", addr(PRIVATE[family]), false),
        ];
        targets.extend(DENIED.map(|denied| ("denied", addr(denied[family]), false)));
        targets.extend(HOST.map(|host| ("the host", addr(host[family]), false)));
        for (what, to, reached) in targets {
            let payload = world.payload();
            from.say(to, &payload);
            assert_eq!(world.served(&payload), reached, "{class} to {what}, {to}");
            if reached {
                from.wait_for_echo(to, &payload);
            }
        }
        for (what, guest, reached) in
            [("its own tenant's", &neighbour, true), ("another tenant's", &other, false)]
        {
            let (payload, to) = (world.payload(), guest.like(addr(DOMESTIC[family])));
            from.say(to, &payload);
            let arrived = guest.packets().iter().any(|packet| packet.payload.ends_with(&payload));
            assert_eq!(arrived, reached, "{class} to {what} VM, {to}");
        }
        // An address of its own tenant that nobody has is not looked for outside.
        let (payload, to) = (world.payload(), if family == 0 { "10.1.0.99" } else { "fd01::99" });
        from.say(addr(to), &payload);
        assert!(!world.served(&payload));
    }
}

#[test]
fn isolated_reaches_its_own_tenant_only() {
    play(|| each_target_is_reached_as_the_class_says(EgressClass::Isolated));
}

#[test]
fn domestic_reaches_also_what_the_list_names() {
    play(|| each_target_is_reached_as_the_class_says(EgressClass::Domestic));
}

#[test]
fn international_reaches_all_that_is_not_denied() {
    play(|| each_target_is_reached_as_the_class_says(EgressClass::International));
}

/// Whether a datagram that the domestic server sends unasked reaches the guest.
fn hears(world: &World, guest: &Guest, family: usize, port: u16) -> bool {
    let payload = world.payload();
    let to = guest.like(addr(DOMESTIC[family]));
    world.domestic.sockets[family].send_to(&payload, (to, port)).unwrap();
    world.fence();
    guest.packets().iter().any(|packet| packet.payload.ends_with(&payload))
}

#[test]
fn what_is_new_from_outside_is_dropped_and_answers_are_not() {
    play(|| {
        let world = World::new();
        let guest = world.guest("a", 2, EgressClass::International);
        for family in [0, 1] {
            assert!(!hears(&world, &guest, family, 4000), "it has not asked");
            let payload = world.payload();
            guest.say(addr(DOMESTIC[family]), &payload);
            guest.wait_for_echo(addr(DOMESTIC[family]), &payload);
            assert!(hears(&world, &guest, family, 4000), "it has asked from this port");
            assert!(!hears(&world, &guest, family, 4001), "it has not asked from that one");
        }
    });
}

#[test]
fn a_tcp_connection_is_answered() {
    play(|| {
        let world = World::new();
        let guest = world.guest("a", 2, EgressClass::Domestic);
        for to in DOMESTIC.map(addr) {
            let listener = world.domestic_listener((to, 80).into());
            let (from, to) = ((guest.like(to), 5000), (to, 80));
            guest.send(tcp(from, to, SYN, 100, 0, &[]));
            let answer = guest.wait_for("SYN and ACK", |packet| packet.protocol == 6 && packet.from == to.0);
            assert_eq!(answer.payload[13], SYN | ACK);
            let theirs = u32::from_be_bytes(answer.payload[4..8].try_into().unwrap());
            guest.send(tcp(from, to, ACK, 101, theirs + 1, &[]));
            assert_eq!(listener.accept().unwrap().1.ip(), from.0);
        }
    });
}

#[test]
fn the_gateway_answers_arp_and_neighbour_discovery() {
    play(|| {
        let world = World::new();
        let guest = world.guest("a", 2, EgressClass::Isolated);
        let ask = |address| {
            let (kind, request) = arp(1, guest.mac(), guest.ipv4(), [0; 6], address);
            guest.send_frame(&ethernet(BROADCAST, guest.mac(), kind, &request));
            guest.frames().iter().find_map(|frame| arp_reply(frame))
        };
        assert_eq!(ask(GATEWAY4), Some((GATEWAY_MAC.0, GATEWAY4)));
        // A guest that takes its subnet for a link finds its gateway and its neighbours too, but no one else's.
        let _neighbour = world.guest("a", 3, EgressClass::Isolated);
        let _other = world.guest("b", 3, EgressClass::Isolated);
        for address in ["10.1.0.1", "10.1.0.3"] {
            assert_eq!(ask(address.parse().unwrap()).map(|(mac, _)| mac), Some(GATEWAY_MAC.0), "{address}");
        }
        for address in ["10.2.0.3", "1.2.3.1", "9.9.9.2", "10.1.0.2"] {
            assert_eq!(ask(address.parse().unwrap()), None, "{address}");
        }
        for from in [guest.ipv6(), guest.id().mac().link_local()] {
            let body = nd_body(0, GATEWAY6, 1, guest.mac());
            guest.send(icmp(from.into(), GATEWAY6.into(), 135, 255, &body));
            let answer = guest.wait_for("advertisement", |packet| packet.protocol == 58);
            assert_eq!((answer.from, answer.payload[0]), (GATEWAY6.into(), 136));
        }
    });
}

#[test]
fn bytes_are_counted_by_where_they_go() {
    play(|| {
        let world = World::new();
        let (guest, neighbour) =
            (world.guest("a", 2, EgressClass::International), world.guest("a", 3, EgressClass::Isolated));
        let payload = [0; 72]; // 100 bytes with the headers of IPv4 and UDP
        for _ in 0..3 {
            guest.say(addr(DOMESTIC[0]), &payload);
            guest.wait_for_echo(addr(DOMESTIC[0]), &payload);
        }
        guest.say(addr(FOREIGN[0]), &payload);
        guest.wait_for_echo(addr(FOREIGN[0]), &payload);
        guest.say(neighbour.ipv4().into(), &payload);
        guest.say(addr(DENIED[0][0]), &payload);
        let all = world.net.read_counters().unwrap();
        let count = |count: vmm::agent::net::Count| (count.packets, count.bytes);
        let traffic = all[&guest.id()];
        assert_eq!((count(traffic.domestic.sent), count(traffic.domestic.received)), ((3, 300), (3, 300)));
        assert_eq!(
            (count(traffic.international.sent), count(traffic.international.received)),
            ((1, 100), (1, 100))
        );
        assert_eq!((count(traffic.isolated.sent), count(traffic.isolated.received)), ((1, 100), (0, 0)));
        assert_eq!(count(all[&neighbour.id()].isolated.received), (1, 100));
        let (id, interface) = (guest.id(), guest.interface.clone());
        drop(guest);
        assert_eq!(
            world.net.read_counters().unwrap()[&id],
            traffic,
            "the last bill is written once the TAP is gone"
        );
        world.net.unplug(&[interface]).unwrap();
        assert!(!world.net.read_counters().unwrap().contains_key(&id));
    });
}

#[test]
fn who_hides_behind_the_host_is_answered_where_nobody_knows_its_subnet() {
    play(|| {
        let world = World::new();
        let guest = world.guest("a", 2, EgressClass::International);
        let to = addr(FOREIGN[0]);
        world.forget_the_way_back();
        let lost = world.payload();
        guest.say(to, &lost);
        let hidden = HostNet::new(Setup { masquerade: true, ..world.setup.clone() });
        hidden.prepare().unwrap();
        let payload = world.payload();
        // Another flow: the one before was not translated, and is not.
        guest.send(udp((guest.ipv4().into(), 4001), (to, PORT), &payload));
        guest.wait_for_echo(to, &payload);
        hidden.prepare().unwrap();
        world.net.prepare().unwrap();
    });
}
