"""Thin Prefect tasks: each calls functions of zk0, and adds retries, run names, artifacts, progress and log lines."""

from tasks.own_errors import log_own_errors_without_traceback

log_own_errors_without_traceback()
