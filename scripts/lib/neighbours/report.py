"""report.py: prints the table of a file of samples, called by scripts/neighbours."""

import argparse
import statistics
import sys

from latencies import percentile, together
from tables import number, record_of, show  # of scripts/bench

ORDER = {
    "idle": "nothing (noise)", "process": "no microVM: busy processes", "cpu": "CPU", "memory": "memory", "oom": "memory over its limit", "disk": "disk", "net": "network",
    "console": "console", "log": "log", "api": "API",
}
YARDSTICKS = ("idle", "process")
WITHIN = 0.20


def table(record):
    """Header, rows, and by how much each flood misses the target."""
    good = [sample for sample in record["samples"] if "error" not in sample]
    header = ["neighbour's flood", "reads", "p99 ms", "ratio", "of rounds", "p50", "CPU time", "ratio", "of rounds", "work", "its CPUs", "uncharged", "log KiB/s", "console KiB/s", "killed"]
    rows, missed = [], []
    for flood, words in ORDER.items():
        samples = [sample for sample in good if sample["flood"] == flood]
        if not samples:
            continue
        # A percentile is of all reads of all rounds, a ratio the median of those of single rounds: rounds differ more than floods do.
        counts = {state: together([sample[state]["latencies"] for sample in samples]) for state in ("quiet", "loud")}
        of_rounds = {
            **{f"p{percent}": [percentile(sample["loud"]["latencies"], percent) / percentile(sample["quiet"]["latencies"], percent) for sample in samples] for percent in (50, 99)},
            "cpu": [sample["loud"]["working"]["victim"] / sample["quiet"]["working"]["victim"] for sample in samples],
        }
        spread = lambda name: f"{min(of_rounds[name]):.2f}-{max(of_rounds[name]):.2f}"
        loud = lambda when, name: statistics.median(sample["loud"][when][name] for sample in samples)
        elsewhere = lambda used: used["all"] - used["victim"] - used["attackers"]
        uncharged = statistics.median(elsewhere(sample["loud"]["reading"]) - elsewhere(sample["quiet"]["reading"]) for sample in samples)
        late, less = statistics.median(of_rounds["p99"]), statistics.median(of_rounds["cpu"])
        work = statistics.median(sample["loud"]["work"] / sample["quiet"]["work"] for sample in samples)
        rows.append([
            words, str(sum(sum(of.values()) for of in counts.values())), number(percentile(counts["loud"], 99)), f"{late:.2f}", spread("p99"), f"{statistics.median(of_rounds['p50']):.2f}", f"{loud('working', 'victim'):.2f}", f"{less:.2f}", spread("cpu"),
            f"{work:.2f}", f"{loud('working', 'attackers'):.2f}", f"{uncharged:+.2f}", number(loud("reading", "log") / 1024), number(loud("reading", "console") / 1024), str(sum(sample["kills"] for sample in samples) or ""),
        ])
        if flood not in YARDSTICKS and (late > 1 + WITHIN or less < 1 - WITHIN):
            missed.append(f"{words}: p99 {(late - 1) * 100:+.0f}%, CPU time {(less - 1) * 100:+.0f}%")
    return header, rows, missed


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--load", help="file with the load of the machine outside: average, running/all, a line each")
    parser.add_argument("file")
    options = parser.parse_args()
    record = record_of(options)
    header, rows, missed = table(record)
    show(header, rows, options.markdown)
    print(f"\n{record['rounds']} rounds in {record['seconds']} s, {record['cpus']} CPUs, kernel {record['kernel']}, victim {record['limits']['victim_cpus']} CPUs, attacker {record['limits']['attacker_cpus']}", end="")
    if record.get("load"):
        print(f"; load of the machine outside {statistics.median(record['load']):.1f} median", end="")
    print()
    for line in missed:
        print(f"more than {WITHIN:.0%} from the target: {line}")
    failed = [sample for sample in record["samples"] if "error" in sample]
    for sample in failed:
        print(f"failed: {sample['flood']} in round {sample['round'] + 1}, the victim {'lived' if sample['victim_lives'] else 'died'}: {sample['error'].splitlines()[0]}")
    sys.exit(1 if failed else 0)


main()
