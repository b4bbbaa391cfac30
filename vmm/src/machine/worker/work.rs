//! What a thread serves: a device, or a part of it.

use std::os::fd::RawFd;

use devices::virtio::{Idle, Part, Running, Served};

use super::due::Job;

/// What a thread serves.
pub(super) enum Work {
    Device(Box<dyn Running>),
    Part(Box<dyn Part>),
}

impl Work {
    pub(super) fn do_job(&mut self, job: Job) -> Served {
        match (self, job) {
            (Self::Device(device), Job::Queue(queue)) => device.serve(queue),
            (Self::Device(device), Job::Source(source)) => device.ready(source),
            (Self::Part(part), Job::Queue(queue)) => part.serve(queue),
            (Self::Part(part), Job::Source(_)) => part.ready(),
        }
    }

    pub(super) fn set_polled(&mut self, on: bool) {
        match self {
            Self::Device(device) => device.set_polled(on),
            Self::Part(part) => part.set_polled(on),
        }
    }

    pub(super) fn peek(&self, queue: u16) -> bool {
        match self {
            Self::Device(device) => device.peek(queue),
            Self::Part(part) => part.peek(queue),
        }
    }

    /// What it began to wait for.
    pub(super) fn new_source(&mut self) -> Option<(usize, RawFd)> {
        match self {
            Self::Device(device) => device.new_source(),
            Self::Part(part) => part.new_source().map(|fd| (0, fd)),
        }
    }

    pub(super) fn go_on(&mut self) {
        if let Self::Device(device) = self {
            device.go_on();
        }
    }

    pub(super) fn kicked_elsewhere(&self) -> u64 {
        match self {
            Self::Device(device) => device.kicked_elsewhere(),
            Self::Part(_) => 0,
        }
    }

    pub(super) fn settle(&mut self) {
        match self {
            Self::Device(device) => device.settle(),
            Self::Part(part) => part.settle(),
        }
    }

    /// What it waits for from the start; asked once.
    pub(super) fn sources(&mut self) -> Vec<RawFd> {
        match self {
            Self::Device(device) => device.sources(),
            Self::Part(part) => part.source().into_iter().collect(),
        }
    }

    /// Stops it. A part has nothing to give back.
    pub(super) fn stop(self) -> Option<Box<dyn Idle>> {
        match self {
            Self::Device(device) => Some(device.stop()),
            Self::Part(part) => {
                part.end();
                None
            }
        }
    }
}
