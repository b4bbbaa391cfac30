//! What can be asked of the agent, after it is known who asks: each checks, stores, and then does or has it done.

mod hosts;
mod images;
mod tenants;
mod vms;
mod volumes;

pub(super) use volumes::drive_id;

use super::core::host_denial;
use super::images::ImageError;
use super::model::{Denial, DenialCode};
use super::volumes::VolumeError;

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
    host_denial(code, error)
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
    host_denial(code, error)
}
