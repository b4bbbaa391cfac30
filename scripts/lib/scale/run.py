"""run.py: runs in namespaces of its own, called by scripts/scale. Measures one agent; every figure and sample goes to a file of JSON."""

import argparse
import concurrent.futures
import json
import math
import os
import re
import signal
import statistics
import subprocess
import time

import traces
from agent import Agent

IN_FLIGHT, ROUNDS_IN_FLIGHT = 8, 4
LISTS, SAMPLES = 50, 100
# How long what was removed may take until its jailer has cleared up.
SETTLE_S = 20


def percentile(values, percent):
    """By nearest rank."""
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


def slope(samples):
    """What y grows by with x, by least squares."""
    x, y = zip(*samples)
    mean = statistics.fmean(x)
    spread = sum((value - mean) ** 2 for value in x)
    return sum((value - mean) * other for value, other in samples) / spread if spread else 0.0


class Scale:
    def __init__(self, options):
        self.options = options
        self.agent = Agent(options.work, options.network)
        self.figures, self.samples, self.ids = {}, {}, set()

    def note(self, **figures):
        self.figures.update(figures)
        print("  " + "  ".join(f"{name} {value:.4g}" for name, value in figures.items()))

    def settle(self):
        """Waits until nothing goes on any more that will end by itself; whatever is still there then is left behind."""
        deadline = time.monotonic() + SETTLE_S
        known = {1, os.getpid(), self.agent.process.pid}
        calm = lambda: not traces.processes(known) and not traces.cgroups(self.ids)
        while not calm() and time.monotonic() < deadline:
            time.sleep(0.1)

    def create(self, name):
        begin, end, id_ = self.agent.create(name)
        self.ids.add(id_)
        return begin, end

    def vms(self):
        names = [f"vm{number}" for number in range(self.options.vms)]
        pid = self.agent.process.pid
        self.note(**{f"alone_{name}_mib": value for name, value in traces.memory_mib(pid).items()})
        with concurrent.futures.ThreadPoolExecutor(IN_FLIGHT) as pool:
            print(f"creating {len(names)} VMs, {IN_FLIGHT} in flight")
            cpu = traces.cpu_s(pid)
            moments = list(pool.map(self.create, names))
            cpu = traces.cpu_s(pid) - cpu
            times = [(end - begin) * 1000 for begin, end in moments]
            self.samples["create_ms"] = times
            wall = max(end for _, end in moments) - min(begin for begin, _ in moments)
            self.note(create_ms_median=statistics.median(times), create_ms_p99=percentile(times, 99), created_per_s=len(names) / wall, create_cpu_ms=cpu * 1000 / len(names))
            self.note(**{f"{name}_mib": value for name, value in traces.memory_mib(pid).items()})
            self.list(len(names))
            self.idle()
            self.restart()
            print("removing them")
            begin = time.monotonic()
            for name in names:
                self.agent.events.expect(name)
            list(pool.map(self.agent.remove, names))
            self.note(removed_per_s=len(names) / (time.monotonic() - begin))

    def list(self, count):
        print("listing")
        times = []
        for _ in range(LISTS):
            begin = time.monotonic()
            text = self.agent.ask("GET", "/v1/vms")
            times.append((time.monotonic() - begin) * 1000)
        if len(json.loads(text)) != count:
            raise RuntimeError(f"GET /v1/vms knows of {len(json.loads(text))} VMs, {count} were made")
        self.samples["list_ms"] = times
        self.note(list_ms=statistics.median(times), list_kib=len(text) / 1024)
        shell = f"{self.options.work}/yun"
        if not os.access(shell, os.X_OK):
            print("  there is no yun: yun ls was not measured")
            return
        times = []
        for _ in range(LISTS):
            begin = time.monotonic()
            said = subprocess.run([shell, "--socket", self.agent.socket, "ls"], check=False, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            times.append((time.monotonic() - begin) * 1000)
            if said.returncode != 0 or said.stdout.count(b"\n") < count:
                raise RuntimeError(f"yun ls ended with {said.returncode}: {said.stdout[-200:]} {said.stderr[-200:]}")
        self.samples["ls_ms"] = times
        self.note(ls_ms=statistics.median(times))

    def idle(self):
        print(f"leaving them alone for {self.options.idle} s")
        pid = self.agent.process.pid
        running = [vm["status"]["pid"] for vm in self.agent.vms()]
        of_vmms = lambda: sum(map(traces.cpu_s, running))
        begin, cpu, woken, vmms = time.monotonic(), traces.cpu_s(pid), traces.switches(pid), of_vmms()
        time.sleep(self.options.idle)
        cpu, woken, seconds = traces.cpu_s(pid) - cpu, (traces.switches(pid) - woken).total(), time.monotonic() - begin
        self.note(idle_percent=cpu * 100 / seconds, idle_wakeups_per_s=woken / seconds, idle_vmms_percent=(of_vmms() - vmms) * 100 / seconds)
        self.note(**{f"idle_{name}_mib": value for name, value in traces.memory_mib(pid).items()})

    def restart(self):
        print("killing the agent")
        present = lambda: {vm["id"]: (vm["status"]["state"], vm["status"].get("pid"), vm["status"]["incarnation"]) for vm in self.agent.vms()}
        before = present()
        self.agent.end(signal.SIGKILL)
        begin = time.monotonic()
        answered = self.agent.start()
        while present() != before:
            if time.monotonic() > begin + SETTLE_S:
                changed = {id_: (was, present().get(id_)) for id_, was in before.items() if present().get(id_) != was}
                raise RuntimeError(f"{len(changed)} VMs are not what they were: {list(changed.items())[:3]}")
            time.sleep(0.005)
        self.note(adopted_s=time.monotonic() - begin, answered_s=answered, adopt_cpu_s=traces.cpu_s(self.agent.process.pid))
        self.note(**{f"adopted_{name}_mib": value for name, value in traces.memory_mib(self.agent.process.pid).items()})

    def rounds(self):
        # An agent that has not had many VMs: what it freed of theirs would hide what it loses now.
        self.agent.end()
        self.agent.start()
        pid = self.agent.process.pid
        resident = []

        def round_(number):
            name = f"round{number}"
            self.create(name)
            self.agent.remove(name)
            del self.agent.events.wanted[name]
            if number >= 0 and number % max(1, self.options.rounds // SAMPLES) == 0:
                resident.append((number, traces.memory_mib(pid)["rss"] * 1024))

        with concurrent.futures.ThreadPoolExecutor(ROUNDS_IN_FLIGHT) as pool:
            list(pool.map(round_, range(-min(40, self.options.rounds), 0)))
            self.settle()
            before, cpu = traces.left(self.agent, self.ids), traces.cpu_s(pid)
            print(f"creating and deleting, {self.options.rounds} times, {ROUNDS_IN_FLIGHT} in flight")
            begin = time.monotonic()
            list(pool.map(round_, range(self.options.rounds)))
            wall, cpu = time.monotonic() - begin, traces.cpu_s(pid) - cpu
        self.settle()
        after = traces.left(self.agent, self.ids)
        self.samples["resident_kib"] = sorted(resident)
        later = [sample for sample in sorted(resident) if sample[0] >= self.options.rounds / 2]
        self.note(rounds_per_s=self.options.rounds / wall, round_cpu_ms=cpu * 1000 / self.options.rounds, round_kib=slope(later))
        self.figures["counts"] = {kind: [before[kind].total(), after[kind].total()] for kind in before}
        self.figures["left"] = {kind: dict((after[kind] - before[kind]).most_common(20)) for kind in before}
        for kind, (was, is_) in self.figures["counts"].items():
            print(f"  {kind}: {was} before, {is_} after")

    def run(self):
        begin, error = time.monotonic(), None
        try:
            self.agent.start()
            self.agent.prepare()
            for part in self.options.only:
                {"vms": self.vms, "rounds": self.rounds}[part]()
        except Exception as failure:  # whatever it is, what was measured before it is worth having
            error = repr(failure) if isinstance(failure, (AttributeError, NameError, TypeError)) else str(failure)
            print(f"failed: {error}\n{self.agent.last_words()}")
        finally:
            self.end()
        record = {
            "kernel": os.uname().release, "cpus": os.cpu_count(), "seconds": round(time.monotonic() - begin), "vms": self.options.vms, "rounds": self.options.rounds, "idle_s": self.options.idle,
            "quick": self.options.quick, "network": self.options.network, "only": self.options.only, "error": error, "figures": self.figures, "samples": self.samples,
        }
        with open(self.options.out, "w") as out:
            json.dump(record, out, indent=1)

    def end(self):
        """VMs that are left would be ended with this namespace; their jails' janitors too, so cgroups would stay."""
        try:
            if self.agent.process.poll() is not None:
                self.agent.start()
            for vm in self.agent.vms():
                self.agent.ask("DELETE", f"/v1/tenants/scale/vms/{vm['name']}")
            self.settle()
        except Exception as failure:
            print(f"not all could be cleared up: {failure}")
        self.agent.end()


def main():
    words = lambda text: [word for word in re.split("[, ]+", text) if word]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--vms", type=int)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--idle", type=float)
    parser.add_argument("--only", type=words, default=["vms", "rounds"])
    parser.add_argument("--network", action="store_true")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    for name, whole, quick in (("vms", 200, 20), ("rounds", 1000, 30), ("idle", 60, 3)):
        if getattr(options, name) is None:
            setattr(options, name, quick if options.quick else whole)
        if getattr(options, name) < 1:
            parser.error(f"--{name} is 1 or more")
    for unknown in set(options.only) - {"vms", "rounds"}:
        parser.error(f"no part '{unknown}'; accepted are vms and rounds")
    Scale(options).run()


main()
