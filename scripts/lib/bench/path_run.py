"""path_run.py: runs on the host that has KVM, called by scripts/bench --path. Measures what passes through drives, interfaces and sockets, and
what each request costs in exits, interrupts and system calls, VMM by VMM in turn, and the same loads without any VMM."""

import argparse
import base64
import fnmatch
import json
import os
import re
import socket
import subprocess
import threading
import time

import paths
import readings
import reasons
import vmm
from run import GUEST, HOST, TAP, Bench, difference

DATA_MIB = 256
MEMORY_MIB = 512
PACKETS = 400
# A network of its own for the host's own iperf3: two ends of one veth, as a TAP has two.
OTHER, OTHER_HOST, OTHER_END = "yun-bench", "172.20.1.1", "172.20.1.2"


class Talk:
    """The host's end of a guest's sockets: takes what comes, or gives, for so many seconds, and counts."""

    def __init__(self, peer, seconds):
        self.peer, self.seconds, self.bytes, self.took = peer, seconds, 0, 0.0
        self.listeners = [peer.listen(port) for port in (5000, 5001)]
        for listener, work in zip(self.listeners, (self.take, self.give)):
            threading.Thread(target=self.serve, args=(listener, work), daemon=True).start()

    def serve(self, listener, work):
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                begin = time.monotonic()
                self.bytes = 0
                try:
                    while time.monotonic() - begin < self.seconds and (moved := work(connection)):
                        self.bytes += moved
                except OSError:
                    pass
                self.took = time.monotonic() - begin

    def take(self, connection):
        return len(connection.recv(65536))

    def give(self, connection, block=bytes(65536)):
        return connection.send(block)

    def ping(self):
        """Round trips of 64 bytes to the guest's echo."""
        connection, count = self.peer.connect(5002), 0
        with connection:
            begin = time.monotonic()
            while time.monotonic() - begin < self.seconds:
                connection.sendall(bytes(64))
                left = 64
                while left:
                    left -= len(connection.recv(left))
                count += 1
            return count, time.monotonic() - begin

    def end(self):
        for listener in self.listeners:
            try:
                # Who waits in accept lets go: the next VMM listens at the same port of the host.
                listener.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            listener.close()


