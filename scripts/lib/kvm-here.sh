# shellcheck shell=bash
# Whether this machine's own /dev/kvm runs Linux. Needs base.sh, packages.sh, kernel.sh, initrd.sh, l1-build.sh, l1-qemu.sh.

# kvm_here: true if it does. Found out by booting a Linux: CPU flags say nothing about a KVM that is itself emulated.
# The answer holds until the machine boots again or its KVM changes.
kvm_here() {
    [ -r /dev/kvm ] && [ -w /dev/kvm ] || return 1
    local answer; answer=$YUN_CACHE/kvm-here-$(fingerprint "$(cat /proc/sys/kernel/random/boot_id)" "$(uname -r)" "$(stat -c %t:%T /dev/kvm)")
    [ -f "$answer" ] || locked kvm-here _kvm_here_try "$answer"
    [ "$(cat "$answer")" = yes ]
}

_kvm_here_try() {
    local answer=$1 kernel initrd log=$YUN_CACHE/kvm-here.log
    [ -f "$answer" ] && return
    local qemu; l1_packages; qemu=$(l1_qemu_fetch)
    kernel=$(kernel_fetch); initrd=$(l1_initrd "$kernel")
    say "trying whether this machine's own KVM boots Linux"
    # A real KVM needs two seconds. QEMU's own exit status says nothing: the guest's word does.
    timeout -k 2 20 "$qemu" -M q35 -accel kvm -cpu host -m 512 -nographic -nodefaults -no-reboot -serial stdio \
        -kernel "$kernel/bzImage" -initrd "$initrd" -append "console=ttyS0 quiet panic=-1 yun.probe" >"$log" 2>&1 </dev/null || true
    if grep -q 'yun-probe: alive' "$log"; then echo yes; else echo no; fi >"$answer.part"
    mv "$answer.part" "$answer"
    say "it does$([ "$(cat "$answer")" = yes ] || echo ' not')"
}
