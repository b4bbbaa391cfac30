# shellcheck shell=bash
# One run of one command inside L1. Needs base.sh, packages.sh, kernel.sh, initrd.sh, l1-build.sh, l1-qemu.sh.
# The caller sets these before l1_run (on-kvm's options do):
#   L1_CPUS L1_MEMORY_MIB L1_TIMEOUT_S L1_TCG_THREAD L1_QEMU L1_SUITE L1_KVM_AMD L1_CLOCK L1_COMMAND_CPU L1_ENV (array) L1_KEEP

L1_STATUS_OOPS=70       # L1's own kernel oopsed: the ground gave way (or it stood still), whatever the command was doing
L1_STATUS_VANISHED=71   # L1 ended and left neither a status nor an oops
L1_STATUS_TIMEOUT=124   # as timeout(1) has it

# What the console shows when it is L1's kernel that failed. A guest's console goes elsewhere.
L1_OOPS='Kernel panic|Oops:|BUG: |general protection fault|stack guard page was hit|double fault|Unable to handle|rcu.*detected stalls|soft lockup|hard LOCKUP|kernel BUG at|triple fault'

# l1_run COMMAND...: prints what the command prints, as it prints it; returns its status or one of the above.
l1_run() {
    local kernel initrd virtiofsd
    [ "$(id -u)" = 0 ] || die "L1 shares this machine's root file system, which only root can do: run as root"
    [ -n "$L1_QEMU" ] || L1_QEMU=$(l1_qemu_fetch)
    kernel=$(kernel_fetch "$L1_SUITE"); initrd=$(l1_initrd "$kernel"); virtiofsd=$(virtiofsd_build)

    # no_timer_check: the kernel gives its timer ten ticks to show that it works, and panics; on a busy machine QEMU may not run that long.
    # The kernel distrusts the TSCs of a machine with two AMD CPUs and no constant_tsc flag; QEMU's are one and the same clock.
    local clock=''; [ "$L1_CLOCK" = hpet ] || clock=tsc=reliable
    local run; mkdir -p "$YUN_CACHE/run"; run=$(mktemp -d "$YUN_CACHE/run/XXXXXXXX")
    _l1_describe_run "$run" "$kernel" "$@"
    # A reader that has gone must not keep us from cleaning up.
    trap '' PIPE
    trap '_l1_stop' EXIT; trap 'exit 130' INT; trap 'exit 143' TERM; trap 'exit 129' HUP
    L1_RUN=$run L1_PIDS=()
    # The helpers die with this script, even if it is killed outright.
    setpriv --pdeathsig KILL "$virtiofsd" --socket-path="$run/fs.sock" --shared-dir=/ --cache=auto --sandbox=chroot --xattr \
        >"$run/virtiofsd.log" 2>&1 </dev/null & L1_PIDS+=($!)
    _l1_wait_for_socket "$run"
    setpriv --pdeathsig KILL "$L1_QEMU" -M q35 -accel "tcg,thread=$L1_TCG_THREAD" -cpu EPYC,+svm,+npt -smp "$L1_CPUS" -m "$L1_MEMORY_MIB" \
        -nographic -nodefaults -no-reboot -object "memory-backend-memfd,id=m,size=${L1_MEMORY_MIB}M,share=on" -numa node,memdev=m \
        -chardev "socket,id=c,path=$run/fs.sock" -device vhost-user-fs-pci,chardev=c,tag=host \
        -serial "file:$run/console" -kernel "$kernel/bzImage" -initrd "$initrd" \
        -append "console=ttyS0 quiet oops=panic panic=-1 no_timer_check $clock yun.run-dir=$(printf %s "$run" | base64 -w0)" \
        >"$run/qemu.log" 2>&1 </dev/null & local qemu=$!
    L1_PIDS+=("$qemu")

    # tail ends by itself once QEMU has, after showing what came last.
    tail -s 0.1 -c +1 --pid="$qemu" -f "$run/out" & local tails=($!)
    [ -e "$run/merged" ] || { tail -s 0.1 -c +1 --pid="$qemu" -f "$run/err" >&2 & tails+=($!); }
    L1_PIDS+=("${tails[@]}")
    _l1_await "$qemu" || { kill -KILL "$qemu" 2>/dev/null || true; }
    wait "$qemu" 2>/dev/null || true
    wait "${tails[@]}" 2>/dev/null || true
    _l1_verdict "$run"
}

