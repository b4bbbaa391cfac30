"""client.py SOCKET KIND: sends requests to a microVM's API as fast as they are answered, for ever. KIND: requests or refusals.
Says so on standard output once it has begun."""

import itertools
import json
import socket
import sys

import vmm  # of scripts/bench

REQUESTS = [("GET", "/", None), ("GET", "/vm/config", None), ("GET", "/metrics", None), ("GET", "/machine-config", None)]
REFUSALS = [
    ("PUT", "/actions", {"action_type": "Nonsense"}), ("PUT", "/actions", {"action_type": "InstanceStart"}), ("PATCH", "/drives/none", {"drive_id": "none", "path_on_host": "x" * 2000}),
    ("PUT", "/boot-source", {"kernel_image_path": "/no/such\nfile" * 50}), ("GET", "/" + "nowhere" * 200, None),
]


def main():
    path, kind = sys.argv[1:]
    requests = {"requests": REQUESTS, "refusals": REFUSALS}[kind]
    for number in itertools.count():
        http = vmm.UnixHttp(path)
        try:
            # Some over one connection, some each over one of its own; refusals also as bytes that are no request.
            for _ in range(20 if number % 2 else 1):
                for method, target, body in requests:
                    http.request(method, target, body and json.dumps(body), {"Content-Type": "application/json"})
                    http.getresponse().read()
            if number == 0:
                print("begun", flush=True)
            if kind == "refusals":
                http.connect()
                http.sock.sendall(b"\x00nonsense\r\n\r\n")
                http.sock.recv(4096)
        except (OSError, vmm.http.client.HTTPException, socket.timeout):
            pass
        finally:
            http.close()


main()