class Paths(Bench):
    spare_mib = Bench.spare_mib + DATA_MIB + 8

    def prepare_host(self):
        super().prepare_host()
        if not os.path.exists("/sys/kernel/tracing/events"):
            subprocess.run(["mount", "-t", "tracefs", "tracefs", "/sys/kernel/tracing"], check=False)
        self.data = f"{os.path.dirname(self.drive)}/data"
        self.script = f"{os.path.dirname(self.drive)}/script"
        with open(self.data, "wb") as data:
            for _ in range(DATA_MIB):
                data.write(os.urandom(2**20))
        for words in (f"ip netns add {OTHER}", f"ip link add yunbench1 type veth peer name eth0 netns {OTHER}", f"ip addr add {OTHER_HOST}/24 dev yunbench1",
                      "ip link set yunbench1 up", f"ip -n {OTHER} addr add {OTHER_END}/24 dev eth0", f"ip -n {OTHER} link set eth0 up"):
            subprocess.run(words.split(), check=True)

    def write_script(self, cases, vcpus):
        """What the guest is to do lies on a drive of its own: a command line has no room for it. A load's output comes well after its end,
        as each byte of it is an exit."""
        lines = ["mount -t tmpfs t /tmp", "sleep 1"]
        lines += ['f() { n=$1; shift; sleep 0.2; echo "bench: begin $n ;"; o=$(eval "$@" 2>&1 | tr "\\n" "|"); echo "bench: end $n ;"; sleep 0.3; echo "bench: output $n $o"; }']
        lines += [f"f {case} '{paths.guest(case, HOST, self.seconds, vcpus)}'" for case in cases]
        text = "\n".join([*lines, "echo bench: done", "exit"]).encode()
        with open(self.script, "wb") as script:
            script.write(text + b"\n" * (-len(text) % 4096))

    def guest_of(self, cases, vcpus):
        self.write_script(cases, vcpus)
        run = base64.b64encode(b"sh /dev/vdc").decode()
        cmdline = f"console=ttyS0 quiet panic=-1 reboot=k root=/dev/vda ro yun.modules=vsock yun.ip={GUEST}/24 yun.then=stay yun.run={run}"
        return vmm.Guest(os.path.dirname(self.drive), self.drive, TAP, cmdline, vcpus, MEMORY_MIB, (self.data, self.script), any(paths.kind_of(case) == "vsock" for case in cases))

    def ping(self, address):
        """Round trips a second of ping, one after the other."""
        text = subprocess.run(["ping", "-q", "-n", "-A", "-c", str(PACKETS), "-w", str(self.seconds), address], capture_output=True, text=True).stdout
        return 1000 / float(re.search(r"= [\d.]+/([\d.]+)/", text)[1]), int(re.search(r"(\d+) received", text)[1])

    def one(self, case, talk):
        """The figure of a case that the host measures, its requests, and more; None of one that the guest does."""
        if case == "rtt":
            figure, requests = self.ping(GUEST)
            return figure, requests, {}
        if case == "vsock-rtt":
            count, took = talk.ping()
            return count / took, count, {}
        return None

    def loads(self, peer, name, round_, cases, vcpus):
        talk = Talk(peer, self.seconds) if any(paths.kind_of(case) == "vsock" for case in cases) else None
        pid = peer.process.pid
        peer.console.wait("bench: begin", 240)
        calls = readings.Calls(pid)
        profiled = reasons.Profile() if self.options.profile else None
        try:
            for case in cases:
                peer.console.wait(f"bench: begin {case} ;", 60)
                if profiled:
                    profiled.begin()
                began, before, made, used = time.monotonic(), readings.exits(pid), calls.count(), readings.cpu_ms(pid)
                done = self.one(case, talk)
                if done is None:
                    peer.console.wait(f"bench: end {case} ;", 60)
                after, made_after, used_after, ended = readings.exits(pid), calls.count(), readings.cpu_ms(pid), time.monotonic()
                reasons_of_case = profiled.end(pid) if profiled else None
                if done is None and talk:
                    done = talk.bytes * 8 / 1e6 / talk.took, talk.bytes / 65536, {}
                if done is None:
                    done = paths.figure(case, peer.console.wait(f"bench: output {case} ", 60)[1])
                value, requests, more = done
                requests = max(requests, 1)
                if profiled:
                    more["profile"] = reasons.each(reasons_of_case, requests)
                kvm = difference(after, before)
                costs = {"exits": kvm.get("exits", 0) / requests, "interrupts": kvm.get("irq_injections", 0) / requests, "cpu_us": (used_after - used) * 1000 / requests}
                if made is not None:
                    costs["calls"] = (made_after - made) / requests
                self.add(round_, name, f"{case}-q{vcpus}", value, requests=requests, seconds=ended - began, kvm=kvm, **costs, **more)
        finally:
            calls.end()
            if talk:
                talk.end()

    def boot(self, round_, kind, cases, vcpus):
        peer = self.peer(kind)
        server = subprocess.Popen(["iperf3", "-s", "-B", HOST], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        begin = time.monotonic()
        try:
            peer.run(self.guest_of(cases, vcpus))
            self.loads(peer, kind.name, round_, cases, vcpus)
        except (RuntimeError, OSError, StopIteration, TypeError, IndexError, ValueError) as error:
            self.fail(round_, peer, error)
        finally:
            peer.end()
            server.kill()
            server.wait()
        print(f"  {kind.name:18} {vcpus} vCPU, {time.monotonic() - begin:.0f} s: " + "  ".join(
            f"{sample['case']} {sample['value']:.4g}" for sample in self.samples if sample.get("round") == round_ and sample["vmm"] == kind.name and "value" in sample and sample["case"].endswith(f"-q{vcpus}")))

    def native(self, round_, cases, vcpus):
        """The same loads on the host itself, from its cache as the VMMs' are: the limit."""
        with subprocess.Popen(["iperf3", "-s", "-B", OTHER_HOST], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
            try:
                for case in cases:
                    kind = paths.kind_of(case)
                    if kind == "vsock":
                        continue
                    if case == "rtt":
                        value, _ = self.ping(OTHER_END)
                    else:
                        words = paths.fio(case, self.data, self.seconds, vcpus) if kind == "block" else f"ip netns exec {OTHER} {paths.iperf(case, OTHER_HOST, self.seconds)}"
                        value = paths.figure(case, subprocess.run(words.split(), capture_output=True, text=True).stdout.replace("\n", "|"))[0]
                    self.add(round_, "native", f"{case}-q{vcpus}", value)
            finally:
                server.kill()

    def run(self):
        begin = time.monotonic()
        if self.options.round and os.path.getsize(self.options.out):
            with open(self.options.out) as out:
                earlier = json.load(out)
            self.samples, begin = earlier["samples"], begin - earlier["seconds"]
        round_ = self.options.round
        for kind in self.options.path:
            cases = [case for case in (paths.all_cases(kind) if self.options.only else paths.USUAL[kind].split())
                     if not self.options.only or any(fnmatch.fnmatch(case, pattern) for pattern in self.options.only)]
            if not cases:
                continue
            takers = [taker for taker in vmm.PATHS[kind] if taker.name in (self.options.vmms or [taker.name])]
            # Others take part where they are asked for by name, and have no path of their own.
            everywhere = [vmm.KNOWN[name] for name in self.options.vmms if name in vmm.KNOWN]
            takers += [taker for taker in everywhere if not any(taker in of for of in vmm.PATHS.values())]
            # Another one goes first in each round.
            takers = takers[round_ % len(takers):] + takers[:round_ % len(takers)] if takers else []
            for vcpus in self.options.queues:
                print(f"round {round_ + 1} of {self.options.rounds}, {kind}, {time.monotonic() - begin:.0f} s, load {os.getloadavg()[0]:.2f}")
                if not self.options.vmms or "native" in self.options.vmms:
                    self.native(round_, cases, vcpus)
                for taker in takers:
                    self.boot(round_, taker, cases, vcpus)
                    self.save(time.monotonic() - begin)
        self.save(time.monotonic() - begin)


def main():
    words = lambda text: [word for word in re.split("[, ]+", text) if word]
    parser = argparse.ArgumentParser(description=__doc__)
    for path in ("yun", "firecracker", "qemu", "images", "out"):
        parser.add_argument(f"--{path}", required=True)
    parser.add_argument("--path", type=words, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--round", type=int, required=True, help="this one, from 0; what earlier ones left in the file of samples stays there")
    parser.add_argument("--only", type=words, default=[])
    parser.add_argument("--vmms", type=words, default=[])
    parser.add_argument("--queues", type=lambda text: [int(word) for word in words(text)], default=[1])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--profile", action="store_true", help="keep what exits and system calls were for")
    options = parser.parse_args()
    options.path = list(paths.KINDS) if options.path == ["all"] else options.path
    for unknown in set(options.path) - set(paths.KINDS) | set(options.vmms) - {*vmm.KNOWN, "native"}:
        parser.error(f"no path or VMM '{unknown}'")
    known = [case for kind in options.path for case in paths.all_cases(kind)]
    for pattern in options.only:
        if not fnmatch.filter(known, pattern):
            parser.error(f"no case is called '{pattern}': there are {' '.join(known)}")
    Paths(options).run()


main()
