//! What a VM used, from counters that only grow, in records that neither leave a gap nor count twice.
//!
//! ```text
//!   Position ── what the last record reached: totals, clocks, the number of the next record
//!      │  advance(position, sample)
//!      ▼
//!   (Record, Position) ── stored in one transaction; a crash before it loses both, and the next sample covers the time
//! ```
//! An *incarnation* is one VMM process of a VM; its counters begin at zero. A record holds what each meter grew by between
//! two points in time, and begins where the one before it ended. Durations come from `CLOCK_BOOTTIME`; the wall clock only
//! names the points, and never makes a period negative.
//!
//! | room | one idea |
//! |---|---|
//! | [`meter`] | what is counted, in which unit |
//! | [`counters`] | totals by meter |
//! | [`period`] | from one sample to the next record |
//! | [`focus`] | records as rows with FOCUS column names, as JSON and CSV |
//! | [`aggregate`](mod@aggregate) | sums by tenant, VM and meter |

pub mod aggregate;
pub mod counters;
pub mod focus;
pub mod meter;
pub mod period;

pub use aggregate::{By, Sum, aggregate};
pub use counters::Counters;
pub use meter::Meter;
pub use period::{ClockState, Instant, Levels, MeterError, Owner, Position, Record, Sample, advance};
