//! 10,000 prefixes and 1,000 interfaces.

use std::time::{Duration, Instant};

use super::frames::udp;
use super::lifetime::{lines, state};
use super::world::{DOMESTIC, PORT, World, addr};
use super::{play, play_alone};
use vmm::agent::net::FLOWS_MAX;
use vmm::agent::net::list::{ListKind, PrefixList};
use vmm::agent::net::model::{EgressClass, Interface, InterfaceId, Subnet};

/// What the issue asks for.
const LOAD_MAX: Duration = Duration::from_secs(1);
const SWITCH_MAX: Duration = Duration::from_millis(200);

fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    (work(), start.elapsed())
}

#[test]
fn ten_thousand_prefixes_and_a_thousand_interfaces_load_in_a_second_and_switch_class_in_a_fifth() {
    play_alone(|| {
        let mut world = World::new();
        world.unpin();
        let net = &world.net;
        // No two of them can be made one.
        let v4 =
            (0..8_000u32).map(|n| format!("{}.{}.{}.0/24", 20 + (n >> 14), (n >> 7) & 127, (n & 127) * 2));
        let v6 = (0..2_000u32).map(|n| format!("2600:{:x}::/32", n * 2));
        let own = ["1.2.3.0/24", "2a0d::/64"].map(str::to_owned);
        let nets: Vec<_> = v4.chain(v6).chain(own).map(|net| net.parse().unwrap()).collect();
        let list = PrefixList::new(ListKind::Domestic, 2, nets).unwrap().sign(&super::world::zone_key());

        // A thousand interfaces of a hundred tenants, as an agent that has started again finds them. Their TAPs are there:
        // those of the first few by plugging, the others' as devices alone.
        let tenants: Vec<String> = (0..100).map(|n| format!("t{n}")).collect();
        let subnet = |n: usize, net: String| Subnet::new(&tenants[n], net.parse().unwrap()).unwrap();
        let v4 = (0..100).map(|n| subnet(n, format!("10.100.{n}.0/24")));
        let v6 = (0..100).map(|n| subnet(n, format!("fd10:{n:x}::/64")));
        let subnets: Vec<Subnet> = world.subnets.iter().cloned().chain(v4).chain(v6).collect();
        let interface = |n: usize| {
            let (tenant, nth) = (n / 10, n % 10 + 2);
            let ipv4 = format!("10.100.{tenant}.{nth}").parse().unwrap();
            let ipv6 = format!("fd10:{tenant:x}::{nth:x}").parse().unwrap();
            let id = InterfaceId::new(0x1_0000 + n as u64).unwrap();
            Interface::new(id, &tenants[tenant], Some(ipv4), Some(ipv6), EgressClass::Domestic, &subnets)
                .unwrap()
        };
        let interfaces: Vec<Interface> = (0..1_000).map(interface).collect();

        let (_, prefixes) = timed(|| net.load_list(&list).unwrap());
        let (_, pairs) = timed(|| net.set_subnets(&subnets).unwrap());
        let (_, rules) = timed(|| net.install(&interfaces).unwrap());
        let load = prefixes + pairs + rules;
        let switches = (0..10).map(|n| {
            let class = [EgressClass::Isolated, EgressClass::International][n % 2];
            timed(|| net.set_class(interfaces[n * 99].id(), class).unwrap()).1
        });
        let switches: Vec<Duration> = switches.collect();
        // The machine may be busy with something else once or twice.
        let switch = {
            let mut sorted = switches.clone();
            sorted.sort();
            sorted[sorted.len() / 2]
        };
        let (counters, counting) = timed(|| net.read_counters().unwrap());
        assert!(counters.len() >= 1_000);
        let extra = interface(0).with_class(EgressClass::Domestic);
        let (found, looking) = timed(|| net.leftovers(&[]).unwrap());
        assert!(found.len() >= 1_000);
        let (_, again) = timed(|| net.prepare().unwrap());
        let (_, unplug) = timed(|| net.unplug(std::slice::from_ref(&extra)).unwrap());
        let (tap, plug) = timed(|| net.plug(&extra).unwrap());
        drop(tap);
        // The rules are in force.
        world.subnets = subnets.clone();
        let guest = world.guest("a", 2, EgressClass::Domestic);
        let payload = world.payload();
        guest.say(addr(DOMESTIC[0]), &payload);
        guest.wait_for_echo(addr(DOMESTIC[0]), &payload);

        let figures = format!(
            "10,002 prefixes {prefixes:.0?}, 206 subnets {pairs:.0?}, 1,000 interfaces {rules:.0?}: {load:.0?}; class \
             switch {switch:.0?} (median of {switches:.0?}); counters {counting:.0?}, leftovers {looking:.0?}, prepare \
             {again:.0?}, unplug {unplug:.0?}, plug {plug:.0?}"
        );
        super::say(&figures);
        assert!(load < LOAD_MAX && switch < SWITCH_MAX, "{figures}");
    });
}

#[test]
fn two_hundred_rounds_of_plug_and_unplug_leave_nothing() {
    play(|| {
        let world = World::new();
        let interface = world.interface("a", 2, EgressClass::Domestic);
        drop(world.net.plug(&interface).unwrap());
        world.net.unplug(std::slice::from_ref(&interface)).unwrap();
        let before = lines(&state());
        for _ in 0..200 {
            drop(world.net.plug(&interface).unwrap());
            world.net.unplug(std::slice::from_ref(&interface)).unwrap();
        }
        assert_eq!(lines(&state()), before);
    });
}

#[test]
fn a_guest_that_begins_too_many_flows_gets_no_more_and_others_do() {
    play(|| {
        let world = World::new();
        let guest = world.guest("a", 2, EgressClass::Domestic);
        let to = addr(DOMESTIC[0]);
        let say =
            |port: u16, payload: &[u8]| guest.send(udp((guest.ipv4().into(), port), (to, PORT), payload));
        let first = world.payload();
        say(1, &first);
        assert!(world.served(&first));
        for port in 2..=u16::try_from(FLOWS_MAX).unwrap() + 500 {
            say(port, b"flow");
        }
        let (next, again) = (world.payload(), world.payload());
        say(60_000, &next);
        say(1, &again);
        assert!(!world.served(&next), "one flow too many");
        assert!(world.served(&again), "a flow that is there goes on");
    });
}
