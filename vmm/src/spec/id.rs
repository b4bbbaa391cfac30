//! Names: of a resource within a microVM, and of the microVM itself.

use std::fmt;

/// Why a resource's id was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// There was none.
    #[error("The ID cannot be empty.")]
    Empty,
    /// A character is neither alphanumeric nor an underscore.
    #[error("API Resource IDs can only contain alphanumeric characters and underscores.")]
    Character,
}

/// Accepts the id of a drive or network interface: one or more alphanumeric characters or underscores.
///
/// # Errors
/// [`IdError`], whose text is Firecracker's.
pub fn check_resource_id(id: &str) -> Result<(), IdError> {
    if id.is_empty() {
        return Err(IdError::Empty);
    }
    if id.chars().all(|c| c == '_' || c.is_alphanumeric()) { Ok(()) } else { Err(IdError::Character) }
}

/// The id of a microVM: 1 to 64 characters, each a letter, a digit or a hyphen (ASCII).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstanceId(String);

/// Why an instance id was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InstanceIdError {
    /// Too short or too long.
    #[error("Invalid instance ID: its length is {got}, it must be 1 to {max}")]
    Length {
        /// Characters given.
        got: usize,
        /// Characters allowed.
        max: usize,
    },
    /// A character that may not occur.
    #[error(
        "Invalid instance ID: character {character:?} at position {position}, only letters, digits and '-' may occur"
    )]
    Character {
        /// The offender.
        character: char,
        /// Where it stands, from 0.
        position: usize,
    },
}

impl InstanceId {
    /// The id of a microVM that was given none.
    pub const DEFAULT: &'static str = "anonymous-instance";
    const LEN_MAX: usize = 64;

    /// Accepts `id` if it keeps the rules above.
    ///
    /// # Errors
    /// [`InstanceIdError`] says what is wrong with it.
    pub fn parse(id: &str) -> Result<Self, InstanceIdError> {
        let got = id.chars().count();
        if got == 0 || got > Self::LEN_MAX {
            return Err(InstanceIdError::Length { got, max: Self::LEN_MAX });
        }
        match id.chars().enumerate().find(|(_, c)| !c.is_ascii_alphanumeric() && *c != '-') {
            Some((position, character)) => Err(InstanceIdError::Character { character, position }),
            None => Ok(Self(id.to_owned())),
        }
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for InstanceId {
    fn default() -> Self {
        Self(Self::DEFAULT.to_owned())
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resource_ids_are_alphanumeric_or_underscore() {
        for (id, verdict) in [
            ("rootfs", Ok(())),
            ("_1", Ok(())),
            ("é", Ok(())), // as Firecracker: any alphabet
            ("", Err(IdError::Empty)),
            ("eth-0", Err(IdError::Character)),
            ("a b", Err(IdError::Character)),
            ("a.b", Err(IdError::Character)),
        ] {
            assert_eq!(check_resource_id(id), verdict, "{id:?}");
        }
    }

    #[test]
    fn instance_ids_are_1_to_64_letters_digits_or_hyphens() {
        assert!(InstanceId::parse("a").is_ok());
        assert!(InstanceId::parse(&"x".repeat(64)).is_ok());
        assert_eq!(InstanceId::parse(""), Err(InstanceIdError::Length { got: 0, max: 64 }));
        assert_eq!(InstanceId::parse(&"x".repeat(65)), Err(InstanceIdError::Length { got: 65, max: 64 }));
        assert_eq!(
            InstanceId::parse("a_b").unwrap_err().to_string(),
            "Invalid instance ID: character '_' at position 1, only letters, digits and '-' may occur"
        );
        assert!(InstanceId::parse(InstanceId::DEFAULT).is_ok());
    }
}
