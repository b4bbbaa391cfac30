//! What can be asked of the agent, after it is known who asks: each checks, stores, and then does or has it done.

mod hosts;
mod images;
mod tenants;
mod vms;
mod volumes;

use super::images::ImageError;
use super::model::{Denial, DenialCode};
use super::volumes::VolumeError;
use crate::sandbox::jail::in_words;

fn image_denial(error: &ImageError) -> Denial {
    let code = match error {
        ImageError::Cancelled(_) | ImageError::InUse { .. } => DenialCode::InUse,
        ImageError::Field { .. } | ImageError::Source { .. } | ImageError::Ambiguous { .. } => {
            DenialCode::Invalid
        }
        ImageError::NotFound { .. } => DenialCode::NotFound,
        ImageError::NameTaken { .. } => DenialCode::Exists,
        ImageError::Damaged { .. }
        | ImageError::Missing { .. }
        | ImageError::NotUnderstood { .. }
        | ImageError::Store(_) => DenialCode::Host,
    };
    with_space(code, in_words(error))
}

fn volume_denial(error: &VolumeError) -> Denial {
    let code = match error {
        VolumeError::Cancelled(_) | VolumeError::InUse { .. } => DenialCode::InUse,
        VolumeError::Name { .. }
        | VolumeError::Size { .. }
        | VolumeError::SmallerThanSource { .. }
        | VolumeError::WouldShrink { .. } => DenialCode::Invalid,
        VolumeError::Exists(_) => DenialCode::Exists,
        VolumeError::NotFound(_) => DenialCode::NotFound,
        VolumeError::Full { .. } => DenialCode::NoSpace,
        VolumeError::File { .. } | VolumeError::Store(_) => DenialCode::Host,
    };
    with_space(code, in_words(error))
}

fn with_space(code: DenialCode, text: String) -> Denial {
    if code == DenialCode::Host && text.contains("no space") {
        return Denial::new(DenialCode::NoSpace, text);
    }
    Denial::new(code, text)
}
