//! `yun logs` and `yun events`: what goes on.

use std::time::Duration;

use super::Context;
use super::args::vm::{Events, Logs};
use super::client::{Stream, with_query};
use super::error::Failure;
use super::output::{Format, Record, note, print, print_bytes, printable};
use super::screen::Screen;
use crate::agent::model::Event;

/// How long a follower waits for an agent that restarts, in seconds, trying each second.
const AGENT_AWAY_S_MAX: u32 = 60;

/// Longest line of a stream of events, in bytes.
const LINE_LEN_MAX: usize = 1 << 20;

/// `yun logs`.
pub(crate) async fn logs(context: &Context, asked: &Logs) -> Result<(), Failure> {
    let path = with_query(
        &format!("{}/logs", context.path("vms", &asked.vm)?),
        &[
            ("source", Some(asked.source.clone())),
            ("tail", asked.tail.map(|lines| lines.to_string())),
            ("follow", asked.follow.then(|| "true".to_owned())),
        ],
    );
    let mut stream = context.client.stream(&path).await?;
    if !context.out.is_terminal() {
        while let Some(bytes) = stream.next().await? {
            print_bytes(&bytes)?;
        }
        return Ok(());
    }
    // What a guest says does not steer the terminal of who reads about it; its console may.
    let mut screen = Screen::default();
    while let Some(bytes) = stream.next().await? {
        print(&screen.show(&bytes))?;
    }
    print(&screen.end())
}

/// `yun events`.
pub(crate) async fn events(context: &Context, asked: &Events) -> Result<(), Failure> {
    let mut since = asked.since;
    let mut away = 0;
    loop {
        let path = with_query(
            "/v1/events",
            &[
                ("since", since.map(|seq| seq.to_string())),
                ("tenant", context.tenant.as_ref().map(ToString::to_string)),
                ("follow", asked.follow.then(|| "true".to_owned())),
            ],
        );
        let ended = match context.client.stream(&path).await {
            Ok(stream) => {
                away = 0;
                print_events(context, stream, &mut since).await
            }
            Err(error) => Err(error),
        };
        match ended {
            Ok(()) if !asked.follow => return Ok(()),
            // The agent went: it comes back, and the stream goes on after what was printed last.
            Ok(()) | Err(Failure::Broken { .. }) if asked.follow => {}
            Err(Failure::Unreachable { .. })
                if asked.follow && since.is_some() && away < AGENT_AWAY_S_MAX => {}
            Err(error) => return Err(error),
            Ok(()) => return Ok(()),
        }
        if away == 0 {
            note("the agent ended the stream; going on as soon as it is back");
            // What comes first after this is new, even if nothing was printed.
            since = since.or(Some(0));
        }
        away += 1;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

async fn print_events(context: &Context, mut stream: Stream, since: &mut Option<u64>) -> Result<(), Failure> {
    let mut pending = Vec::new();
    while let Some(bytes) = stream.next().await? {
        pending.extend_from_slice(&bytes);
        while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = pending.drain(..=end).collect();
            print_event(context, &line, since)?;
        }
        if pending.len() > LINE_LEN_MAX {
            let message = format!("an event is longer than {LINE_LEN_MAX} bytes");
            return Err(Failure::Failed { message, hint: None });
        }
    }
    print_event(context, &pending, since)
}

fn print_event(context: &Context, line: &[u8], since: &mut Option<u64>) -> Result<(), Failure> {
    let line = line.trim_ascii();
    if line.is_empty() {
        return Ok(());
    }
    let strange = |source| Failure::Strange { request: "GET /v1/events".to_owned(), source };
    let event: Event = serde_json::from_slice(line).map_err(strange)?;
    match context.out.format {
        Format::Json => print_bytes(&[line, b"\n"].concat())?,
        Format::Yaml => {
            print("---\n")?;
            context.out.value(&event)?;
        }
        Format::Name => print(&format!("{}\n", event.seq))?,
        Format::Table | Format::Wide => print(&event_line(&event, context.out.is_terminal()))?,
    }
    *since = Some(event.seq);
    Ok(())
}

/// Columns of a width that is known beforehand, since the rows are not.
fn event_line(event: &Event, terminal: bool) -> String {
    const WIDTHS: [usize; 5] = [8, 30, 18, 24, 10];
    let cells: Vec<String> = event
        .cells()
        .iter()
        .map(|cell| printable(cell).replace('\n', " "))
        .map(|c| if c.is_empty() { "-".to_owned() } else { c })
        .collect();
    if !terminal {
        return cells.join("\t") + "\n";
    }
    let mut line = String::new();
    for (place, cell) in cells.iter().enumerate() {
        let width = WIDTHS.get(place).copied().unwrap_or_default();
        line.push_str(&format!("{cell:width$}  "));
    }
    line.trim_end().to_owned() + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line_whatever_it_says() {
        let event = Event {
            seq: 7,
            at: "2026-11-24T00:00:00Z".to_owned(),
            kind: "vm.ended".to_owned(),
            tenant: Some("acme".parse().unwrap()),
            target: Some("web".to_owned()),
            requestor: "agent".to_owned(),
            detail: "a\u{1b}[2J\nb".to_owned(),
        };
        let tabs = event_line(&event, false);
        assert_eq!(tabs, "7\t2026-11-24T00:00:00Z\tvm.ended\tacme/web\tagent\ta\\u{1b}[2J b\n");
        assert!(event_line(&event, true).starts_with("7         2026-11-24T00:00:00Z "));
    }
}
