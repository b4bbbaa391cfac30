//! Classes and lists that change under running flows.

use super::play;
use super::world::{DENIED, DOMESTIC, FOREIGN, Guest, World, addr, signed};
use ed25519_dalek::SigningKey;
use vmm::agent::net::list::{ListError, ListKind};
use vmm::agent::net::model::EgressClass;
use vmm::agent::net::{HostNet, NetError, Versions};

/// Whether a flow lives: guest to server, and server to guest, which has a state to answer to.
fn flows(world: &World, guest: &Guest, side: &str, family: usize) -> (bool, bool) {
    let (servers, to) = match side {
        "domestic" => (&world.domestic, DOMESTIC[family]),
        _ => (&world.foreign, FOREIGN[family]),
    };
    let (there, back) = (world.payload(), world.payload());
    guest.say(addr(to), &there);
    // From the very socket that the guest spoke to.
    servers.sockets[family].send_to(&back, (guest.like(addr(to)), 4000)).unwrap();
    let served = world.served(&there);
    (served, guest.packets().iter().any(|packet| packet.payload.ends_with(&back)))
}

#[test]
fn a_class_change_ends_the_flows_that_it_forbids_both_ways_and_no_others() {
    play(|| {
        let world = World::new();
        let guest = world.guest("a", 2, EgressClass::International);
        for family in [0, 1] {
            for (class, domestic, foreign) in [
                (EgressClass::International, true, true),
                (EgressClass::Domestic, true, false),
                (EgressClass::Isolated, false, false),
                (EgressClass::International, true, true),
            ] {
                world.net.set_class(guest.id(), class).unwrap();
                for (side, lives) in [("domestic", domestic), ("foreign", foreign)] {
                    assert_eq!(
                        flows(&world, &guest, side, family),
                        (lives, lives),
                        "{class}: {side} {family}"
                    );
                }
            }
        }
        let other = world.interface("b", 77, EgressClass::Isolated).id();
        assert!(matches!(world.net.set_class(other, EgressClass::Domestic), Err(NetError::Nft(_))));
    });
}

#[test]
fn a_new_list_ends_the_flows_that_it_forbids() {
    play(|| {
        let world = World::new();
        let guest = world.guest("a", 2, EgressClass::Domestic);
        assert_eq!(flows(&world, &guest, "domestic", 0), (true, true));
        let versions = world.net.load_list(&signed(ListKind::Domestic, 2, &["2a0d::/64"])).unwrap();
        assert_eq!(versions, Versions { domestic: Some(2), denied: Some(1) });
        assert_eq!(flows(&world, &guest, "domestic", 0), (false, false));
        assert_eq!(flows(&world, &guest, "domestic", 1), (true, true));
        world.net.load_list(&signed(ListKind::Denied, 2, &["2a0d::2/128"])).unwrap();
        assert_eq!(flows(&world, &guest, "domestic", 1), (false, false));
        let payload = world.payload();
        world.net.set_class(guest.id(), EgressClass::International).unwrap();
        guest.say(addr(DENIED[0][0]), &payload);
        guest.wait_for_echo(addr(DENIED[0][0]), &payload);
    });
}

#[test]
fn a_bad_list_is_kept_out_and_the_one_before_stays() {
    play(|| {
        let world = World::new();
        let guest = world.guest("a", 2, EgressClass::Domestic);
        let good = signed(ListKind::Domestic, 2, &["9.9.9.0/24"]);
        let refused = |list: &vmm::agent::net::list::SignedList| match world.net.load_list(list).unwrap_err()
        {
            NetError::List(error) => error,
            error => panic!("{error}"),
        };
        let mut forged = good.clone();
        forged.prefixes.push("1.2.3.0/24".parse().unwrap());
        assert!(matches!(refused(&forged), ListError::Forged(_)));
        let list = good.clone().verify(&[super::world::zone_key().verifying_key()]).unwrap();
        assert!(matches!(refused(&list.sign(&SigningKey::from_bytes(&[8; 32]))), ListError::Stranger(_)));
        let old = signed(ListKind::Domestic, 1, &["9.9.9.0/24"]);
        assert!(matches!(refused(&old), ListError::Old { got: 1, in_force: 1 }));

        // One that the kernel does not get.
        let broken = HostNet::new(vmm::agent::net::Setup { nft: "/bin/false".into(), ..world.setup.clone() });
        assert!(matches!(broken.load_list(&good), Err(NetError::Nft(_))));

        for net in [&world.net, &HostNet::new(world.setup.clone())] {
            assert_eq!(net.prepare().unwrap(), Versions { domestic: Some(1), denied: Some(1) });
            assert_eq!(flows(&world, &guest, "domestic", 0), (true, true));
            let payload = world.payload();
            guest.say(addr(FOREIGN[0]), &payload);
            assert!(!world.served(&payload));
        }
        world.net.load_list(&good).unwrap();
        assert_eq!(flows(&world, &guest, "foreign", 0), (true, true));
    });
}

#[test]
fn a_damaged_file_of_a_list_is_reported_and_what_the_kernel_has_stays() {
    play(|| {
        let world = World::new();
        let guest = world.guest("a", 2, EgressClass::Domestic);
        std::fs::write(world.setup.lists.join("domestic.json"), "{\"kind\":").unwrap();
        assert!(matches!(world.net.prepare(), Err(NetError::List(ListError::Json { .. }))));
        let denied = signed(ListKind::Denied, 9, &[]);
        std::fs::write(world.setup.lists.join("domestic.json"), serde_json::to_vec(&denied).unwrap())
            .unwrap();
        assert!(matches!(world.net.prepare(), Err(NetError::List(ListError::Kind { .. }))));
        assert_eq!(flows(&world, &guest, "domestic", 0), (true, true));
    });
}
