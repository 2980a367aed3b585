"""Does it lose data? Does it ever say nothing where something is wrong?

    python -m benchmarks.reliability [kills|memory|disk|fuzz|numbers|all ...] [--quick] [--again]

Measures what is missing in docs/performance/reliability.json (with --again all of the parts that are named) and writes
the tables of docs/reliability.md from all that is there.
"""
