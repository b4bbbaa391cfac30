"""Latencies, counted in steps as the victim prints them."""

from guests import DIGITS


def percentile(counts, percent):
    """The latency in ms that so many percent don't exceed, to the middle of its step."""
    wanted = sum(counts.values()) * percent / 100
    for step in sorted(counts, key=int):
        wanted -= counts[step]
        if wanted <= 0:
            shifts, value = divmod(int(step), DIGITS)
            return (value + 0.5) * 2**shifts / 1000
    return 0.0


def together(all_counts):
    """Several of them as one."""
    sum_ = {}
    for counts in all_counts:
        for step, count in counts.items():
            sum_[step] = sum_.get(step, 0) + count
    return sum_
