# shellcheck shell=bash
# The parts of L1 (a Debian under QEMU whose KVM can run Linux), made once and cached.
# Needs base.sh, packages.sh, kernel.sh, initrd.sh.

VIRTIOFSD_VERSION=1.14.0

# l1_packages: everything that L1 and the making of it need, in one go: one after another takes minutes on a fresh machine.
l1_packages() { packages_need busybox-static cpio kmod lz4 xz-utils libcap-ng-dev libseccomp-dev iproute2; }

# virtiofsd_build: prints the path of virtiofsd. Built from its crate (checksummed by cargo) because QEMU no longer brings one.
virtiofsd_build() { locked virtiofsd _virtiofsd_build; }

_virtiofsd_build() {
    local root=$YUN_CACHE/virtiofsd-$VIRTIOFSD_VERSION log=$YUN_CACHE/virtiofsd.log
    if [ ! -x "$root/bin/virtiofsd" ]; then
        say "building virtiofsd $VIRTIOFSD_VERSION (a minute, once)"
        # From the cache directory, so that no .cargo/config.toml or toolchain file of the checkout applies.
        (cd "$YUN_CACHE" && cargo install virtiofsd --version "$VIRTIOFSD_VERSION" --locked --root "$root" \
            --target-dir "$YUN_CACHE/virtiofsd-target" >"$log" 2>&1) || { tail -n 20 "$log" >&2; die "virtiofsd did not build (log: $log)"; }
        rm -rf "$YUN_CACHE/virtiofsd-target"
    fi
    printf '%s\n' "$root/bin/virtiofsd"
}

# l1_initrd KERNEL: prints an initrd that mounts the machine's own root over virtiofs and enters it; with yun.probe on the
# command line it says it is alive and resets, which is all that finding out about a host's KVM needs.
l1_initrd() { locked l1-initrd _l1_initrd "$1"; }

_l1_initrd() {
    local kernel=$1 file tree init=$YUN_ROOT/scripts/lib/l1-initrd-init
    file=$YUN_CACHE/l1/initrd-$(fingerprint "$(cat "$kernel/version")" "$init" "$YUN_ROOT/scripts/lib/initrd.sh")
    if [ ! -f "$file" ]; then
        tree=$YUN_CACHE/l1/tree
        rm -rf "$tree"; mkdir -p "$tree"
        initrd_tree "$tree" "$kernel" virtio_pci virtiofs
        install -m 755 "$init" "$tree/init"
        initrd_pack "$tree" "$file"
        rm -rf "$tree"
    fi
    printf '%s\n' "$file"
}
