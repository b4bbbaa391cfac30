//! A guest that is asked to tell the network where it is.

use super::*;

const CONTROL_RINGS: u64 = 0x5000;
const COMMAND: u64 = 0x9000;

/// A card in use, its control queue enabled.
struct Called {
    rig: Rig,
    control: Driver,
}

impl Called {
    fn new(feature_mask: u64) -> Self {
        let mut rig = Rig::new();
        rig.device = Box::new(Nothing);
        let net = Net::new(Box::new(rig.tap.clone()), &NetOptions::default());
        rig.handle = net.handle();
        let control = Self::start(&mut rig, Box::new(net), feature_mask);
        Self { rig, control }
    }

    fn start(rig: &mut Rig, net: Box<dyn Idle>, feature_mask: u64) -> Driver {
        let control = Driver::new(&rig.ram, CONTROL_RINGS, 16);
        ram::write(&rig.ram, CONTROL_RINGS, &[0; 0x400]);
        let features = net.offered() & !F_EVENT_IDX & feature_mask;
        let queues = vec![Some(rig.rx.queue()), Some(rig.tx.queue()), Some(control.queue())];
        let interrupt = rig.irq.clone();
        let Ok(device) = net.start(Granted { ram: Ram::clone(&rig.ram), features, queues, interrupt }) else {
            panic!()
        };
        rig.device = device;
        control
    }

    /// The driver says that it announces itself; the answer.
    fn acknowledges(&mut self) -> u8 {
        ram::write(&self.rig.ram, COMMAND, &[3, 0, 0xAA]);
        self.control.send(&[give(COMMAND, 2), take(COMMAND + 2, 1)]);
        assert_eq!(self.rig.device.serve(2), Served::Drained);
        assert!(self.control.used().is_some());
        ram::read(&self.rig.ram, COMMAND + 2, 1)[0]
    }
}

/// The status in the configuration.
fn status(idle: &ConfigSpace) -> u16 {
    let mut status = [0; 2];
    idle.read(6, &mut status);
    u16::from_le_bytes(status)
}

/// A device that is not there.
struct Nothing;

impl Running for Nothing {
    fn serve(&mut self, _: u16) -> Served {
        Served::Drained
    }
    fn stop(self: Box<Self>) -> Box<dyn Idle> {
        unreachable!("nobody runs it")
    }
}

#[test]
fn a_driver_that_agreed_is_asked_until_it_acknowledges() {
    let mut called = Called::new(!0);
    let config = Arc::clone(&called.rig.handle.0.config);
    let generation = config.generation();
    called.rig.handle.announce();
    assert_eq!((status(&config), called.rig.irq.config_changes()), (S_LINK_UP | S_ANNOUNCE, 1));
    assert_ne!(config.generation(), generation);
    // Again before it got round to it: asked again, once answered.
    called.rig.handle.announce();
    assert_eq!(called.rig.irq.config_changes(), 2);
    assert_eq!((called.acknowledges(), status(&config)), (0, S_LINK_UP));
    assert_eq!(called.rig.metrics().announcements.get(), 1);
    // An answer that nobody asked for is none.
    assert_eq!((called.acknowledges(), called.rig.metrics().announcements.get()), (0, 1));
    assert_eq!(called.rig.irq.config_changes(), 2, "the driver knows what it said");
}

#[test]
fn a_driver_that_did_not_agree_or_is_gone_is_not_asked() {
    for missing in [F_GUEST_ANNOUNCE, F_CTRL_VQ, F_STATUS] {
        let called = Called::new(!missing);
        called.rig.handle.announce();
        let config = Arc::clone(&called.rig.handle.0.config);
        assert_eq!((status(&config), called.rig.irq.config_changes()), (S_LINK_UP, 0));
    }
    let mut called = Called::new(!F_GUEST_ANNOUNCE);
    assert_eq!(called.acknowledges(), 1);

    let called = Called::new(!0);
    let config = Arc::clone(&called.rig.handle.0.config);
    called.rig.handle.announce();
    let Rig { device, handle, irq, .. } = called.rig;
    let idle = device.stop();
    assert_eq!(status(&config), S_LINK_UP, "a reset takes the question back");
    handle.announce();
    assert_eq!((status(&config), irq.config_changes()), (S_LINK_UP, 1));
    drop(idle);
}

#[test]
fn the_next_driver_is_asked_anew() {
    let mut called = Called::new(!0);
    let config = Arc::clone(&called.rig.handle.0.config);
    called.rig.handle.announce();
    let device = std::mem::replace(&mut called.rig.device, Box::new(Nothing));
    called.control = Called::start(&mut called.rig, device.stop(), !0);
    called.rig.handle.announce();
    assert_eq!(status(&config), S_LINK_UP | S_ANNOUNCE);
    assert_eq!((called.acknowledges(), status(&config)), (0, S_LINK_UP));
}
