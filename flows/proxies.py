"""Proxy variables of the environment: servers on this machine are reached without a proxy."""

import os

LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1")
_EXEMPTIONS = ("NO_PROXY", "no_proxy")
_PROXY_SUFFIX = "_proxy"
_GRPC_EXEMPTIONS = "no_grpc_proxy"
"""gRPC reads this variable in place of no_proxy where it is set."""


def exempt_loopback_from_proxies() -> None:
    """Add this machine's loopback to NO_PROXY where a proxy is set, for this process and for those that it starts.

    Prefect's client, Flower's processes and our own requests to servers on this machine would ask the proxy otherwise,
    which cannot reach them. The Hub is still reached through the proxy. Both spellings of NO_PROXY get the same hosts,
    because libraries differ in which one they read first. Some know `*` (no proxy at all) only where nothing else
    stands beside it.
    """
    exemptions = {_EXEMPTIONS[1], _GRPC_EXEMPTIONS}
    names = {name.lower(): value for name, value in os.environ.items() if value}  # as libraries look for them
    if not any(name.endswith(_PROXY_SUFFIX) and name not in exemptions for name in names):
        return
    hosts = _with_loopback(",".join(os.environ.get(name, "") for name in _EXEMPTIONS))
    os.environ.update(dict.fromkeys(_EXEMPTIONS, hosts))
    if of_grpc := os.environ.get(_GRPC_EXEMPTIONS):
        os.environ[_GRPC_EXEMPTIONS] = _with_loopback(of_grpc)


def _with_loopback(given: str) -> str:
    """Return hosts, separated by commas, and those of loopback; each once.

    >>> _with_loopback("intern.example, localhost")
    'intern.example,localhost,127.0.0.1,::1'
    >>> _with_loopback("intern.example,*")
    '*'
    """
    hosts = dict.fromkeys(host for part in given.split(",") if (host := part.strip()))
    return "*" if "*" in hosts else ",".join(hosts | dict.fromkeys(LOOPBACK_HOSTS))
