//! What a command prints: tables for people, the same columns with tabs for pipes, JSON and YAML of the API's schema, names.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};

use comfy_table::presets::NOTHING;
use comfy_table::{Cell, CellAlignment, Color, ContentArrangement, Table};
use serde::Serialize;

use super::error::Failure;

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Columns: a table on a terminal, else separated by tabs.
    Table,
    /// The same with more columns.
    Wide,
    /// JSON of the API's schema.
    Json,
    /// YAML of the API's schema.
    Yaml,
    /// Names alone, one a line.
    Name,
}

/// A column of a table.
pub(crate) struct Column {
    title: Cow<'static, str>,
    wide: bool,
    right: bool,
}

impl Column {
    /// One that is always there.
    pub(crate) const fn new(title: &'static str) -> Self {
        Self { title: Cow::Borrowed(title), wide: false, right: false }
    }

    /// One whose title is only known now.
    pub(crate) fn named(title: &str) -> Self {
        Self { title: Cow::Owned(title.to_owned()), wide: false, right: false }
    }

    /// One of numbers.
    pub(crate) const fn number(title: &'static str) -> Self {
        Self { title: Cow::Borrowed(title), wide: false, right: true }
    }

    /// Its title.
    pub(crate) fn title(&self) -> &str {
        &self.title
    }

    /// Only in the format `wide`.
    pub(crate) const fn wide(mut self) -> Self {
        self.wide = true;
        self
    }
}

/// Something that is shown as a row.
pub(crate) trait Record: Serialize {
    /// Its columns.
    const COLUMNS: &'static [Column];

    /// What stands in them, as many.
    fn cells(&self) -> Vec<String>;

    /// What it is called on a command line.
    fn key(&self) -> String;

    /// All there is to say about it, for `show`.
    fn details(&self) -> Vec<(&'static str, String)> {
        Self::COLUMNS.iter().map(Column::title).zip(self.cells()).collect()
    }
}

/// Where results go, and how they look there.
pub(crate) struct Out {
    /// What was asked for.
    pub(crate) format: Format,
    terminal: bool,
    colour: bool,
    headers: bool,
}

impl Out {
    /// On stdout.
    pub(crate) fn new(format: Format, headers: bool) -> Self {
        let terminal = io::stdout().is_terminal();
        Self { format, terminal, colour: terminal && colours(), headers }
    }

    /// Whether stdout is a terminal.
    pub(crate) fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// Whether it is for people: a table.
    pub(crate) fn is_table(&self) -> bool {
        matches!(self.format, Format::Table | Format::Wide)
    }

    /// Prints records.
    ///
    /// # Errors
    /// [`Failure::Output`].
    pub(crate) fn list<T: Record>(&self, records: &[T]) -> Result<(), Failure> {
        let text = match self.format {
            Format::Json | Format::Yaml => return self.value(&records),
            Format::Name => lines(records.iter().map(Record::key)),
            Format::Table | Format::Wide => {
                let rows: Vec<Vec<String>> = records.iter().map(Record::cells).collect();
                self.rows(T::COLUMNS, &rows)
            }
        };
        print(&text)
    }

    /// Prints all there is to say about one.
    ///
    /// # Errors
    /// [`Failure::Output`].
    pub(crate) fn one<T: Record>(&self, record: &T) -> Result<(), Failure> {
        match self.format {
            Format::Json | Format::Yaml => self.value(record),
            Format::Name => print(&lines([record.key()])),
            Format::Table | Format::Wide => self.details(&record.details()),
        }
    }

