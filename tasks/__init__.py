"""Thin Prefect tasks: each calls functions of zk0, and adds retries, run names, artifacts, progress and log lines."""
