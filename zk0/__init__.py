"""Federated training of robot policies on LeRobot data: see docs/architecture.md for the packages."""

from importlib.metadata import version

__version__ = version("zk0")
"""Version of the installed distribution."""
