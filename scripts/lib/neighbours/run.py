"""run.py: runs on the host that has KVM, called by scripts/neighbours. Measures a victim beside each flood in turn; every sample goes to a file of JSON."""

import argparse
import base64
import json
import os
import re
import shutil
import subprocess
import tempfile
import threading
import time

import guests
import readings  # of scripts/bench
import vmm  # of scripts/bench
from guests import GUARD_S, SLICE_S
from jailed import ATTACKERS, PERIOD_US, Group, Jailed, hierarchy, prepare
from latencies import percentile

# No floods: a neighbour that does nothing says what is noise, a process that is no microVM says what the host alone does.
YARDSTICKS = ["idle", "process"]
FLOODS = ["cpu", "memory", "oom", "disk", "net", "console", "log", "api"]
VICTIM_UID, ATTACKER_UID = 20001, 20002
# Of the host's CPUs: limits that fit on two, with a rest for the kernel's own threads and for who measures.
VICTIM_CPUS, ATTACKER_CPUS, HOST_CPUS = 1.2, 0.5, 0.2
MEMORY_MIB, MEMORY_MAX_MIB, OOM_MAX_MIB = 256, 384, 160
DATA_MIB = 256
TAPS = {"victim": ("yunvictim0", "06:00:ac:15:01:02"), "attacker": ("yunattack0", "06:00:ac:15:02:02")}


