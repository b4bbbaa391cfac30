//! The kernel's command line: what the caller asked for and what the machine has to add.

use crate::arch::x86_64::acpi::MmioDevice;
use crate::arch::x86_64::layout;

/// Why a command line can't be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CmdlineError {
    /// The kernel would cut it off.
    #[error(
        "the kernel command line is {len} bytes long with what the machine adds to it; the kernel takes at most {max}"
    )]
    TooLong {
        /// Bytes, without the NUL.
        len: usize,
        /// The kernel's limit, without the NUL.
        max: usize,
    },
    /// A byte that would end it early or confuse a terminal.
    #[error(
        "the kernel command line holds the byte {0:#04x} at offset {1}; only printable ASCII is accepted"
    )]
    NotPrintable(u8, usize),
    /// A root device that would be more than one argument, or none.
    #[error("the root device {0:?} is not a word of printable ASCII without quotes")]
    Root(String),
}

/// The root device, if the machine is to name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    /// `/dev/vda` or `PARTUUID=...`.
    pub device: String,
    /// Mounted read-only.
    pub read_only: bool,
}

/// Where the arguments of init begin: at the first word `--`, as Linux's `next_arg` (`lib/cmdline.c`) finds words.
fn init_args_at(args: &str) -> Option<usize> {
    let (mut start, mut quoted) = (0, false);
    for (at, byte) in args.bytes().chain([b' ']).enumerate() {
        match byte {
            b'"' => quoted = !quoted,
            b' ' | b'\t' if !quoted => {
                if matches!(&args[start..at], "--" | "\"--\"") {
                    return Some(start);
                }
                start = at + 1;
            }
            _ => {}
        }
    }
    None
}

/// Puts the line together: the caller's arguments (up to `--`, which begins init's), `pci=off` where there is no bus,
/// the root device, the virtio-mmio devices for kernels that don't find them through ACPI.
///
/// # Errors
/// [`CmdlineError`]; `max` is the kernel's limit without the NUL.
pub fn assemble(
    args: &str,
    root: Option<&Root>,
    pci: bool,
    mmio: &[MmioDevice],
    max: usize,
) -> Result<String, CmdlineError> {
    let bad = |b: u8| !(b.is_ascii_graphic() || b == b' ' || b == b'\t');
    if let Some((at, byte)) = args.bytes().enumerate().find(|(_, b)| bad(*b)) {
        return Err(CmdlineError::NotPrintable(byte, at));
    }
    if let Some(root) = root
        && (root.device.is_empty() || !root.device.bytes().all(|b| b.is_ascii_graphic() && b != b'"'))
    {
        return Err(CmdlineError::Root(root.device.clone()));
    }
    let (kernel_args, init_args) = args.split_at(init_args_at(args).unwrap_or(args.len()));
    let mut line = kernel_args.trim().to_owned();
    let mut add = |word: &str| {
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    };
    if !pci {
        add("pci=off");
    }
    if let Some(root) = root {
        add(&format!("root={}", root.device));
        add(if root.read_only { "ro" } else { "rw" });
    }
    for device in mmio {
        add(&format!("virtio_mmio.device={}K@{:#x}:{}", layout::MMIO_WINDOW >> 10, device.base, device.gsi));
    }
    if !init_args.is_empty() {
        add(init_args);
    }
    if line.len() > max {
        return Err(CmdlineError::TooLong { len: line.len(), max });
    }
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: usize = layout::CMDLINE_SIZE_MAX - 1;

    #[test]
    fn what_the_machine_adds_comes_before_the_arguments_of_init() {
        let root = Root { device: "/dev/vda".into(), read_only: true };
        let mmio = [MmioDevice { base: 0xd000_1000, gsi: 5 }];
        assert_eq!(
            assemble("console=ttyS0 -- single", Some(&root), false, &mmio, MAX).unwrap(),
            "console=ttyS0 pci=off root=/dev/vda ro virtio_mmio.device=4K@0xd0001000:5 -- single"
        );
        assert_eq!(assemble("", None, true, &[], MAX).unwrap(), "");
    }

    #[test]
    fn a_line_of_the_kernels_limit_is_taken_and_one_byte_more_is_refused() {
        assert_eq!(assemble(&"x".repeat(MAX), None, true, &[], MAX).unwrap().len(), MAX);
        assert_eq!(
            assemble(&"x".repeat(MAX + 1), None, true, &[], MAX),
            Err(CmdlineError::TooLong { len: MAX + 1, max: MAX })
        );
    }

    #[test]
    fn what_begins_the_arguments_of_init_is_what_the_kernel_takes_for_it() {
        let assembled = |args| assemble(args, None, false, &[], MAX).unwrap();
        assert_eq!(assembled("-- single"), "pci=off -- single");
        assert_eq!(assembled("quiet --"), "quiet pci=off --");
        assert_eq!(assembled("quiet\t--\tsingle"), "quiet pci=off --\tsingle");
        assert_eq!(assembled(r#"a="b -- c" d -- e"#), r#"a="b -- c" d pci=off -- e"#);
        assert_eq!(assembled(r#"a "--" b"#), r#"a pci=off "--" b"#);
    }

    #[test]
    fn a_root_device_that_is_no_single_word_is_refused() {
        for device in ["", "PARTUUID=1 init=/bin/sh", "PARTUUID=1\0", "PARTUUID=\"1", "PARTUUID=\u{e9}"] {
            let root = Root { device: device.to_owned(), read_only: true };
            assert_eq!(
                assemble("quiet", Some(&root), true, &[], MAX),
                Err(CmdlineError::Root(device.to_owned()))
            );
        }
    }

    #[test]
    fn bytes_that_would_cut_the_line_short_are_refused() {
        assert_eq!(assemble("a\0b", None, true, &[], MAX), Err(CmdlineError::NotPrintable(0, 1)));
    }
}
