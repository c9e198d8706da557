"""Nightly benchmarks: their ledger, and regressions beyond measurement noise."""
