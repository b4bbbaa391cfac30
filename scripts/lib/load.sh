# shellcheck shell=bash
# The load of the machine outside L1, which L1 can not see. Sourced.

# load_watch FILE: writes a line there every five seconds (average, running/all) until LOAD_WATCH is killed.
# shellcheck disable=SC2034 # for the caller
load_watch() {
    cut -d' ' -f1,4 /proc/loadavg >"$1"
    while sleep 5; do cut -d' ' -f1,4 /proc/loadavg >>"$1"; done & LOAD_WATCH=$!
}
