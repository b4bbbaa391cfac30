//! Names that users give: of tenants, VMs, volumes, subnets, interfaces.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Longest name, in bytes: that of a DNS label, since a VM's name is its host name.
pub const NAME_LEN_MAX: usize = 63;

/// A name: 1 to 63 lower case letters, digits and hyphens, with a letter or digit at both ends.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String, pattern = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$", example = "web-1")]
pub struct Name(String);

/// Why a text is no name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no name: accepted are 1 to 63 lower case letters, digits and hyphens, with a letter or digit at both ends"
)]
pub struct NameError(String);

impl Name {
    /// Takes a name.
    ///
    /// # Errors
    /// [`NameError`] says what is accepted.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let bytes = text.as_bytes();
        let plain = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let ends = bytes.first().is_some_and(plain) && bytes.last().is_some_and(plain);
        let good =
            ends && bytes.len() <= NAME_LEN_MAX && bytes.iter().all(|byte| plain(byte) || *byte == b'-');
        // What is shown of it is bounded.
        if good { Ok(Self(text.to_owned())) } else { Err(NameError(text.chars().take(80).collect())) }
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::parse(text)
    }
}

impl TryFrom<String> for Name {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        Self::parse(&text)
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dns_labels() {
        for good in ["a", "0", "web-1", &"x".repeat(63)] {
            assert_eq!(Name::parse(good).unwrap().as_str(), good);
        }
        for bad in ["", "-a", "a-", "A", "a.b", "a/b", "..", "ä", "a b", "a\n", &"x".repeat(64)] {
            let refused = Name::parse(bad).unwrap_err().to_string();
            assert!(refused.contains("accepted are 1 to 63"), "{refused}");
            assert!(serde_json::from_value::<Name>(bad.into()).is_err());
        }
    }
}