    /// Prints labelled values.
    ///
    /// # Errors
    /// [`Failure::Output`].
    pub(crate) fn details(&self, details: &[(&'static str, String)]) -> Result<(), Failure> {
        let width = if self.terminal { details.iter().map(|(label, _)| label.len()).max() } else { None };
        let mut text = String::new();
        for (label, value) in details {
            let label = label.to_lowercase();
            let value = printable(value);
            // Writing to a string does not fail.
            let _ = match width {
                Some(width) => {
                    let indented = value.replace('\n', &format!("\n{:width$}  ", ""));
                    writeln!(text, "{label:width$}  {indented}")
                }
                None => writeln!(text, "{label}\t{}", value.replace('\n', "; ")),
            };
        }
        print(&text)
    }

    /// Prints it as JSON, or as YAML if that was asked for.
    ///
    /// # Errors
    /// [`Failure::Output`].
    pub(crate) fn value(&self, value: &impl Serialize) -> Result<(), Failure> {
        let text = if self.format == Format::Yaml {
            serde_norway::to_string(value).map_err(io::Error::other)?
        } else {
            serde_json::to_string_pretty(value).map_err(io::Error::other)? + "\n"
        };
        print(&text)
    }

    /// The rows of a table, as this output shows them.
    pub(crate) fn rows(&self, columns: &[Column], rows: &[Vec<String>]) -> String {
        let shown =
            |index: &usize| columns.get(*index).is_some_and(|c| !c.wide || self.format == Format::Wide);
        let indices: Vec<usize> = (0..columns.len()).filter(shown).collect();
        let pick = |row: &[String]| -> Vec<String> {
            indices.iter().map(|index| row.get(*index).map_or(String::new(), |cell| one_line(cell))).collect()
        };
        let titles: Vec<String> =
            indices.iter().filter_map(|index| columns.get(*index)).map(|c| c.title.to_string()).collect();
        if !self.terminal {
            let head = self.headers.then_some(titles).into_iter();
            return lines(head.chain(rows.iter().map(|row| pick(row))).map(|row| row.join("\t")));
        }
        let mut table = Table::new();
        table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        if self.colour {
            table.enforce_styling()
        } else {
            table.force_no_tty()
        };
        if self.headers {
            table.set_header(titles.clone());
        }
        for row in rows {
            table.add_row(pick(row).into_iter().zip(&titles).map(|(text, title)| {
                let tint = tint(title, &text);
                let cell = Cell::new(text);
                match tint {
                    Some(colour) => cell.fg(colour),
                    None => cell,
                }
            }));
        }
        for (position, index) in indices.iter().enumerate() {
            let right = columns.get(*index).is_some_and(|column| column.right);
            if let Some(column) = table.column_mut(position) {
                column.set_padding((0, 2));
                if right {
                    column.set_cell_alignment(CellAlignment::Right);
                }
            }
        }
        if !self.headers && rows.is_empty() {
            return String::new();
        }
        lines(table.trim_fmt().lines().map(str::to_owned))
    }
}

/// Whether someone may be shown colours: `$NO_COLOR` is not set to anything, and the terminal is not dumb.
pub(crate) fn colours() -> bool {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    set("NO_COLOR").is_none() && set("TERM").is_some_and(|term| term != "dumb")
}

/// States by their mood.
fn tint(title: &str, text: &str) -> Option<Color> {
    if !matches!(title, "STATE" | "SEVERITY" | "RESULT") {
        return None;
    }
    match text {
        "running" | "succeeded" | "ready" | "ok" | "active" | "created" => Some(Color::Green),
        "failed" | "error" | "unknown" => Some(Color::Red),
        "starting" | "stopping" | "deleting" | "paused" | "warning" | "draining" | "changed" => {
            Some(Color::Yellow)
        }
        _ => None,
    }
}

/// Text without characters that steer a terminal: what guests and files say passes through here.
pub(crate) fn printable(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut safe, character| {
        if character.is_control() && character != '\n' {
            safe.extend(character.escape_default());
        } else {
            safe.push(character);
        }
        safe
    })
}

/// A cell's text: one line, and never empty.
fn one_line(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { printable(text).replace('\n', " ") }
}

/// Prints on stdout.
///
/// # Errors
/// [`Failure::Output`]; a closed pipe is none to speak of, see [`Failure::is_quiet`].
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    print_bytes(text.as_bytes())
}

/// Prints bytes on stdout, as they are.
///
/// # Errors
/// [`Failure::Output`].
pub(crate) fn print_bytes(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes)?;
    Ok(stdout.flush()?)
}

/// Tells the user something that is no result.
pub(crate) fn note(text: &str) {
    let _ = writeln!(io::stderr(), "yun: {}", printable(text));
}

fn lines(rows: impl IntoIterator<Item = String>) -> String {
    rows.into_iter().fold(String::new(), |text, row| text + &row + "\n")
}

/// A size for people.
pub(crate) fn human_bytes(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

/// A size for people.
pub(crate) fn human_mib(mib: u64) -> String {
    human_bytes(mib.saturating_mul(1 << 20))
}

/// The API's word for one of its enums.
pub(crate) fn word(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        Ok(other) => other.to_string(),
        Err(_) => String::new(),
    }
}

#[cfg(test)]
#[path = "output_tests.rs"]
mod tests;
