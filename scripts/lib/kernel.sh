# shellcheck shell=bash
# Debian's cloud kernel, unpacked into the cache: for L1 itself and for the guests. Needs base.sh, packages.sh.

# kernel_fetch [SUITE]: prints a directory with `bzImage`, `version` and `lib/modules/VERSION` (modprobe -d works on it).
# The meta package linux-image-cloud-amd64 says which kernel is today's; the answer is kept until the package lists change.
kernel_fetch() {
    local suite=${1:-}
    packages_need kmod
    locked "kernel-$suite" _kernel_fetch "$suite"
}

_kernel_fetch() {
    local suite=$1 known=$YUN_CACHE/kernel${1:+-$1} package lists=/var/lib/apt/lists
    if [ -f "$known" ] && [ -f "$(cat "$known")/version" ] && { [ -n "$suite" ] || [ "$known" -nt "$lists" ]; }; then
        cat "$known"; return
    fi
    package=$(package_depends_on "$suite" linux-image-cloud-amd64 '^linux-image-[0-9].*-cloud-amd64$') ||
        die "no kernel behind linux-image-cloud-amd64${suite:+ in $suite}"
    local dir=$YUN_CACHE/kernels/$package
    if [ ! -f "$dir/version" ]; then
        say "fetching $package"
        rm -rf "$dir" "$dir.part"
        package_unpack "$suite" "$package" "$dir.part"
        local version; version=$(basename "$dir.part"/lib/modules/*)
        mv "$dir.part/boot/vmlinuz-$version" "$dir.part/bzImage"
        depmod -b "$dir.part" "$version"
        printf '%s\n' "$version" >"$dir.part/version"
        mv "$dir.part" "$dir"
    fi
    printf '%s\n' "$dir" >"$known"
    printf '%s\n' "$dir"
}

# kernel_modules DIR NAME...: the .ko files to insmod for these modules, dependencies first, each once. Built-in ones print nothing.
kernel_modules() {
    local dir=$1 version name; version=$(cat "$dir/version"); shift
    for name; do
        modprobe -d "$dir" -S "$version" --show-depends "$name" || die "kernel $version has no module $name"
    done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }'
}
