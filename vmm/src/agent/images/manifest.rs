//! What an image is: as it is asked for, and as it is written down.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::digest::DIGEST_LEN;
use super::{Digest, ImageError};
use crate::arch::x86_64::layout::CMDLINE_SIZE_MAX;

/// Characters of an image's name at the most.
pub const NAME_LEN_MAX: usize = 128;
/// Characters of a user's name at the most, as useradd(8) has it.
pub const USER_LEN_MAX: usize = 32;
/// Bytes of a kernel at the most: none comes near, and it is read into a guest's memory.
pub const KERNEL_BYTES_MAX: u64 = 1 << 30;
/// Bytes of an initrd at the most, for the same reason.
pub const INITRD_BYTES_MAX: u64 = 4 << 30;
/// Bytes of a root file system at the most: of what a file of ext4 may have.
pub const ROOTFS_BYTES_MAX: u64 = 16 << 40;
/// Bytes of a manifest at the most: what is longer was not written here.
pub const MANIFEST_BYTES_MAX: u64 = 64 << 10;
/// Characters of a refused value that an error repeats.
const SHOWN_MAX: usize = 80;

/// Body of an import: which files, and how they are to be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImportSpec {
    /// What people call it: 1 to 128 letters, digits and `.`, `_`, `-`, `:`, the first a letter or digit; of no other image.
    pub name: String,
    /// Absolute path of the kernel on the host, an ELF image or a bzImage.
    #[schema(value_type = String)]
    pub kernel: PathBuf,
    /// Absolute path of the initrd on the host, if there is one.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub initrd: Option<PathBuf>,
    /// Absolute path of the root file system on the host, a raw image whose size is a multiple of 512, if there is one.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub rootfs: Option<PathBuf>,
    /// What the kernel's command line begins with; printable ASCII.
    #[serde(default)]
    pub kernel_args: String,
    /// Whether the guest learns its addresses from `ip=` on the kernel's command line.
    #[serde(default)]
    pub wants_ip: bool,
    /// Whom cloud-init gives the SSH keys, if that is not its own default.
    #[serde(default)]
    pub default_user: Option<String>,
}

/// A file of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BlobRef {
    /// Of its bytes.
    pub sha256: Digest,
    /// How many there are.
    pub size_bytes: u64,
}

/// What an image is made of. Its JSON, byte by byte as it was written first, is what the image's id is the digest of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Of this format, 1.
    pub version: u32,
    /// What people call it.
    pub name: String,
    /// The kernel.
    pub kernel: BlobRef,
    /// The initrd, if there is one.
    pub initrd: Option<BlobRef>,
    /// The root file system, if there is one.
    pub rootfs: Option<BlobRef>,
    /// What the kernel's command line begins with.
    pub kernel_args: String,
    /// Whether the guest learns its addresses from `ip=` on the kernel's command line.
    pub wants_ip: bool,
    /// Whom cloud-init gives the SSH keys, if that is not its own default.
    pub default_user: Option<String>,
}

impl Manifest {
    /// The format's version.
    pub const VERSION: u32 = 1;

    /// Its files.
    pub fn blobs(&self) -> impl Iterator<Item = &BlobRef> {
        [Some(&self.kernel), self.initrd.as_ref(), self.rootfs.as_ref()].into_iter().flatten()
    }

    /// Bytes of its files together, holes counted.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.blobs().fold(0, |sum, blob| sum.saturating_add(blob.size_bytes))
    }
}

/// A refusal of `value` in `field`.
fn refusal(field: &'static str, value: &str, accepted: &'static str) -> ImageError {
    ImageError::Field { field, value: value.chars().take(SHOWN_MAX).collect(), accepted }
}

/// Whether `name` may be an image's.
pub(super) fn is_name(name: &str) -> bool {
    let may_follow = |c: char| c.is_ascii_alphanumeric() || "._-:".contains(c);
    let like_an_id = name.len() == DIGEST_LEN && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    (1..=NAME_LEN_MAX).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(may_follow)
        && !like_an_id
}

