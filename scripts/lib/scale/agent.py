"""The agent as a process, its API, and its stream of events."""

import http.client
import json
import queue
import signal
import socket
import subprocess
import threading
import time

# No answer takes longer, however busy the host is: the measure is another.
PATIENCE_S = 120


class Connection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path):
        super().__init__("yund", timeout=PATIENCE_S)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class Events(threading.Thread):
    """Follows what happens, and gives it to whoever expects something of a VM, with the moment it was seen."""

    def __init__(self, path, since):
        super().__init__(daemon=True)
        self.connection = Connection(path)
        self.connection.timeout = None  # nothing may happen for long
        self.connection.request("GET", f"/v1/events?since={since}&follow=true")
        self.answer = self.connection.getresponse()
        self.wanted = {}
        self.start()

    def run(self):
        try:
            for line in self.answer:
                moment, event = time.monotonic(), json.loads(line)
                waiting = self.wanted.get(event.get("target"))
                if waiting:
                    waiting.put((moment, event))
        except (OSError, ValueError, http.client.HTTPException):
            pass  # its agent was ended

    def expect(self, target):
        self.wanted[target] = queue.SimpleQueue()

    def until(self, target, kind):
        """The moment at which `kind` was seen to happen to `target`, which is expected."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                moment, event = self.wanted[target].get(timeout=max(0, deadline - time.monotonic()))
            except queue.Empty:
                raise RuntimeError(f"{target}: no {kind} within {PATIENCE_S} s") from None
            if event["kind"] == kind:
                return moment
            if event["kind"] == "vm.failed" or (kind == "vm.started" and event["kind"] == "vm.ended"):
                raise RuntimeError(f"{target}: {event['kind']}: {event.get('detail')}")


class Agent:
    """yund, with everything of its own below `work`."""

    def __init__(self, work, network):
        self.work, self.network = work, network
        self.socket, self.state = f"{work}/s", f"{work}/state"
        self.process = self.events = None

    def start(self):
        """Starts it, and returns the seconds until it answered."""
        words = [f"{self.work}/yund", "--socket", self.socket, "--state-dir", self.state, "--vmm", f"{self.work}/yun-vmm", "--jailer", f"{self.work}/yun-jailer"]
        # As much is promised as is asked for: guests that halt need neither CPU nor most of their memory.
        words += ["--overcommit-cpu", "1000000", "--overcommit-memory", "100000", "--vmm-timeout-ms", str(PATIENCE_S * 1000)]
        words += [] if self.network else ["--no-network"]
        begin = time.monotonic()
        with open(f"{self.work}/log", "ab") as log:
            self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        while True:
            try:
                self.ask("GET", "/v1/whoami")
                break
            except (FileNotFoundError, ConnectionRefusedError):
                if self.process.poll() is not None:
                    raise RuntimeError(f"yund ended with {self.process.returncode}; it said last: {self.last_words()}") from None
                if time.monotonic() > begin + PATIENCE_S:
                    raise RuntimeError(f"yund does not answer; it said last: {self.last_words()}") from None
                time.sleep(0.001)
        answered = time.monotonic()
        since = json.loads(self.ask("GET", "/v1/events").splitlines()[-1])["seq"]
        self.events = Events(self.socket, since)
        return answered - begin

    def last_words(self):
        with open(f"{self.work}/log", errors="replace") as log:
            return "".join(log.readlines()[-3:]).strip()

    def end(self, how=signal.SIGTERM):
        if self.process and self.process.poll() is None:
            self.process.send_signal(how)
            self.process.wait(PATIENCE_S)

    def ask(self, method, path, body=None, expected=range(200, 300)):
        """The text of an answer. A connection for each, as the shell does it."""
        connection = Connection(self.socket)
        try:
            headers = {} if body is None else {"Content-Type": "application/json"}
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            text = answer.read().decode()
        finally:
            connection.close()
        if answer.status not in expected:
            raise RuntimeError(f"{method} {path}: {answer.status}: {text.strip()}")
        return text

    def prepare(self):
        """A tenant, and an image of the guest."""
        body = {"name": "halt", "kernel": f"{self.work}/guest.elf", "kernel_args": "do=halt"}
        operation = json.loads(self.ask("POST", "/v1/images", body))["id"]
        operation = json.loads(self.ask("GET", f"/v1/operations/{operation}/wait?timeout_seconds={PATIENCE_S}"))
        if operation["state"] != "succeeded":
            raise RuntimeError(f"the image was not taken in: {operation}")
        self.ask("PUT", "/v1/tenants/scale", {})
        if self.network:
            self.ask("PUT", "/v1/tenants/scale/subnets/net", {"ipv4": "10.99.0.0/16"})

    def vms(self):
        return json.loads(self.ask("GET", "/v1/vms"))

    def create(self, name):
        """Makes a VM; the moments at which it was asked for and was seen to run, and its id."""
        spec = {"image": "halt", "vcpus": 1, "memory_mib": 16}
        if self.network:
            spec["interfaces"] = [{"name": "eth0", "subnet": "net"}]
        self.events.expect(name)
        begin = time.monotonic()
        made = json.loads(self.ask("PUT", f"/v1/tenants/scale/vms/{name}", {"spec": spec}, [201]))
        return begin, self.events.until(name, "vm.started"), made["id"]

    def remove(self, name):
        """Removes a VM; the seconds until it was seen to be gone."""
        begin = time.monotonic()
        self.ask("DELETE", f"/v1/tenants/scale/vms/{name}", expected=[202])
        return self.events.until(name, "vm.deleted") - begin