class Neighbours:
    def __init__(self, options):
        self.options = options
        # Slices of reading and of work; of the first ones of reading nothing is used: fio takes its time to start.
        self.reads, self.works, self.starting = (10, 4, 3) if options.quick else (20, 8, 3)
        self.samples, self.orders = [], 0
        self.victim = self.attacker = None
        self.begin = time.monotonic()
        self.prepare_host()

    def prepare_host(self):
        run = lambda *words: subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
        prepare()
        self.all = Group("")
        self.attackers = Group(ATTACKERS)
        if not self.options.shared:
            self.attackers.make(cpuset_cpus=f"1-{os.cpu_count() - 1}")
        self.host = Group(f"{ATTACKERS}/host").make(cpu_max=f"{int(HOST_CPUS * PERIOD_US)} {PERIOD_US}")
        self.beside = Group(f"{ATTACKERS}/process").make(cpu_max=f"{int(ATTACKER_CPUS * PERIOD_US)} {PERIOD_US}")
        for name, uid in (("victim", VICTIM_UID), ("attacker", ATTACKER_UID)):
            tap, _ = TAPS[name]
            run("ip", "tuntap", "add", tap, "mode", "tap", "user", str(uid))
            run("ip", "addr", "add", f"{guests.HOST[name]}/24", "dev", tap)
            run("ip", "link", "set", tap, "up")
        # One disk for both: a file system on a block device.
        self.work = tempfile.mkdtemp(prefix="yun-nb-")
        disk, self.place = f"{self.work}/disk", f"{self.work}/m"
        run("truncate", "-s", f"{2 * DATA_MIB + 640}M", disk)
        run("mkfs.ext4", "-q", "-O", "^has_journal", disk)
        os.mkdir(self.place)
        run("mount", "-o", "loop", disk, self.place)
        os.chmod(self.place, 0o755)
        os.makedirs(f"{self.place}/jails")
        for name in ("vmlinux", "initrd.img", "bench.ext4"):
            shutil.copy(f"{self.options.images}/{name}", self.place)
            os.chmod(f"{self.place}/{name}", 0o444)
        for name in ("yun-vmm", "yun-jailer"):
            shutil.copy(getattr(self.options, name.replace("-", "_")), f"{self.place}/{name}")
        for name, script in (("victim", guests.VICTIM), ("attacker", guests.ATTACKER)):
            with open(f"{self.place}/{name}.data", "wb") as data:
                for _ in range(DATA_MIB):
                    data.write(bytes(2**20))
            with open(f"{self.place}/{name}.script", "wb") as file:
                file.write(guests.drive_of(script))
        # What the disk may do for the attacker, where it can be limited at all: the loop device is like an NVMe drive without a scheduler.
        device = os.stat(self.place).st_dev
        self.io_max = f"io.max={os.major(device)}:{os.minor(device)} rbps={self.options.io_mib << 20} wbps={self.options.io_mib << 20} riops=2000 wiops=2000"
        with open(f"{hierarchy()}/cgroup.controllers") as offered:
            self.io = "io" in offered.read().split()
        os.sync()

    def boot(self, name, memory_max_mib=MEMORY_MAX_MIB, extra=""):
        """A guest that waits for orders."""
        victim = name == "victim"
        settings = [*([] if self.options.shared else ["cpuset.cpus=0"]), *self.options.victim] if victim else [*([self.io_max] if self.io else []), *self.options.attacker]
        jailed = Jailed(self.place, name, VICTIM_UID if victim else ATTACKER_UID, 1 if victim else 2, VICTIM_CPUS if victim else ATTACKER_CPUS, MEMORY_MIB, memory_max_mib, settings, console=not victim)
        fetch = base64.b64encode(f"{guests.FETCH} {extra}".encode()).decode()
        try:
            jailed.run(f"console=ttyS0 quiet panic=-1 reboot=k root=/dev/vda ro yun.ip={guests.GUEST[name]}/24 yun.run={fetch}", *TAPS[name])
            if victim:
                jailed.console.wait("noisy: ready", 180)
            elif not extra:
                jailed.hear("noisy: ready", 0, 180)
        except BaseException:
            jailed.end()
            raise
        return jailed

    def order(self, words):
        self.orders += 1
        verb, *rest = words.split()
        return self.orders, " ".join([verb, str(self.orders), *rest])

    def tell_attacker(self, words):
        number, line = self.order(words)
        since = self.attacker.size("console")
        self.attacker.tell(line)
        self.attacker.hear(f"noisy: {words.split()[0]} {number}", since, 90)

    def spent(self):
        """What was used up and written so far, by whom."""
        attacker = self.attacker
        sizes = {name: attacker.size(name) if attacker else 0 for name in ("log", "console")}
        threads = readings.cpu_ms_by_thread(attacker.process.pid) if attacker and attacker.lives() else {}
        # Of all CPUs, by the scheduler's own clock: /proc/stat counts ticks, of which an emulated CPU misses many.
        with open("/proc/schedstat") as schedstat:
            everything = sum(int(line.split()[7]) for line in schedstat if line.startswith("cpu"))
        victim = Group("victim").read("cpu.stat")
        if not victim:
            raise RuntimeError(f"the victim ended: {self.victim.last_words()}")
        return {
            "seconds": time.monotonic(), "victim": victim["usage_usec"] / 1e6, "throttled": victim["throttled_usec"] / 1e6, "attackers": self.attackers.cpu_s(), "host": self.host.cpu_s(),
            "all": everything / 1e9, **sizes, **{f"thread {name}": ms / 1e3 for name, ms in threads.items()},
        }

    def sliced(self, words, slices, seconds, skip, loud_first):
        """An order to the victim, obeyed while the neighbour runs in every other slice; the answer, and what was used a second in both kinds."""
        used = {state: {} for state in ("quiet", "loud")}
        state = lambda slice_: ("quiet", "loud")[(slice_ + loud_first) % 2]
        number, line = self.order(f"{words} {slices} {seconds}")
        self.attackers.freeze(state(0) == "quiet")
        self.victim.tell(line)
        begin = time.monotonic()
        until = lambda moment: time.sleep(max(0, begin + moment - time.monotonic()))
        for slice_ in range(slices):
            until(slice_ * SLICE_S)
            self.attackers.freeze(state(slice_) == "quiet")
            until(slice_ * SLICE_S + GUARD_S)
            before = self.spent()
            until((slice_ + 1) * SLICE_S - 0.05)
            after = self.spent()
            if slice_ >= skip:
                total = used[state(slice_)]
                for name, value in after.items():
                    total[name] = total.get(name, 0) + value - before.get(name, value)
        _, answer = self.victim.console.wait(f"noisy: {words} {number} ", 120)
        rates = {state: {name: value / total["seconds"] for name, value in total.items() if name != "seconds"} for state, total in used.items()}
        return answer.split(f" {number} ", 1)[1].split(), rates

    def measure(self, round_):
        """The victim's reads and its work, both beside a neighbour that stands still and beside the same at large."""
        os.sync()
        with open("/proc/sys/vm/drop_caches", "w") as caches:
            caches.write("1")
        first = round_ % 2
        parity = {"quiet": first, "loud": 1 - first}
        try:
            counts, reading = self.sliced("read", self.reads, round(self.reads * SLICE_S), self.starting, first)
            turns, working = self.sliced("work", self.works, 0, 0, first)
        finally:
            self.attackers.freeze(False)
        found = {}
        for state, odd in parity.items():
            steps = {int(step): int(count) for where, step, count in (word.split(":") for word in counts) if int(where) == odd}
            batches, hundredths = int(turns[2 * odd]), int(turns[2 * odd + 1])
            found[state] = {"latencies": steps, "work": batches / hundredths * 100, "reading": reading[state], "working": working[state]}
        return found

    def beside_flood(self, round_, flood):
        """One flood: begun, measured beside, ended."""
        if flood == "oom":
            return self.beside_ooms(round_)
        helpers = []
        try:
            if self.attacker is None:
                self.attacker = self.boot("attacker")
            if flood == "process":
                helpers = [self.beside.popen(["sh", "-c", "while :; do :; done"]) for _ in range(2)]
            if flood == "net":
                helpers = [self.host.popen(["iperf3", "-s", "-B", guests.HOST["attacker"]])]
                time.sleep(2)
            if flood in ("api", "log"):
                client = os.path.join(os.path.dirname(os.path.abspath(__file__)), "client.py")
                helpers = [self.host.popen(["python3", "-B", client, self.attacker.socket, "requests" if flood == "api" else "refusals"], begun="begun")]
            self.tell_attacker(f"start {flood}")
            time.sleep(3)
            found = self.measure(round_)
            if not self.attacker.lives():
                raise RuntimeError("the attacker's VMM has ended")
            self.tell_attacker("stop")
            return {**found, "logged": self.attacker.logged()} if flood == "log" else found
        finally:
            for helper in helpers:
                helper.kill()
                helper.wait()

    def beside_ooms(self, round_):
        """The attacker with less memory than its guest thinks it has: killed and started again, as long as the victim is measured."""
        self.end_attacker()
        over, ends, failures = threading.Event(), [], []

        def again():
            while not over.is_set():
                try:
                    jailed = self.boot("attacker", OOM_MAX_MIB, "oom")
                    while jailed.lives() and not over.is_set():
                        time.sleep(0.1)
                    ends.append(jailed.process.poll())
                    jailed.end()
                except (RuntimeError, OSError, vmm.http.client.HTTPException) as error:
                    failures.append(str(error))
                    time.sleep(0.5)

        before, deadline = self.kills(), time.monotonic() + 40
        thread = threading.Thread(target=again)
        thread.start()
        try:
            while self.kills() == before and time.monotonic() < deadline:
                time.sleep(0.2)
            found = self.measure(round_)
        finally:
            over.set()
            thread.join()
        return {**found, "ends": ends, "failures": failures}

    def kills(self):
        """How many processes of the attacker the kernel has killed for their memory."""
        return self.attackers.read("memory.events").get("oom_kill", 0)

    def end_attacker(self):
        if self.attacker:
            self.attacker.end()
            self.attacker = None

    def one(self, round_, flood):
        try:
            if self.victim is None or not self.victim.lives():
                self.victim = self.boot("victim")
            before = self.kills()
            found = self.beside_flood(round_, flood)
            self.samples.append({"round": round_, "flood": flood, "kills": self.kills() - before, **found})
            for state in ("quiet", "loud"):
                at = found[state]
                cpus = lambda when: "/".join(f"{at[when][who]:.2f}" for who in ("victim", "attackers", "all"))
                threads = " ".join(f"{name[7:]} {100 * used:.0f}%" for name, used in at["reading"].items() if name.startswith("thread ") and used > 0.01)
                print(f"  {flood:8} {state:5}  {sum(at['latencies'].values()):4} reads  p50 {percentile(at['latencies'], 50):6.2f}  p99 {percentile(at['latencies'], 99):6.2f} ms  CPUs {cpus('reading')}  work {at['work']:5.1f}/s  CPUs {cpus('working')}  log {at['reading']['log'] / 1024:.1f} console {at['reading']['console'] / 1024:.1f} KiB/s  {threads}")
        except (RuntimeError, OSError, StopIteration, ValueError, vmm.http.client.HTTPException) as error:
            text = str(error) or repr(error)
            lives = self.victim is not None and self.victim.lives()
            self.samples.append({"round": round_, "flood": flood, "error": text, "victim_lives": lives})
            print(f"  {flood} failed, the victim {'lives' if lives else 'is gone'}: {text}")
            # Whatever state they are in, the next has guests of its own.
            self.end_attacker()
            if self.victim:
                self.victim.end()
                self.victim = None

    def run(self):
        order = [name for name in FLOODS if name in self.options.only]
        order[len(order) // 2:len(order) // 2] = YARDSTICKS
        try:
            for round_ in range(self.options.rounds):
                print(f"round {round_ + 1} of {self.options.rounds}, {time.monotonic() - self.begin:.0f} s, load {os.getloadavg()[0]:.2f}")
                for flood in order[round_ % len(order):] + order[:round_ % len(order)]:
                    self.one(round_, flood)
                    self.save()
        finally:
            self.end_attacker()
            if self.victim:
                self.victim.end()
            self.undo()
        self.save()

    def undo(self):
        for tap, _ in TAPS.values():
            subprocess.run(["ip", "link", "del", tap], check=False)
        subprocess.run(["umount", self.place], check=False)
        shutil.rmtree(self.work, ignore_errors=True)
        for group in (self.host, self.beside, self.attackers, self.all):
            try:
                os.rmdir(group.path)
            except OSError:
                pass

    def save(self):
        record = {
            "kernel": os.uname().release, "cpus": os.cpu_count(), "rounds": self.options.rounds, "seconds": round(time.monotonic() - self.begin), "slices": {"reads": self.reads, "works": self.works, "seconds": SLICE_S, "left_out": GUARD_S},
            "limits": {"victim_cpus": VICTIM_CPUS, "attacker_cpus": ATTACKER_CPUS, "host_cpus": HOST_CPUS, "shared": self.options.shared, "memory_mib": MEMORY_MIB, "memory_max_mib": MEMORY_MAX_MIB, "io": self.io_max if self.io else None, "victim": self.options.victim, "attacker": self.options.attacker},
            "samples": self.samples,
        }
        with open(self.options.out + ".part", "w") as out:
            json.dump(record, out, indent=1)
        os.replace(self.options.out + ".part", self.options.out)


def main():
    words = lambda text: [word for word in re.split("[, ]+", text) if word]
    parser = argparse.ArgumentParser(description=__doc__)
    for path in ("yun-vmm", "yun-jailer", "images", "out"):
        parser.add_argument(f"--{path}", required=True)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--only", type=words, default=FLOODS)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--shared", action="store_true")
    parser.add_argument("--io-mib", type=int, default=32)
    for side in ("victim", "attacker"):
        parser.add_argument(f"--{side}", action="append", default=[])
    options = parser.parse_args()
    options.rounds = options.rounds or (1 if options.quick else 5)
    for unknown in set(options.only) - set(FLOODS):
        parser.error(f"no flood '{unknown}'")
    Neighbours(options).run()


main()
