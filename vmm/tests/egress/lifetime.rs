//! Plugging, unplugging, the agent's restart, and what is left over.

use std::collections::BTreeSet;

use super::play;
use super::world::{DOMESTIC, World, addr, neighbours, sh};
use vmm::agent::net::model::EgressClass;
use vmm::agent::net::{HostNet, Leftover, NetError, Setup};

/// All that is on the host for guests, as text: links, addresses, routes, neighbours, sets and maps.
pub fn state() -> String {
    let all =
        sh("ip -o link; ip -o addr; ip route show table all; ip -6 route show table all; nft list ruleset");
    // What counters say is not what is there, and the uplinks' link-local addresses come when they like.
    let uplinks = |line: &str| line.contains("fe80:") && (line.contains(" dom") || line.contains(" for"));
    let there = all.lines().filter(|line| !line.contains("packets ") && !uplinks(line)).map(str::to_owned);
    there.chain(neighbours()).map(|line| line + "\n").collect()
}

/// Elements of sets come in any order, and interfaces have ever higher numbers.
pub fn lines(state: &str) -> BTreeSet<String> {
    state.lines().map(|line| line.trim().trim_end_matches([',', ' ', '}']).to_owned()).collect()
}

#[test]
fn unplugging_leaves_nothing_whoever_has_the_tap_open() {
    play(|| {
        let world = World::new();
        let before = lines(&state());
        let guest = world.guest("a", 2, EgressClass::Domestic);
        assert_ne!(lines(&state()), before);
        // With a flow that the host still tracks.
        let payload = world.payload();
        guest.say(addr(DOMESTIC[0]), &payload);
        guest.wait_for_echo(addr(DOMESTIC[0]), &payload);
        world.net.unplug(std::slice::from_ref(&guest.interface)).unwrap();
        assert_eq!(lines(&state()), before, "its TAP was still open");
        drop(guest);
        let guest = world.guest("a", 2, EgressClass::Domestic);
        let interface = guest.interface.clone();
        drop(guest);
        world.net.unplug(std::slice::from_ref(&interface)).unwrap();
        assert_eq!(lines(&state()), before, "its VMM had ended");
        world.net.unplug(std::slice::from_ref(&interface)).unwrap();
        assert_eq!(lines(&state()), before, "there was nothing to unplug");
    });
}

#[test]
fn a_plug_that_fails_leaves_nothing() {
    play(|| {
        let world = World::new();
        let before = lines(&state());
        let interface = world.interface("a", 2, EgressClass::Domestic);
        let broken = HostNet::new(Setup { nft: "/bin/false".into(), ..world.setup.clone() });
        assert!(matches!(broken.plug(&interface), Err(NetError::Nft(_))));
        assert_eq!(lines(&state()), before);
        // Its name is taken.
        sh("ip tuntap add yun0000000102 mode tap");
        assert!(matches!(world.net.plug(&interface), Err(NetError::Taken(name)) if name == "yun0000000102"));
        sh("ip link del yun0000000102");
        assert_eq!(lines(&state()), before);
    });
}

#[test]
fn what_an_unclean_end_left_in_the_rules_does_not_hinder_the_next_plug() {
    play(|| {
        let world = World::new();
        let guest = world.guest("a", 2, EgressClass::Isolated);
        drop(guest); // and nobody unplugs it
        let guest = world.guest("a", 2, EgressClass::Domestic);
        let payload = world.payload();
        guest.say(addr(DOMESTIC[0]), &payload);
        guest.wait_for_echo(addr(DOMESTIC[0]), &payload);
    });
}

