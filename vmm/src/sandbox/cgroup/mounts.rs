//! Where cgroup hierarchies are mounted, from `/proc/self/mountinfo` (proc(5)).

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// A mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Where.
    pub path: PathBuf,
    /// The controllers of a hierarchy of version 1, as its mount options name them; `None` for version 2.
    pub controllers: Option<Vec<String>>,
}

/// The hierarchies that a mountinfo shows, in its order. Lines that are not understood are no hierarchies.
#[must_use]
pub fn mounts(mountinfo: &str) -> Vec<Mount> {
    mountinfo.lines().filter_map(mount).collect()
}

fn mount(line: &str) -> Option<Mount> {
    // "36 31 0:33 / /sys/fs/cgroup/devices rw,relatime shared:1 - cgroup cgroup rw,devices": optional fields end at "-".
    let (mount, filesystem) = line.split_once(" - ")?;
    let path = unescape(mount.split(' ').nth(4)?);
    let mut filesystem = filesystem.split(' ');
    let controllers = match filesystem.next()? {
        "cgroup2" => None,
        "cgroup" => {
            let options = filesystem.nth(1)?.split(',');
            Some(options.filter(|option| !["rw", "ro"].contains(option)).map(str::to_owned).collect())
        }
        _ => return None,
    };
    Some(Mount { path, controllers })
}

/// Space, tab, newline and backslash are written as a backslash and three octal digits.
fn unescape(text: &str) -> PathBuf {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let code = after.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        let code = code.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code.filter(|_| *first == b'\\') {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn hierarchies_of_both_versions_are_found_among_other_mounts() {
        let mountinfo = "\
            27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard\n\
            32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
            40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd\n\
            41 31 0:38 / /sys/fs/cgroup/with\\040space rw shared:1 master:2 - cgroup2 cgroup2 rw,nsdelegate\n\
            nonsense\n";
        let v1 = |path: &str, controllers: &[&str]| Mount {
            path: path.into(),
            controllers: Some(controllers.iter().map(|name| (*name).to_owned()).collect()),
        };
        let expected = [
            v1("/sys/fs/cgroup/cpu,cpuacct", &["cpu", "cpuacct"]),
            v1("/sys/fs/cgroup/systemd", &["name=systemd"]),
            Mount { path: "/sys/fs/cgroup/with space".into(), controllers: None },
        ];
        assert_eq!(mounts(mountinfo), expected);
    }

    proptest! {
        #[test]
        fn no_text_is_too_strange_to_be_read(text in "[ -~\n\\\\]{0,200}") {
            let _ = mounts(&text);
        }

        #[test]
        fn what_the_kernel_escapes_is_unescaped(path in "/[a-z \t\n\\\\]{0,20}") {
            let escaped: String = path
                .chars()
                .map(|c| if " \t\n\\".contains(c) { format!("\\{:03o}", u32::from(c)) } else { c.to_string() })
                .collect();
            prop_assert_eq!(unescape(&escaped), PathBuf::from(path));
        }
    }
}
