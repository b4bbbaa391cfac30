//! `yun top`: what VMs use, as rates between two samples.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use super::Context;
use super::args::vm::Top;
use super::error::Failure;
use super::output::{Column, human_bytes, human_mib, print, word};
use super::signals::Signals;
use super::terminal::{self, Raw, Take};
use crate::agent::model::{ActualState, VmStats};

const COLUMNS: &[Column] = &[
    Column::new("VM"),
    Column::new("STATE"),
    Column::number("CPU%"),
    Column::number("VCPUS"),
    Column::number("RSS"),
    Column::number("MEMORY"),
    Column::number("READ/S"),
    Column::number("WRITTEN/S"),
    Column::number("IO/S"),
    Column::number("RX/S"),
    Column::number("TX/S"),
    Column::number("UPTIME"),
];

/// Counters at a point in time.
struct Sample {
    at: Instant,
    stats: Vec<VmStats>,
}

async fn sample(context: &Context) -> Result<Sample, Failure> {
    let mut stats: Vec<VmStats> = context.client.get("/v1/stats").await?;
    if let Some(tenant) = &context.tenant {
        stats.retain(|vm| vm.tenant == *tenant);
    }
    Ok(Sample { at: Instant::now(), stats })
}

/// `yun top`.
pub(crate) async fn top(context: &Context, asked: &Top) -> Result<(), Failure> {
    let interval = Duration::from_secs(asked.interval.0.max(1));
    let first = sample(context).await?;
    if !context.out.is_table() {
        if asked.once {
            return context.out.list(&first.stats);
        }
        return Err(Failure::usage("top in this format has no end", "--once prints it once"));
    }
    if asked.once {
        tokio::time::sleep(interval).await;
        let second = sample(context).await?;
        return print(&context.out.rows(COLUMNS, &rows(&first, &second)));
    }
    if !context.out.is_terminal() || !std::io::stdin().is_terminal() {
        return Err(Failure::usage("top needs a terminal", "--once prints it once"));
    }
    watch(context, interval, first).await
}

/// Until a key or a signal ends it.
async fn watch(context: &Context, interval: Duration, mut before: Sample) -> Result<(), Failure> {
    let signals = Signals::catch()?;
    let _raw = Raw::take(Take::Screen)?;
    let mut keys = terminal::stdin()?;
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                let now = tokio::select! {
                    now = sample(context) => now?,
                    signal = signals.next() => return end(signal),
                };
                // From the top left, each line to its end, then the rest of the screen: nothing flickers.
                let mut screen = String::from("\x1b[H");
                let _ = writeln!(screen, "{} VMs, {} running; q ends\x1b[K\n\x1b[K", now.stats.len(), running(&now.stats));
                let lines = terminal_lines().saturating_sub(3);
                for line in context.out.rows(COLUMNS, &rows(&before, &now)).lines().take(lines) {
                    let _ = writeln!(screen, "{line}\x1b[K");
                }
                screen.push_str("\x1b[J");
                print(&screen)?;
                before = now;
            }
            key = keys.recv() => if key.is_none_or(|key| key.contains(&b'q')) {
                return Ok(());
            },
            signal = signals.next() => return end(signal),
        }
    }
}

/// `^C` is how one leaves it.
fn end(signal: nix::sys::signal::Signal) -> Result<(), Failure> {
    if signal == nix::sys::signal::Signal::SIGINT { Ok(()) } else { Err(Failure::Interrupted { signal }) }
}

fn terminal_lines() -> usize {
    terminal_size::terminal_size().map_or(24, |(_, height)| usize::from(height.0))
}

fn running(stats: &[VmStats]) -> usize {
    stats.iter().filter(|vm| vm.state == ActualState::Running).count()
}

