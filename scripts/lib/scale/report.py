"""report.py: prints the table of a file of figures, called by scripts/scale. Exit status 1 if a budget is missed."""

import argparse
import json
import statistics
import sys

from tables import number, record_of, show

# The agent remembers so many events and operations; until then its memory grows, as it should.
ROUNDS_MIN = 1000
# Figure, words, unit, what it has to be below. Memory of a round: 1,000 of them are a MiB.
ROWS = [
    ("create_ms_median", "create to running, median", "ms", None),
    ("create_ms_p99", "  99th percentile", "ms", None),
    ("created_per_s", "  VMs a second", "/s", None),
    ("create_cpu_ms", "  CPU time of the agent for each", "ms", None),
    ("rss_mib", "memory of the agent", "MiB", 40),
    ("private_mib", "  private", "MiB", 40),
    ("peak_mib", "  most so far", "MiB", None),
    ("alone_rss_mib", "  without VMs", "MiB", None),
    ("list_ms", "GET /v1/vms", "ms", 50),
    ("ls_ms", "yun ls", "ms", 50),
    ("idle_percent", "CPU of the agent, idle", "% of one", 1),
    ("idle_wakeups_per_s", "  wake-ups", "/s", None),
    ("idle_vmms_percent", "  CPU of all VMMs", "% of one", None),
    ("adopted_s", "start after kill -9 until all are as they were", "s", None),
    ("adopt_cpu_s", "  CPU time of the agent", "s", None),
    ("adopted_rss_mib", "  memory of the agent then", "MiB", 40),
    ("removed_per_s", "VMs removed", "/s", None),
    ("rounds_per_s", "rounds of create and delete", "/s", None),
    ("round_cpu_ms", "  CPU time of the agent for each", "ms", None),
    ("round_kib", "  memory a round", "KiB", 1),
]


def table(record):
    """Header and rows, all strings; and what was missed."""
    rows, missed = [], []
    for figure, words, unit, budget in ROWS:
        value = record["figures"].get(figure)
        if value is None:
            continue
        verdict = ""
        if budget is not None:
            good, judged = value < budget, not record["quick"] and (figure != "round_kib" or record["rounds"] >= ROUNDS_MIN)
            verdict = f"below {budget}: " + ("not judged" if not judged else "yes" if good else "NO")
            if not good and judged:
                missed.append(f"{words.strip()} is {number(value)} {unit}, and has to be below {budget}")
        rows.append([words, number(value) if value >= 0 else f"{value:.2f}", unit, verdict])
    for kind, (before, after) in record["figures"].get("counts", {}).items():
        left = record["figures"]["left"][kind]
        rows.append([f"left: {kind}", str(sum(left.values())), f"{before}, {after}", f"none: {'NO' if left else 'yes'}"])
        if left:
            missed.append(f"{kind} are left: " + ", ".join(f"{name} ({count})" if count > 1 else name for name, count in list(left.items())[:5]))
    return ["", "", "", "budget"], rows, missed


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--load", help="file with the load of the machine: average, running/all, a line each")
    parser.add_argument("file")
    options = parser.parse_args()
    record = record_of(options)
    header, rows, missed = table(record)
    record["missed"] = missed
    if options.load:
        with open(options.file, "w") as file:
            json.dump(record, file, indent=1)
    show(header, rows, options.markdown, words=(0, 2, 3))
    print(f"\n{record['vms']} VMs, {record['rounds']} rounds, {'with' if record['network'] else 'without'} networks{', quick' if record['quick'] else ''}: {record['seconds']} s, {record['cpus']} CPUs, kernel {record['kernel']}", end="")
    if record.get("load"):
        print(f"; load of the machine {statistics.median(record['load']):.1f} median, {max(record['load']):.1f} at most", end="")
    print()
    for line in missed:
        print(f"MISSED: {line}")
    if record["error"]:
        print(f"failed: {record['error']}")
    sys.exit(1 if missed or record["error"] else 0)


main()
