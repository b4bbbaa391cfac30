"""What the two guests do: shell scripts that take orders, a line each, from their consoles."""

HOST = {"victim": "172.21.1.1", "attacker": "172.21.2.1"}
GUEST = {"victim": "172.21.1.2", "attacker": "172.21.2.2"}

# Each order has a number, so that its answer is told from that of another.
# Time is cut into slices from the moment an order comes; the neighbour stands still in every other one. What belongs to which is told by
# the guest's own clock, and the beginning of each is left out: that is longer than an order takes on the console.
SLICE_S, GUARD_S = 1.25, 0.3
# Latencies are counted by their first six binary digits: V of them after E shifts is step 64 E + V.
DIGITS = 64

VICTIM = """
stty -echo
now() { read -r t _ </proc/uptime; t=${t%.*}${t#*.}; }
# Turns of a loop, by 200, and the time they took in 1/100 s: in even slices, and in odd ones.
work() {
    now; begin=$t n0=0 n1=0 t0=0 t1=0
    while :; do
        was=$t; i=0; while [ $i -lt 200 ]; do i=$((i + 1)); done; now
        d=$((was - begin)); [ $((d / SLICE)) -lt $1 ] || break
        [ $((d % SLICE)) -ge GUARD ] || continue
        if [ $((d / SLICE % 2)) = 0 ]; then n0=$((n0 + 1)) t0=$((t0 + t - was)); else n1=$((n1 + 1)) t1=$((t1 + t - was)); fi
    done
    echo "$n0 $t0 $n1 $t1"
}
# Reads, and how many of them took how long: P:STEP:COUNT, with P 0 for even slices and 1 for odd ones.
reads() {
    now; begin=$t; rm -f /tmp/l*
    fio --name=x --filename=/dev/vdb --readonly --direct=1 --ioengine=psync --thread --time_based --runtime=$2 --rw=randread --bs=4k --randrepeat=0 --write_lat_log=/tmp/l --log_alternate_epoch=1 --log_alternate_epoch_clock_id=1 --output=/tmp/o
    awk -F, -v begin=$begin -v slices=$1 '{ d = $1 / 10 - begin; s = int(d / SLICE); if (d < 0 || s >= slices || d - s * SLICE < GUARD) next
        v = int($2 / 1000); e = 0; while (v >= DIGITS) { v = int(v / 2); e++ }; n[s % 2 ":" DIGITS * e + v]++ } END { for (k in n) printf "%s:%d ", k, n[k] }' /tmp/l_clat.1.log
}
echo "noisy: ready"
while read -r order number slices seconds; do
    case $order in
        read) echo "noisy: read $number $(reads $slices $seconds)" ;;
        work) echo "noisy: work $number $(work $slices)" ;;
    esac
done
""".replace("SLICE", str(int(SLICE_S * 100))).replace("GUARD", str(int(GUARD_S * 100))).replace("DIGITS", str(DIGITS))

ATTACKER = """
stty -echo
mount -o remount,size=95% /tmp
cpus=$(grep -c ^processor /proc/cpuinfo)
each_cpu() { n=0; while [ $n -lt $cpus ]; do "$@" & n=$((n + 1)); done; wait; }
spin() { while :; do :; done; }
fill() { while :; do dd if=/dev/zero of=/tmp/$1 bs=1M count=$2 conv=notrunc 2>/dev/null; done; }
# The entropy device is taken from its driver and given back; then, without a driver, it is told nonsense, register by register.
resets() {
    virtio=/sys/bus/virtio/drivers/virtio_rng platform=/sys/bus/platform/drivers/virtio-mmio
    device=$(basename $virtio/virtio*) slot=$(basename $(dirname $(readlink -f $virtio/virtio*)))
    base=$(sed -n "s/^ *\\([0-9a-f]*\\)-.* $slot\\$/\\1/p" /proc/iomem | head -n 1)
    poke() { devmem $((0x$base + $1)) 32 $2; }
    n=0; while [ $n -lt 20 ]; do echo $device >$virtio/unbind; echo $device >$virtio/bind; n=$((n + 1)); done
    echo $slot >$platform/unbind
    while :; do
        # Reset, acknowledge, driver, features; a queue of an impossible size in memory that is not there; run, and notify.
        poke 0x70 0; poke 0x70 1; poke 0x70 3; poke 0x24 1; poke 0x20 1; poke 0x70 11; poke 0x30 0; poke 0x38 3; poke 0x80 0xfffffff1
        poke 0x44 1; poke 0x70 15; poke 0x50 0; poke 0x50 77; poke 0x70 0xff
    done
}
flood() {
    case $1 in
        cpu) each_cpu spin ;;
        memory|oom) fill a 100 & fill b 80; wait ;;
        disk) fio --name=x --filename=/dev/vdb --direct=1 --ioengine=libaio --thread --time_based --runtime=3600 --rw=randrw --bs=32k --iodepth=64 --numjobs=2 ;;
        net) iperf3 -4 -c HOST -u -b 0 -l 64 -t 3600 ;;
        console) dd if=/dev/zero of=/dev/ttyS0 bs=64k ;;
        log) resets ;;
        *) sleep 3600 ;;
    esac
}
if [ "$1" ]; then flood $1; exit; fi
echo "noisy: ready"
while read -r order number what; do
    case $order in
        start) setsid sh /run/script $what >/tmp/said 2>&1 & pid=$! ;;
        stop) kill -9 -$pid; sleep 1; tail -n 2 /tmp/said ;;
    esac
    echo "noisy: $order $number"
done
""".replace("HOST", HOST["attacker"])

# The script comes on a drive: the kernel's command line is too short for it.
FETCH = "tr -d '\\000' </dev/vdc >/run/script; sh /run/script"


def drive_of(script):
    """A script as the content of a drive."""
    text = script.encode()
    return text + bytes(-len(text) % 4096)