impl ImportSpec {
    /// Accepts what can be told without a look at the files.
    ///
    /// # Errors
    /// [`ImageError::Field`].
    pub fn check(&self) -> Result<(), ImageError> {
        if !is_name(&self.name) {
            let accepted = "a name of 1 to 128 letters, digits and `.`, `_`, `-`, `:`, the first a letter or digit, \
                            that does not look like an id,";
            return Err(refusal("name", &self.name, accepted));
        }
        let printable = self.kernel_args.bytes().all(|byte| matches!(byte, b' '..=b'~'));
        if !printable || self.kernel_args.len() >= CMDLINE_SIZE_MAX {
            let accepted = "printable ASCII of at most 2047 bytes";
            return Err(refusal("kernel_args", &self.kernel_args, accepted));
        }
        let is_user = |user: &str| {
            user.len() <= USER_LEN_MAX
                && user.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
                && user.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-".contains(c))
        };
        match self.default_user.as_deref().filter(|user| !is_user(user)) {
            None => Ok(()),
            Some(user) => {
                let accepted =
                    "a name of 1 to 32 lower-case letters, digits and `_`, `-`, the first a letter or `_`,";
                Err(refusal("default_user", user, accepted))
            }
        }
    }
}

/// Accepts the size of the file that `field` names.
pub(super) fn check_size(field: &'static str, size_bytes: u64) -> Result<(), ImageError> {
    let (max, unit, accepted) = match field {
        "kernel" => (KERNEL_BYTES_MAX, 1, "a file of 1 byte to 1 GiB"),
        "initrd" => (INITRD_BYTES_MAX, 1, "a file of 1 byte to 4 GiB"),
        _ => (ROOTFS_BYTES_MAX, 512, "a file of 512 bytes to 16 TiB, in whole sectors of 512,"),
    };
    if (1..=max).contains(&size_bytes) && size_bytes.is_multiple_of(unit) {
        return Ok(());
    }
    Err(refusal(field, &format!("{size_bytes} bytes"), accepted))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> ImportSpec {
        serde_json::from_str(r#"{"name": "debian-12:1", "kernel": "/k"}"#).unwrap()
    }

    #[test]
    fn a_kernel_and_a_name_are_enough() {
        assert!(spec().check().is_ok());
        assert_eq!((spec().initrd, spec().rootfs, spec().wants_ip), (None, None, false));
        assert!(serde_json::from_str::<ImportSpec>(r#"{"name": "a", "kernel": "/k", "x": 1}"#).is_err());
    }

    #[test]
    fn refusals_name_the_field_the_value_and_what_is_accepted() {
        let hex = "a".repeat(64);
        let long = "a".repeat(129);
        for name in ["", ".", "-a", "a/b", "../a", "a b", "ä", &hex, &long] {
            let error = ImportSpec { name: (*name).to_owned(), ..spec() }.check().unwrap_err();
            assert!(matches!(error, ImageError::Field { field: "name", .. }), "{name}: {error}");
        }
        let args = |kernel_args: String| ImportSpec { kernel_args, ..spec() }.check();
        assert!(args("a".repeat(2047)).is_ok());
        for kernel_args in ["a".repeat(2048), "a\nb".to_owned(), "a\0".to_owned(), "é".to_owned()] {
            assert!(matches!(args(kernel_args), Err(ImageError::Field { field: "kernel_args", .. })));
        }
        let user = |user: &str| ImportSpec { default_user: Some(user.to_owned()), ..spec() }.check();
        assert!(user("debian").is_ok() && user("_a-1").is_ok());
        for refused in ["", "Root", "1a", "a b", "-a", &"a".repeat(33)] {
            let error = user(refused).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("default_user {refused:?} is refused: a name of 1 to 32")),
                "{error}"
            );
        }
    }

    #[test]
    fn sizes_have_bounds() {
        for (field, accepted, refused) in [
            ("kernel", [1, KERNEL_BYTES_MAX], [0, KERNEL_BYTES_MAX + 1]),
            ("initrd", [1, INITRD_BYTES_MAX], [0, INITRD_BYTES_MAX + 1]),
            ("rootfs", [512, ROOTFS_BYTES_MAX], [513, ROOTFS_BYTES_MAX + 512]),
        ] {
            assert!(accepted.iter().all(|size| check_size(field, *size).is_ok()), "{field}");
            assert!(refused.iter().all(|size| check_size(field, *size).is_err()), "{field}");
        }
    }
}