/// What was used between two samples, those that use most first. A counter that went back belongs to a new incarnation, and
/// counts from zero; so does a VM that was not there before.
fn rows(before: &Sample, now: &Sample) -> Vec<Vec<String>> {
    let seconds = now.at.duration_since(before.at).as_secs_f64().max(0.001);
    let of = |vm: &VmStats| (vm.tenant.clone(), vm.name.clone());
    let old: HashMap<_, _> = before.stats.iter().map(|vm| (of(vm), vm)).collect();
    let mut rows: Vec<(u64, Vec<String>)> = now
        .stats
        .iter()
        .map(|vm| {
            let old = old.get(&of(vm)).copied().filter(|old| old.uptime_seconds <= vm.uptime_seconds);
            let gain = |counter: fn(&VmStats) -> u64| {
                let now = counter(vm);
                old.map_or(0, |old| now.checked_sub(counter(old)).unwrap_or(now))
            };
            #[allow(clippy::cast_precision_loss)] // of what is shown with two digits
            let rate = |counter: fn(&VmStats) -> u64| gain(counter) as f64 / seconds;
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            // rates are not negative, and are bounded
            let bytes = |counter: fn(&VmStats) -> u64| human_bytes(rate(counter) as u64);
            let cells = vec![
                format!("{}/{}", vm.tenant, vm.name),
                word(&vm.state),
                format!("{:.1}", rate(|vm| vm.vcpu_ns) / 1e7),
                vm.vcpus.to_string(),
                human_bytes(vm.rss_kib.saturating_mul(1024)),
                human_mib(vm.memory_mib),
                bytes(|vm| vm.disk_read_bytes),
                bytes(|vm| vm.disk_written_bytes),
                format!("{:.0}", rate(|vm| vm.disk_operations)),
                bytes(|vm| vm.net_rx_bytes),
                bytes(|vm| vm.net_tx_bytes),
                uptime(vm.uptime_seconds),
            ];
            (gain(|vm| vm.vcpu_ns), cells)
        })
        .collect();
    rows.sort_by(|one, other| other.0.cmp(&one.0).then_with(|| one.1.cmp(&other.1)));
    rows.into_iter().map(|(_, row)| row).collect()
}

fn uptime(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    if days > 0 {
        format!("{days}d{hours:02}h")
    } else {
        format!("{hours:02}:{minutes:02}:{:02}", seconds % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats(name: &str, vcpu_ns: u64, read: u64, uptime_seconds: u64) -> VmStats {
        VmStats {
            tenant: "acme".parse().unwrap(),
            name: name.parse().unwrap(),
            state: ActualState::Running,
            vcpus: 2,
            memory_mib: 128,
            vcpu_ns,
            rss_kib: 1024,
            disk_read_bytes: read,
            disk_written_bytes: 0,
            disk_operations: 0,
            net_rx_bytes: 0,
            net_tx_bytes: 0,
            uptime_seconds,
        }
    }

    #[test]
    fn rates_are_of_the_time_between_two_samples() {
        let at = Instant::now();
        let before = Sample { at, stats: vec![stats("a", 0, 0, 10), stats("b", 0, 0, 10)] };
        let after = at + Duration::from_secs(2);
        let now =
            Sample { at: after, stats: vec![stats("a", 1, 4096, 12), stats("b", 3_000_000_000, 0, 12)] };
        let rows = rows(&before, &now);
        assert_eq!((rows[0][0].as_str(), rows[0][2].as_str()), ("acme/b", "150.0"));
        assert_eq!((rows[1][0].as_str(), rows[1][6].as_str()), ("acme/a", "2.00 KiB"));
        assert!(rows.iter().all(|row| row.len() == COLUMNS.len()));
    }

    #[test]
    fn a_new_incarnation_and_a_new_vm_have_no_rate_yet() {
        let at = Instant::now();
        let before = Sample { at, stats: vec![stats("a", 9_000_000_000, 0, 1000)] };
        let now = Sample {
            at: at + Duration::from_secs(1),
            stats: vec![stats("a", 5, 0, 0), stats("new", 5_000_000_000, 0, 1)],
        };
        for row in rows(&before, &now) {
            assert_eq!(row[2], "0.0", "{row:?}");
        }
        assert_eq!((uptime(3_725), uptime(90_000)), ("01:02:05".to_owned(), "1d01h".to_owned()));
    }
}
