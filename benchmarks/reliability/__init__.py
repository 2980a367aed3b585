"""Does it lose data? Does it ever say nothing where something is wrong?

    python -m benchmarks.reliability [PART ...] [--count N] [--again]

Runs the parts whose results are missing in docs/performance/reliability.json (or, with --again, all that are named) and
writes the tables of docs/reliability.md from the results.
"""
