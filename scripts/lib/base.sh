# shellcheck shell=bash
# What every script here starts with: where the checkout and its cache are, how to speak, how to take a lock.
# Sourced, never run. Defines YUN_ROOT and YUN_CACHE.

YUN_ROOT=$(cd -P -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd)
YUN_CACHE=${YUN_CACHE:-$YUN_ROOT/.cache}
mkdir -p -- "$YUN_CACHE"
YUN_CACHE=$(cd -P -- "$YUN_CACHE" && pwd)

# To stderr, so that a script's stdout stays what the caller asked for.
say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() { say "$*"; exit 1; }
usage_error() { say "$* (see --help)"; exit 2; }

# help: the script's own opening comment is its help text, so the two cannot drift apart.
help() { sed -n '2,/^[^#]/{s/^# \{0,1\}//p;}' "$0"; }

# locked NAME COMMAND...: one holder of NAME at a time on this cache. The lock goes with its process, however that ends.
# Children do not inherit the descriptor (they close it), so a daemon left behind holds nothing.
locked() {
    local name=$1 fd; shift
    mkdir -p "$YUN_CACHE/locks"
    exec {fd}>"$YUN_CACHE/locks/$name"
    flock -w 5 "$fd" || { say "waiting for another run that holds '$name'"; flock "$fd"; }
    local status=0
    "$@" {fd}>&- || status=$?
    exec {fd}>&-
    return "$status"
}

# fingerprint WORD...: one short name for a set of inputs; a word that is a file counts by its content.
fingerprint() {
    local word
    for word; do
        if [ -f "$word" ]; then sha256sum <"$word"; else printf '%s\n' "$word"; fi
    done | sha256sum | cut -c1-16
}
