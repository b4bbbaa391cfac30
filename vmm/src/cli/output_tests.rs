//! How results look.

use super::*;

#[derive(Serialize)]
struct Cat {
    name: &'static str,
    state: &'static str,
    lives: u64,
}

impl Record for Cat {
    const COLUMNS: &'static [Column] =
        &[Column::new("NAME"), Column::new("STATE"), Column::number("LIVES").wide()];

    fn cells(&self) -> Vec<String> {
        vec![self.name.to_owned(), self.state.to_owned(), self.lives.to_string()]
    }

    fn key(&self) -> String {
        self.name.to_owned()
    }
}

fn cats() -> Vec<Vec<String>> {
    [Cat { name: "tom", state: "running", lives: 9 }, Cat { name: "murr", state: "", lives: 12 }]
        .iter()
        .map(Record::cells)
        .collect()
}

fn out(format: Format, terminal: bool, colour: bool) -> Out {
    Out { format, terminal, colour, headers: true }
}

#[test]
fn on_a_terminal_columns_are_aligned_and_numbers_end_together() {
    let plain = out(Format::Wide, true, false).rows(Cat::COLUMNS, &cats());
    assert_eq!(plain, "NAME  STATE    LIVES\ntom   running      9\nmurr  -           12\n");
    let narrow = out(Format::Table, true, false).rows(Cat::COLUMNS, &cats());
    assert!(!narrow.contains("LIVES"), "{narrow}");
}

#[test]
fn in_a_pipe_the_same_columns_are_separated_by_tabs() {
    let tabs = out(Format::Wide, false, false).rows(Cat::COLUMNS, &cats());
    assert_eq!(tabs, "NAME\tSTATE\tLIVES\ntom\trunning\t9\nmurr\t-\t12\n");
    let bare = Out { headers: false, ..out(Format::Table, false, false) }.rows(Cat::COLUMNS, &cats());
    assert_eq!(bare, "tom\trunning\nmurr\t-\n");
}

#[test]
fn states_have_colours_only_where_they_are_wanted() {
    let coloured = out(Format::Table, true, true).rows(Cat::COLUMNS, &cats());
    assert!(coloured.contains("\u{1b}["), "{coloured:?}");
    for plain in [out(Format::Table, true, false), out(Format::Table, false, false)] {
        assert!(!plain.rows(Cat::COLUMNS, &cats()).contains('\u{1b}'));
    }
}

#[test]
fn what_a_guest_says_can_not_steer_the_terminal() {
    let evil = vec![vec!["\u{1b}]0;owned\u{7}a\tb\nc".to_owned(), "running".to_owned()]];
    for shown in [out(Format::Table, true, false), out(Format::Table, false, false)] {
        let text = shown.rows(Cat::COLUMNS, &evil);
        assert!(!text.contains('\u{1b}') && !text.contains('\u{7}'), "{text:?}");
        assert!(text.contains("\\u{1b}]0;owned"), "{text:?}");
        assert_eq!(text.lines().count(), 2, "{text:?}");
    }
}

#[test]
fn sizes_are_for_people() {
    assert_eq!(human_mib(1536), "1.50 GiB");
    assert_eq!(human_bytes(10), "10 B");
    assert_eq!(human_mib(u64::MAX), human_bytes(u64::MAX));
}
