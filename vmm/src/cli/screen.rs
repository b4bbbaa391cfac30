//! What a guest says, on a terminal that it is not to steer: text, lines, tabs and colours. Pure.

use super::output::printable;

/// Longest sequence that changes colours, in bytes.
const COLOUR_LEN_MAX: usize = 32;

/// Makes bytes that come in pieces fit to be shown.
#[derive(Debug, Default)]
pub(crate) struct Screen {
    /// The beginning of a character or a colour whose end has not come.
    pending: Vec<u8>,
}

/// What stands at the beginning of a text that begins with an escape character.
enum Sequence {
    /// A change of colours, of so many bytes.
    Colour(usize),
    /// The beginning of one, perhaps.
    Unknown,
    /// Anything else.
    Other,
}

/// Looks for `ESC [ numbers m` (ECMA-48, SGR).
fn sequence(text: &[u8]) -> Sequence {
    let is_number = |byte: &u8| byte.is_ascii_digit() || *byte == b';';
    match text.get(1) {
        None => return Sequence::Unknown,
        Some(b'[') => {}
        Some(_) => return Sequence::Other,
    }
    let numbers = text[2..].iter().take_while(|byte| is_number(byte)).count();
    match text.get(2 + numbers) {
        _ if numbers > COLOUR_LEN_MAX => Sequence::Other,
        Some(b'm') => Sequence::Colour(3 + numbers),
        None => Sequence::Unknown,
        Some(_) => Sequence::Other,
    }
}

impl Screen {
    /// What these bytes show, after those before.
    pub(crate) fn show(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let bytes = std::mem::take(&mut self.pending);
        let mut shown = String::with_capacity(bytes.len());
        let mut at = 0;
        while let Some(byte) = bytes.get(at) {
            if *byte == 0x1b {
                match sequence(&bytes[at..]) {
                    Sequence::Colour(len) => {
                        shown.push_str(&String::from_utf8_lossy(&bytes[at..at + len]));
                        at += len;
                        continue;
                    }
                    Sequence::Unknown => break,
                    Sequence::Other => {
                        shown.push_str("\\u{1b}");
                        at += 1;
                        continue;
                    }
                }
            }
            let end = bytes[at..].iter().position(|byte| *byte == 0x1b).map_or(bytes.len(), |len| at + len);
            let cut = cut_off(&bytes[at..end]);
            if end == bytes.len() && cut > 0 {
                shown.push_str(&plain(&bytes[at..end - cut]));
                at = end - cut;
                break;
            }
            shown.push_str(&plain(&bytes[at..end]));
            at = end;
        }
        self.pending = bytes[at..].to_vec();
        shown
    }

    /// What is left at the end; colours are the terminal's own again.
    pub(crate) fn end(self) -> String {
        plain(&self.pending) + "\x1b[m"
    }
}

/// How many bytes at the end are the beginning of a character.
fn cut_off(bytes: &[u8]) -> usize {
    bytes.utf8_chunks().last().map_or(0, |chunk| {
        let invalid = chunk.invalid();
        let begins = std::str::from_utf8(invalid).is_err_and(|error| error.error_len().is_none());
        if begins { invalid.len() } else { 0 }
    })
}

/// Text with its lines and tabs.
fn plain(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes).replace('\r', "");
    text.split('\t').map(printable).collect::<Vec<_>>().join("\t")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_prints_lines_and_colours_and_nothing_that_steers_the_terminal() {
        for (said, shown) in [
            ("login:\r\n\tweb\n", "login:\n\tweb\n"),
            ("\x1b[1;32m  OK  \x1b[0m ä", "\x1b[1;32m  OK  \x1b[0m ä"),
            ("a\x1b[2Jb", "a\\u{1b}[2Jb"),
            ("\x1b]0;title\x07", "\\u{1b}]0;title\\u{7}"),
            ("\x1bP+q\x1b\\", "\\u{1b}P+q\\u{1b}\\"),
            ("\u{9b}6n", "\\u{9b}6n"),
            ("x\rrm -rf /", "xrm -rf /"),
        ] {
            // Whole, and byte by byte.
            for len in [said.len(), 1, 2, 3] {
                let mut screen = Screen::default();
                let mut text: String = said.as_bytes().chunks(len).map(|piece| screen.show(piece)).collect();
                text += &screen.end();
                assert_eq!(text, shown.to_owned() + "\x1b[m", "{said:?} by {len}");
            }
        }
        let long = format!("\x1b[{}", "1;".repeat(5000));
        assert!(
            Screen::default().show(long.as_bytes()).starts_with("\\u{1b}[1;1;"),
            "it is not kept for ever"
        );
    }
}
