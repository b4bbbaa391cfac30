# shellcheck shell=bash
# The QEMU that L1 runs under. Needs base.sh, packages.sh.
#
# Not bookworm's 7.2, nor the 10.0 of its backports: up to 10.1, QEMU's SVM emulation clears a bit of the CPU's pending interrupts at
# every exit of a nested guest without the lock that all other writers hold. An interrupt that arrives in that instant is lost, and with it
# sometimes a timer: a guest, or all of L1, stands still. 10.2 takes the lock.

L1_QEMU_SUITE=trixie-backports

# l1_qemu_fetch: prints the path of a script that starts it. Unpacked with its own libraries, so that it runs on any Debian.
l1_qemu_fetch() { locked l1-qemu _l1_qemu_fetch; }

_l1_qemu_fetch() {
    local dir=$YUN_CACHE/qemu-$L1_QEMU_SUITE
    if [ ! -x "$dir/start" ]; then
        say "fetching QEMU of $L1_QEMU_SUITE, with its libraries"
        rm -rf "$dir"
        packages_unpack_closed "$L1_QEMU_SUITE" qemu-system-x86 "$dir"
        local lib=usr/lib/x86_64-linux-gnu loader
        loader=$(find "$dir" -name 'ld-linux-x86-64.so.2' -print -quit)
        cat >"$dir/start.part" <<START
#!/bin/sh
here=\$(dirname "\$(readlink -f "\$0")")
export QEMU_MODULE_DIR="\$here/$lib/qemu"
exec "\$here/${loader#"$dir"/}" --library-path "\$here/$lib:\$here/lib/x86_64-linux-gnu" "\$here/usr/bin/qemu-system-x86_64" -L "\$here/usr/share/qemu" -L "\$here/usr/share/seabios" "\$@"
START
        chmod 755 "$dir/start.part"
        "$dir/start.part" --version >/dev/null || die "QEMU of $L1_QEMU_SUITE does not start here"
        mv "$dir/start.part" "$dir/start"
    fi
    printf '%s\n' "$dir/start"
}