# Everything L1 needs to know lies in the run directory: the command, where and with what environment, and its own first process.
_l1_describe_run() {
    local run=$1 kernel=$2 name; shift 2
    printf '%s\n' "$kernel" >"$run/kernel"
    printf '%s\n' "$L1_KVM_AMD" >"$run/kvm-amd"
    cp "$YUN_ROOT/scripts/lib/l1-init" "$run/l1-init"
    : >"$run/out"; : >"$run/err"; : >"$run/console"
    # One stream where the caller has one, so that lines keep their order.
    if [ "$(readlink /proc/$$/fd/1)" = "$(readlink /proc/$$/fd/2)" ]; then : >"$run/merged"; fi
    {
        printf 'export HOME=%q PATH=/run/l1/bin:%q\n' "${HOME:-/root}" "$PATH"
        for name in "${L1_ENV[@]}"; do [ -z "${!name+set}" ] || printf 'export %s=%q\n' "$name" "${!name}"; done
        printf 'cd %q || exit 127\nexec ' "$PWD"
        [ -z "$L1_COMMAND_CPU" ] || printf 'taskset -c %q ' "$L1_COMMAND_CPU"
        printf '%q ' "$@"; printf '\n'
    } >"$run/command"
}

_l1_wait_for_socket() {
    local _
    for _ in {1..100}; do [ -S "$1/fs.sock" ] && return; sleep 0.05; done
    cat "$1/virtiofsd.log" >&2; die "virtiofsd did not start"
}

# Waits for QEMU to end; false if the time is over first, or if L1 stands still: it gives a sign of life each five seconds, so none in
# two minutes means that its CPUs wait for an interrupt that was lost, or turn in circles.
_l1_await() {
    # The first sign may take longer: a kernel starts before it.
    local end=$((SECONDS + L1_TIMEOUT_S)) begun=$((EPOCHSECONDS + 180)) alive
    while kill -0 "$1" 2>/dev/null; do
        if [ "$SECONDS" -ge "$end" ]; then : >"$L1_RUN/timed-out"; return 1; fi
        alive=$(stat -c %Y "$L1_RUN/alive" 2>/dev/null) || alive=$begun
        if [ $((EPOCHSECONDS - alive)) -ge 120 ]; then : >"$L1_RUN/stands-still"; return 1; fi
        sleep 0.2
    done
}

_l1_verdict() {
    local run=$1 signature
    if [ -s "$run/status" ]; then return "$(cat "$run/status")"; fi
    local saved; saved=$YUN_CACHE/l1-failures/$(date +%Y%m%d-%H%M%S)-${run##*/}
    mkdir -p "$saved"; cp "$run"/{console,qemu.log,virtiofsd.log,command,out,err} "$saved/"
    if [ -e "$run/stands-still" ]; then signature='it stands still'; else signature=$(grep -a -m1 -E "$L1_OOPS" "$run/console" | tr -d '\r' || true); fi
    if [ -n "$signature" ]; then
        say "L1 itself failed: $signature"; say "its console: $saved/console"; return "$L1_STATUS_OOPS"
    elif [ -e "$run/timed-out" ]; then
        say "not done after $L1_TIMEOUT_S s, stopped; L1's console: $saved/console"; return "$L1_STATUS_TIMEOUT"
    else
        say "L1 ended without a word; logs: $saved"
        tail -q -n 2 "$run"/{console,virtiofsd.log,qemu.log} >&2
        return "$L1_STATUS_VANISHED"
    fi
}

_l1_stop() {
    local pid
    for pid in "${L1_PIDS[@]}"; do kill "$pid" 2>/dev/null || true; done
    if [ "$L1_KEEP" = yes ]; then say "kept: $L1_RUN"; else rm -rf "$L1_RUN"; fi
}