#[test]
fn a_restart_of_the_agent_keeps_flows_and_counters_of_running_guests() {
    play(|| {
        let world = World::new();
        let guest = world.guest("a", 2, EgressClass::Domestic);
        let ended = world.guest("a", 3, EgressClass::Domestic).interface.clone();
        let there = world.payload();
        guest.say(addr(DOMESTIC[0]), &there);
        guest.wait_for_echo(addr(DOMESTIC[0]), &there);
        let counted = world.net.read_counters().unwrap()[&guest.id()];
        let before = lines(&state());

        let again = HostNet::new(world.setup.clone());
        again.prepare().unwrap();
        again.set_subnets(&world.subnets).unwrap();
        let gone = again.restore(&[guest.interface.clone(), ended.clone()]).unwrap();
        assert_eq!(gone, [ended.id()]);
        assert_eq!(lines(&state()), before);
        assert_eq!(again.read_counters().unwrap()[&guest.id()], counted);
        // The server goes on in the flow that was there before.
        let back = world.payload();
        world.domestic.sockets[0].send_to(&back, (guest.ipv4(), 4000)).unwrap();
        guest.wait_for_echo(addr(DOMESTIC[0]), &back);
        again.unplug(std::slice::from_ref(&ended)).unwrap();
    });
}

#[test]
fn restoring_mends_what_somebody_took_away() {
    play(|| {
        let world = World::new();
        let guest = world.guest("a", 2, EgressClass::Domestic);
        let before = lines(&state());
        sh("ip route del 10.1.0.2; ip neigh del 10.1.0.2 dev yun0000000102; ip route del fd01::2; \
            nft flush set inet yun own6; nft flush set arp yun own");
        sh("nft 'delete element inet yun class_out { \"yun0000000102\" }; \
            add element inet yun class_out { \"yun0000000102\" : jump out_international }'");
        assert_ne!(lines(&state()), before);
        world
            .net
            .restore(&[guest.interface.clone(), world.interface("w", 2, EgressClass::International)])
            .unwrap();
        assert_eq!(lines(&state()), before);
    });
}

#[test]
fn leftovers_are_what_belongs_to_no_known_interface_and_can_be_removed() {
    play(|| {
        let world = World::new();
        let witness = world.interface("w", 2, EgressClass::International);
        let before = lines(&state());
        let known = world.guest("a", 2, EgressClass::Domestic);
        let running = world.guest("a", 3, EgressClass::Domestic);
        let ended = world.guest("a", 4, EgressClass::Domestic).id();
        sh("ip tuntap add yunder mode tap");
        let all = [witness, known.interface.clone()];
        let found = world.net.leftovers(&all).unwrap();
        let expected = [
            Leftover::Tap { name: running.id().tap() },
            Leftover::Rules { id: running.id() },
            Leftover::Rules { id: ended },
        ];
        assert_eq!(found, expected, "somebody else's interface is none");
        for leftover in &found {
            world.net.remove(leftover).unwrap();
        }
        assert_eq!(world.net.leftovers(&all).unwrap(), []);
        world.net.unplug(std::slice::from_ref(&known.interface)).unwrap();
        sh("ip link del yunder");
        assert_eq!(lines(&state()), before);
    });
}

#[test]
fn what_others_forward_is_as_it_was_before() {
    play(|| {
        let world = World::new();
        let others = |net: &HostNet| {
            net.prepare().unwrap();
            sh("nft list chain inet yun others")
        };
        let chain = others(&world.net);
        assert!(chain.contains("ipv4 drop") && chain.contains("ipv6 drop"), "{chain}");
        assert_eq!(
            others(&HostNet::new(world.setup.clone())),
            chain,
            "our own forwarding is not taken for theirs"
        );
    });
}

#[test]
fn the_hosts_networks_are_not_those_of_guests() {
    play(|| {
        let world = World::new();
        let _guest = world.guest("a", 2, EgressClass::Domestic);
        let nets: BTreeSet<String> =
            world.net.host_networks().unwrap().iter().map(|net| net.trunc().to_string()).collect();
        let expected = ["1.2.3.0/24", "2a0d::/64", "9.9.9.0/24", "2a09::/64"].map(str::to_owned);
        assert_eq!(nets, BTreeSet::from(expected));
    });
}
