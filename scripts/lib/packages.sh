# shellcheck shell=bash
# Debian packages: install what is missing, or fetch and unpack without installing. Needs base.sh.
# apt checks every package against the signed lists; what is kept in the cache has its SHA-256 beside it.

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo -- "$@"; fi; }

# apt-get that never asks, waits for other apt runs, and tries thrice.
_apt_get() { as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 "$@"; }

_installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

_missing() { local p; for p; do _installed "$p" || printf '%s\n' "$p"; done; }

# packages_need PACKAGE...: installs those that are missing, and says which.
packages_need() {
    local missing; mapfile -t missing < <(_missing "$@")
    [ ${#missing[@]} = 0 ] || locked apt _packages_install "${missing[@]}"
}

_packages_install() {
    local missing log=$YUN_CACHE/apt.log; mapfile -t missing < <(_missing "$@")
    [ ${#missing[@]} != 0 ] || return 0        # another run installed them while this one waited
    say "installing Debian packages: ${missing[*]}"
    # Fresh machines have no lists, and old lists name versions the mirror no longer has: refresh once, then insist.
    _apt_get install --no-install-recommends "${missing[@]}" >"$log" 2>&1 && return
    { _apt_get update && _apt_get install --no-install-recommends "${missing[@]}"; } >"$log" 2>&1 ||
        { tail -n 20 "$log" >&2; die "could not install ${missing[*]} (log: $log)"; }
}

# A suite is either '' (the machine's own sources) or a name such as bookworm-backports, which gets lists of its own inside the
# cache: the machine's configuration is never touched. Prints the apt options that select it.
_suite_options() {
    local suite=$1 dir=$YUN_CACHE/apt/$1
    [ -n "$suite" ] || return 0
    printf '%s\n' -o "Dir::Etc::sourcelist=$dir/sources.list" -o Dir::Etc::sourceparts=/dev/null \
        -o "Dir::State::lists=$dir/lists" -o "Dir::Cache=$dir/cache" -o APT::Sandbox::User=root \
        -o "APT::Default-Release=$suite"
}

_suite_prepare() {
    local suite=$1 dir=$YUN_CACHE/apt/$1 mirror
    mkdir -p "$dir/lists/partial" "$dir/cache/archives/partial"
    # shellcheck disable=SC2016 # apt expands it
    mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' | grep -m1 -E '/debian/?$' || echo http://deb.debian.org/debian)
    printf "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror %s main\n" \
        "${suite%-backports}" "$suite" >"$dir/sources.list"
}

# _packages_update SUITE [anew]: lists that exist and are younger than a day are good enough.
_packages_update() {
    local suite=$1 options; mapfile -t options < <(_suite_options "$suite")
    local lists=/var/lib/apt/lists
    if [ -n "$suite" ]; then lists=$YUN_CACHE/apt/$suite/lists; [ -d "$lists" ] || _suite_prepare "$suite"; fi
    if [ "${2:-}" != anew ] && [ -n "$(find "$lists" -maxdepth 1 -name '*_Packages*' -mtime -1 -print -quit 2>/dev/null)" ]; then return; fi
    say "refreshing package lists${suite:+ of $suite}"
    _apt_get "${options[@]}" update >"$YUN_CACHE/apt.log" 2>&1 || { tail -n 20 "$YUN_CACHE/apt.log" >&2; die "apt-get update failed"; }
}

# package_depends_on SUITE PACKAGE PATTERN: the first dependency of PACKAGE that matches; how a meta package names today's version.
package_depends_on() {
    local options; mapfile -t options < <(_suite_options "$1")
    locked apt _packages_update "$1"
    apt-cache "${options[@]}" show --no-all-versions "$2" | sed -n 's/^Depends: //p' | tr ',' '\n' | sed 's/^ *//; s/ .*//' | grep -m1 -E -- "$3"
}

# package_unpack SUITE PACKAGE DIR: the package's files under DIR, nothing installed; DIR/.package names what it was.
package_unpack() { locked apt _package_unpack "$@"; }

_package_unpack() {
    local suite=$1 package=$2 dir=$3 options deb
    local debs=$YUN_CACHE/debs/${suite:-here}
    mapfile -t options < <(_suite_options "$suite")
    _packages_update "$suite"
    mkdir -p "$debs" "$dir"
    local fetch=(apt-get -q "${options[@]}" -o APT::Sandbox::User=root download "$package${suite:+/$suite}")
    (cd "$debs" && { "${fetch[@]}" || { _packages_update "$suite" anew && "${fetch[@]}"; }; }) >"$YUN_CACHE/apt.log" 2>&1 ||
        { tail -n 20 "$YUN_CACHE/apt.log" >&2; die "could not fetch $package"; }
    # shellcheck disable=SC2012 # names made by apt: no surprises in them
    deb=$(ls -t "$debs/$package"_*.deb | head -n 1)
    (cd "$debs" && sha256sum "${deb##*/}" >"${deb##*/}.sha256")
    dpkg-deb -x "$deb" "$dir"
    printf '%s %s\n' "$(dpkg-deb -W "$deb" | tr '\t' ' ')" "$(cut -d' ' -f1 "$deb.sha256")" >>"$dir/.packages"
}

# packages_unpack_closed SUITE PACKAGE DIR: the package with everything it depends on, down to libc, under DIR; nothing installed. What is
# in there runs on another release of Debian, started by its own loader.
packages_unpack_closed() { locked apt _packages_unpack_closed "$@"; }

_packages_unpack_closed() {
    local suite=$1 package=$2 dir=$3 options deb debs=$YUN_CACHE/apt/$1/cache/archives
    _packages_update "$suite"
    mapfile -t options < <(_suite_options "$suite")
    : >"$YUN_CACHE/apt/$suite/nothing-installed"
    options+=(-o "Dir::State::status=$YUN_CACHE/apt/$suite/nothing-installed" --no-install-recommends --download-only install "$package")
    rm -f "$debs"/*.deb
    _apt_get "${options[@]}" >"$YUN_CACHE/apt.log" 2>&1 || { _packages_update "$suite" anew && _apt_get "${options[@]}" >"$YUN_CACHE/apt.log" 2>&1; } ||
        { tail -n 20 "$YUN_CACHE/apt.log" >&2; die "could not fetch $package of $suite"; }
    mkdir -p "$dir"
    for deb in "$debs"/*.deb; do
        dpkg-deb -x "$deb" "$dir"
        printf '%s %s\n' "$(dpkg-deb -W "$deb" | tr '\t' ' ')" "$(sha256sum <"$deb" | cut -d' ' -f1)" >>"$dir/.packages"
    done
    rm -f "$debs"/*.deb
}
