//! The character that detaches from a console. Pure.
//!
//! ```text
//!            other: send it                 the escape: send one
//!          ┌──────────┐                  ┌──────────────────────┐
//!          ▼          │    the escape    ▼                      │
//!        plain ───────┴───────────────▶ held ───────────────────┘
//!                                        └── other, or a moment passes: detach
//! ```

use std::fmt;
use std::str::FromStr;

/// Which character detaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EscapeKey(Option<u8>);

/// Why a text names no character.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("accepted are ^ and a letter or one of [\\]^_@, as in ^]; a single ASCII character; none")]
pub struct EscapeError;

impl Default for EscapeKey {
    /// `^]`, as telnet and virsh have it.
    fn default() -> Self {
        Self(Some(0x1d))
    }
}

impl FromStr for EscapeKey {
    type Err = EscapeError;

    fn from_str(text: &str) -> Result<Self, EscapeError> {
        match text.as_bytes() {
            b"none" => Ok(Self(None)),
            [single] if single.is_ascii() => Ok(Self(Some(*single))),
            [b'^', letter] if matches!(letter.to_ascii_uppercase(), b'@'..=b'_') => {
                Ok(Self(Some(letter.to_ascii_uppercase() & 0x1f)))
            }
            _ => Err(EscapeError),
        }
    }
}

impl fmt::Display for EscapeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.write_str("none"),
            Some(control @ 0..0x20) => write!(f, "^{}", char::from(control | 0x40)),
            Some(byte) => write!(f, "{}", char::from(byte)),
        }
    }
}

impl EscapeKey {
    /// None: all bytes go through.
    #[must_use]
    pub fn none() -> Self {
        Self(None)
    }

    /// Whether there is one.
    #[must_use]
    pub fn is_some(self) -> bool {
        self.0.is_some()
    }
}

/// What was typed so far, as far as it matters.
#[derive(Clone, Copy, Debug)]
pub struct Escape {
    key: Option<u8>,
    held: bool,
}

/// What becomes of typed bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Typed {
    /// These are the guest's.
    pub send: Vec<u8>,
    /// The user wants to go.
    pub detach: bool,
}

impl Escape {
    /// Nothing was typed.
    #[must_use]
    pub fn new(key: EscapeKey) -> Self {
        Self { key: key.0, held: false }
    }

    /// Whether an escape waits for what comes after it: nothing for a moment means to detach.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.held
    }

    /// Takes what was typed. After `detach` the rest is dropped.
    pub fn feed(&mut self, typed: &[u8]) -> Typed {
        let mut send = Vec::with_capacity(typed.len());
        for byte in typed {
            let is_escape = Some(*byte) == self.key;
            match (self.held, is_escape) {
                (false, true) => self.held = true,
                (true, false) => return Typed { send, detach: true },
                (_, _) => {
                    self.held = false;
                    send.push(*byte);
                }
            }
        }
        Typed { send, detach: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(key: &str, pieces: &[&[u8]]) -> (Vec<u8>, bool, bool) {
        let mut escape = Escape::new(key.parse().unwrap());
        let mut sent = Vec::new();
        for piece in pieces {
            let typed = escape.feed(piece);
            sent.extend(typed.send);
            if typed.detach {
                return (sent, true, false);
            }
        }
        (sent, false, escape.is_held())
    }

    #[test]
    fn an_escape_twice_is_one_and_once_detaches() {
        assert_eq!(feed("^]", &[b"ls\n"]), (b"ls\n".to_vec(), false, false));
        assert_eq!(feed("^]", &[b"a\x1d\x1db"]), (b"a\x1db".to_vec(), false, false));
        assert_eq!(feed("^]", &[b"a\x1d", b"\x1d", b"b"]), (b"a\x1db".to_vec(), false, false));
        assert_eq!(feed("^]", &[b"a\x1d"]), (b"a".to_vec(), false, true));
        assert_eq!(feed("^]", &[b"a\x1d", b"q", b"rest"]), (b"a".to_vec(), true, false));
        assert_eq!(feed("none", &[b"a\x1dq"]), (b"a\x1dq".to_vec(), false, false));
        assert_eq!(feed("^A", &[b"\x1d\x01x"]), (b"\x1d".to_vec(), true, false));
    }

    #[test]
    fn keys_are_shown_as_they_are_written() {
        for text in ["^]", "^A", "^@", "^_", "~", "none"] {
            assert_eq!(text.parse::<EscapeKey>().unwrap().to_string(), text);
        }
        assert_eq!("^a".parse::<EscapeKey>(), "^A".parse());
        assert_eq!(EscapeKey::default().to_string(), "^]");
        for text in ["", "^", "^]x", "^1", "ab", "\u{e4}"] {
            // A caret alone is a character.
            assert_eq!(text.parse::<EscapeKey>().is_ok(), text == "^", "{text}");
        }
    }
}
