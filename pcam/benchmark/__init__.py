"""Races against what others do, which `scripts/benchmark.py` runs."""
