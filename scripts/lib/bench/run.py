"""run.py: runs on the host that has KVM, called by scripts/bench. Lets the VMMs take turns and writes every sample to a file of JSON."""

import argparse
import base64
import contextlib
import ctypes
import json
import os
import re
import shutil
import subprocess
import tempfile
import time

import readings
import vmm

CASES = ["api", "boot", "memory", "idle", "read1", "read32", "seqread", "tcp-out", "tcp-in", "udp-out", "udp-in"]
HOST, GUEST, TAP = "172.20.0.1", "172.20.0.2", "yunbench0"
DRIVE_MIB = 256


def guest_script(cases, seconds):
    """What the guest does once it is up: a line of console before and after each load."""
    fio = f"fio --name=x --filename=/dev/vda --readonly --direct=1 --ioengine=libaio --thread --time_based --runtime={seconds} --minimal"
    iperf = f"iperf3 -4 -c {HOST} -i 0 -f k -t {seconds}"
    loads = {
        "idle": f"sleep {seconds + 2}",
        "read1": f"{fio} --rw=randread --bs=4k",
        "read32": f"{fio} --rw=randread --bs=4k --iodepth=32",
        "seqread": f"{fio} --rw=read --bs=128k --iodepth=8",
        "tcp-out": iperf,
        "tcp-in": f"{iperf} -R",
        "udp-out": f"{iperf} -u -b 0 -l 64",
        "udp-in": f"{iperf} -u -b 0 -l 64 -R",
    }
    lines = ['f() { n=$1; shift; echo "bench: begin $n"; o=$("$@" 2>&1 | tr "\\n" "|"); echo "bench: end $n $o"; }', "sleep 1"]
    lines += [f"f {case} {load}" for case, load in loads.items() if case in cases or (case == "idle" and "memory" in cases)]
    return "\n".join(lines + ["echo bench: done"])


def figure(case, output):
    """The figure in what fio or iperf3 printed."""
    if case in ("read1", "read32", "seqread"):
        row = next(row for row in output.split("|") if row.count(";") > 50).split(";")
        return float(row[6]) / 1024 if case == "seqread" else float(row[7])
    row = next(row for row in output.split("|") if "receiver" in row)
    if case.startswith("tcp"):
        return float(re.search(r"([\d.]+) Kbits/sec", row)[1]) / 1000
    begin, end = re.search(r"([\d.]+)-([\d.]+)\s+sec", row).groups()
    lost, total = re.search(r"(\d+)/(\d+) \(", row).groups()
    return (int(total) - int(lost)) / (float(end) - float(begin))


def spin():
    """Milliseconds of a fixed piece of work: how fast this host is just now."""
    begin = time.monotonic()
    sum(range(1_000_000))
    return (time.monotonic() - begin) * 1000


def difference(after, before):
    return {name: after[name] - before.get(name, 0) for name in after if after[name] != before.get(name, 0)}


@contextlib.contextmanager
def fixed_addresses():
    """Children get the same address space each time. An emulated CPU (L1's) translates code anew wherever it appears, which a real one
    does not: with random addresses the measure is how much code a start touches, with fixed ones what running it costs."""
    ADDR_NO_RANDOMIZE, ASK = 0x0040000, 0xFFFFFFFF
    libc = ctypes.CDLL(None)
    before = libc.personality(ctypes.c_ulong(ASK))
    libc.personality(ctypes.c_ulong(before | ADDR_NO_RANDOMIZE))
    try:
        yield
    finally:
        libc.personality(ctypes.c_ulong(before))


