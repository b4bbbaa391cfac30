//! Random traffic over several connections, held against a simple model: two strings per connection.

use proptest::prelude::*;

use super::*;
use crate::testing::seed::Seed;

/// The guest's side of one connection, which keeps to the rules.
struct Model {
    ports: (u32, u32),
    end: usize,
    /// What each side has sent; what the guest has received.
    guest_sent: Vec<u8>,
    host_sent: Vec<u8>,
    guest_got: Vec<u8>,
    /// As the device said last.
    device_alloc: u32,
    device_forwarded: u32,
    /// As the guest says.
    buf_alloc: u32,
    consumed: u32,
}

impl Model {
    fn credit(&self) -> u32 {
        let sent = u32::try_from(self.guest_sent.len()).unwrap();
        self.device_alloc - (sent - self.device_forwarded)
    }
}

fn receive(rig: &mut Rig, models: &mut [Model]) {
    loop {
        rig.serve();
        let Some((header, payload)) = rig.packet() else { return };
        let model = models.iter_mut().find(|model| model.ports.1 == header.dst_port.get()).unwrap();
        assert_ne!(header.op.get(), Op::Rst as u16, "nobody did anything wrong");
        (model.device_alloc, model.device_forwarded) = (header.buf_alloc.get(), header.fwd_cnt.get());
        model.guest_got.extend(payload);
        let held = u32::try_from(model.guest_got.len()).unwrap() - model.consumed;
        assert!(
            held <= model.buf_alloc,
            "the guest was sent {held} bytes and has room for {}",
            model.buf_alloc
        );
    }
}

fn send(rig: &mut Rig, model: &mut Model, op: Op, payload: &[u8]) {
    (rig.buf_alloc, rig.fwd_cnt) = (model.buf_alloc, model.consumed);
    rig.send(Kind::Stream, op, model.ports, 0, payload);
    model.guest_sent.extend(payload);
}

fn play(seed: u64) {
    let mut rig = Rig::new();
    let mut seed = Seed::new(seed);
    let below = |seed: &mut Seed, bound: u64| usize::try_from(seed.below(bound)).unwrap();
    let mut models = Vec::new();
    for port in 0..3 {
        rig.buf_alloc = 1 + u32::try_from(seed.below(20_000)).unwrap();
        let ports = (52, 1 + port);
        models.push(Model {
            ports,
            end: rig.connected(Kind::Stream, ports),
            guest_sent: Vec::new(),
            host_sent: Vec::new(),
            guest_got: Vec::new(),
            device_alloc: WIDE_WINDOW_BYTES,
            device_forwarded: 0,
            buf_alloc: rig.buf_alloc,
            consumed: 0,
        });
    }
    for _ in 0..80 {
        let which = below(&mut seed, 3);
        let byte = u8::try_from(seed.below(256)).unwrap();
        match seed.below(5) {
            0 | 1 => {
                let credit = models[which].credit();
                let len = below(&mut seed, 60_000).min(credit as usize);
                send(&mut rig, &mut models[which], Op::Rw, &vec![byte; len]);
            }
            2 => {
                let data = vec![byte; 1 + below(&mut seed, 30_000)];
                rig.host.world().say(models[which].end, &data);
                models[which].host_sent.extend(data);
            }
            3 => {
                let room = below(&mut seed, 100_000);
                rig.host.world().make_room(models[which].end, room);
            }
            _ => {
                let model = &mut models[which];
                let held = model.guest_got.len() - model.consumed as usize;
                model.consumed += u32::try_from(below(&mut seed, 1 + held as u64)).unwrap();
                send(&mut rig, model, Op::CreditUpdate, &[]);
            }
        }
        receive(&mut rig, &mut models);
        for model in &models {
            let there = rig.host.world().ends[model.end].bytes().len();
            assert!(model.guest_sent.len() - there <= WIDE_WINDOW_BYTES as usize);
        }
    }
    // Everybody takes what there is, and then all has arrived.
    for which in 0..3 {
        rig.host.world().make_room(models[which].end, usize::MAX);
        while models[which].guest_got.len() < models[which].host_sent.len() {
            models[which].consumed = u32::try_from(models[which].guest_got.len()).unwrap();
            let before = models[which].consumed;
            send(&mut rig, &mut models[which], Op::CreditUpdate, &[]);
            receive(&mut rig, &mut models);
            assert!(models[which].guest_got.len() > before as usize, "stuck");
        }
        receive(&mut rig, &mut models);
    }
    for model in &models {
        assert!(
            model.guest_got == model.host_sent
                && rig.host.world().ends[model.end].bytes() == model.guest_sent
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn every_byte_arrives_once_in_order_and_within_the_credit_of_both_sides(seed: u64) {
        play(seed);
    }
}
