//! How requests end: what is counted, logged and told to the driver.

use std::io;

use super::lane::Lane;
use super::request::{Refusal, Status};

/// How a request ended, for the driver: bytes of data that it filled, or why not.
pub(super) type Outcome = Result<u32, Status>;

impl Lane {
    pub(super) fn was_read(&mut self, offset: u64, len: u32, result: io::Result<()>) -> Outcome {
        if let Err(error) = result {
            self.metrics().read_failures.inc();
            return Err(self.host_failed("read", offset, &error));
        }
        self.metrics().read_count.inc();
        self.metrics().read_bytes.add(len.into());
        Ok(len)
    }

    pub(super) fn was_written(&mut self, offset: u64, len: u32, mut result: io::Result<()>) -> Outcome {
        if result.is_ok() && self.shared.writes_through(self.session.features) {
            // A driver that can't flush, or chose not to, assumes that a completed write is stable (virtio 1.2 §5.2.6.2).
            result = self.backing().backend.flush();
        }
        if let Err(error) = result {
            self.metrics().write_failures.inc();
            return Err(self.host_failed("write", offset, &error));
        }
        self.metrics().write_count.inc();
        self.metrics().write_bytes.add(len.into());
        Ok(0)
    }

    pub(super) fn was_flushed(&mut self, result: io::Result<()>) -> Outcome {
        if let Err(error) = result {
            self.metrics().flush_failures.inc();
            return Err(self.host_failed("flush", 0, &error));
        }
        self.metrics().flush_count.inc();
        Ok(0)
    }

    pub(super) fn host_failed(&self, op: &str, offset: u64, error: &io::Error) -> Status {
        if let Some(muted) = self.shared.may_log() {
            let name = &self.shared.name;
            log::error!("{name}: {op} at byte {offset} failed: {error} ({muted} lines left out before)");
        }
        Status::IoErr
    }

    pub(super) fn refuse(&self, refusal: &Refusal) -> Status {
        self.metrics().refused.inc();
        if let Some(muted) = self.shared.may_log() {
            let name = &self.shared.name;
            log::warn!("{name}: request refused: {refusal} ({muted} lines left out before)");
        }
        refusal.status()
    }
}
