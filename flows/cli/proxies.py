"""Proxy variables of the environment: servers on this machine are reached without a proxy."""

import os

LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1")
_PROXIES = ("http_proxy", "https_proxy", "all_proxy")


def exempt_loopback_from_proxies() -> None:
    """Add this machine's loopback to NO_PROXY where a proxy is set, for this process and for those that it starts.

    Prefect's client, Flower's processes and our own requests to servers on this machine would ask the proxy otherwise,
    which cannot reach them. The Hub is still reached through the proxy. Both spellings of NO_PROXY get the same hosts,
    because libraries differ in which one they read first.
    """
    if not any(os.environ.get(name) or os.environ.get(name.upper()) for name in _PROXIES):
        return
    given = ",".join(os.environ.get(name, "") for name in ("NO_PROXY", "no_proxy")).split(",")
    hosts = dict.fromkeys(host for part in given if (host := part.strip())) | dict.fromkeys(LOOPBACK_HOSTS)
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = ",".join(hosts)