class Bench:
    # For what else lies beside the drive.
    spare_mib = 192

    def __init__(self, options):
        self.options = options
        self.work = tempfile.mkdtemp(prefix="yun-bench-")
        self.samples = []
        self.seconds = 2 if options.quick else 4
        self.prepare_host()

    def prepare_host(self):
        if not os.path.ismount("/sys/kernel/debug"):
            subprocess.run(["mount", "-t", "debugfs", "debugfs", "/sys/kernel/debug"], check=False)
        run = lambda *words: subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
        # Also for the one VMM that does not run as root.
        run("ip", "tuntap", "add", TAP, "mode", "tap", "user", vmm.YunJailed.UID)
        run("ip", "addr", "add", f"{HOST}/24", "dev", TAP)
        run("ip", "link", "set", TAP, "up")
        # The drive lies where drives lie: on a file system on a block device, and is cached by the host.
        disk, mount = f"{self.work}/disk", f"{self.work}/mount"
        run("truncate", "-s", f"{DRIVE_MIB + self.spare_mib}M", disk)
        run("mkfs.ext4", "-q", "-O", "^has_journal", disk)
        os.mkdir(mount)
        place = mount if subprocess.run(["mount", "-o", "loop", disk, mount], check=False).returncode == 0 else self.work
        self.drive = f"{place}/drive"
        # As do the VMMs that are to start fast, and the guest's images: this checkout may be on a slower kind of file system.
        for beside in ("jailer", "other"):
            shutil.copy(f"{self.options.yun}-{beside}", f"{place}/yun-{beside}")
        for name in ("yun", "firecracker"):
            shutil.copy(getattr(self.options, name), f"{place}/{name}")
            setattr(self.options, name, f"{place}/{name}")
        for name in ("vmlinux", "initrd.img"):
            shutil.copy(f"{self.options.images}/{name}", place)
        shutil.copyfile(f"{self.options.images}/bench.ext4", self.drive)
        with open(self.drive, "ab") as drive:
            left = DRIVE_MIB * 2**20 - drive.tell()
            drive.write(os.urandom(2**20) * (left // 2**20) + os.urandom(left % 2**20))
        script = guest_script(self.options.only, self.seconds)
        run_words = f"root=/dev/vda ro yun.ip={GUEST}/24 yun.then=stay yun.run={base64.b64encode(script.encode()).decode()}"
        self.guest = vmm.Guest(place, self.drive, TAP, f"console=ttyS0 quiet panic=-1 reboot=k {run_words}")

    def peer(self, kind):
        binary = {"yun": self.options.yun, "firecracker": self.options.firecracker, "qemu": self.options.qemu}[kind.name.split("-")[0]]
        return kind(binary, self.work)

    def add(self, round_, name, case, value, **beside):
        self.samples.append({"round": round_, "vmm": name, "case": case, "value": value, **beside})

    def fail(self, round_, peer, error):
        """Keeps why one of them failed."""
        first, *rest = (str(error) or repr(error)).splitlines()
        first += peer.last_words()
        self.samples.append({"round": round_, "vmm": peer.name, "case": "failed", "error": "\n".join([first, *rest])})
        print(f"  {peer.name} failed: {first}")

    def api(self, round_, kinds, what="api"):
        """Many process starts, in turn. The first of each only warms the caches."""
        for repetition in range(-1, 3 if self.options.quick else 8):
            for kind in kinds:
                peer = self.peer(kind)
                try:
                    before = peer.launch()
                    wall = (peer.answer() - before) * 1000
                    cpu, faults = readings.cpu_ms(peer.process.pid), readings.minor_faults(peer.process.pid)
                finally:
                    peer.end()
                if repetition >= 0:
                    self.add(round_, kind.name, f"{what}-wall", wall)
                    self.add(round_, kind.name, f"{what}-cpu", cpu)
                    self.add(round_, kind.name, f"{what}-faults", faults)

    def boot(self, round_, kind):
        """One guest: its start, its rest, its loads."""
        with open(self.drive, "rb") as drive:
            while drive.read(2**20):
                pass
        speed = spin()
        peer = self.peer(kind)
        server = subprocess.Popen(["iperf3", "-s", "-B", HOST], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        found = []
        try:
            before = peer.run(self.guest)
            told = time.monotonic()
            pid = peer.process.pid
            moment, _ = peer.console.wait("init reached", 240)
            threads, counters = readings.cpu_ms_by_thread(pid), readings.exits(pid)
            found += [("boot-wall", (moment - before) * 1000, {"spin_ms": speed, "told_ms": (told - before) * 1000}), ("boot-cpu", sum(threads.values()), {"threads": threads, "kvm": counters})]
            if "exits" in counters:
                found.append(("boot-exits", counters["exits"], {}))
            for case in [case for case in CASES if f"\nf {case} " in guest_script(self.options.only, 0)]:
                peer.console.wait(f"bench: begin {case}", 90)
                if case == "idle":
                    time.sleep(1)
                began = time.monotonic()
                threads, counters = readings.cpu_ms_by_thread(pid), readings.exits(pid)
                if case == "idle":
                    time.sleep(self.seconds)
                    output = ""
                else:
                    _, output = peer.console.wait(f"bench: end {case}", 90)
                used = difference(readings.cpu_ms_by_thread(pid), threads)
                beside = {"seconds": time.monotonic() - began, "threads": used, "kvm": difference(readings.exits(pid), counters)}
                if case == "idle":
                    found.append(("idle", sum(used.values()) / beside["seconds"] / 10, beside))
                    memory = readings.memory_kib(pid, vmm.MEMORY_MIB * 1024)
                    found += [("memory", memory["rss"], memory), ("memory-private", memory["private"], {})]
                else:
                    found.append((case, figure(case, output), {**beside, "output": output if self.options.verbose else ""}))
        except (RuntimeError, OSError, StopIteration, TypeError) as error:
            self.fail(round_, peer, error)
        finally:
            peer.end()
            server.kill()
            server.wait()
        for case, value, beside in found:
            if case.split("-")[0] in self.options.only or case in self.options.only:
                self.add(round_, kind.name, case, value, **beside)
        print(f"  {kind.name:13} " + "  ".join(f"{case} {value:.4g}" for case, value, _ in found))

    def run(self):
        kinds = [kind for kind in dict.fromkeys(vmm.ALL + vmm.CONFINEMENT) if kind.name in self.options.vmms]
        begin = time.monotonic()
        for round_ in range(self.options.rounds):
            print(f"round {round_ + 1} of {self.options.rounds}, {time.monotonic() - begin:.0f} s, load {os.getloadavg()[0]:.2f}")
            if "api" in self.options.only:
                rest = [kind for kind in kinds if issubclass(kind, vmm.Rest)]
                self.api(round_, rest)
                with fixed_addresses():
                    self.api(round_, rest, "fixed")
            for kind in kinds if self.options.only != ["api"] else ():
                self.boot(round_, kind)
                self.save(time.monotonic() - begin)
            # Another one goes first in the next round: the first is alone in coming after the process starts.
            kinds = kinds[1:] + kinds[:1]
        self.save(time.monotonic() - begin)
        shutil.rmtree(self.work, ignore_errors=True)

    def save(self, seconds):
        record = {"kernel": os.uname().release, "cpus": os.cpu_count(), "rounds": self.options.rounds, "seconds": round(seconds), "samples": self.samples}
        with open(self.options.out + ".part", "w") as out:
            json.dump(record, out, indent=1)
        os.replace(self.options.out + ".part", self.options.out)


def main():
    words = lambda text: [word for word in re.split("[, ]+", text) if word]
    parser = argparse.ArgumentParser(description=__doc__)
    for path in ("yun", "firecracker", "qemu", "images", "out"):
        parser.add_argument(f"--{path}", required=True)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--only", type=words, default=CASES)
    parser.add_argument("--vmms", type=words, default=[kind.name for kind in vmm.ALL])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()
    options.rounds = options.rounds or (1 if options.quick else 3)
    for unknown in set(options.only) - set(CASES) | set(options.vmms) - {kind.name for kind in vmm.ALL + vmm.CONFINEMENT}:
        parser.error(f"no case or VMM '{unknown}'")
    Bench(options).run()


if __name__ == "__main__":
    main()
