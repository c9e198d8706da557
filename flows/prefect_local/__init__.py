"""Starts a Prefect server, its worker and the deployments on this machine, and sends requests to the server.

The processes end with the command that started them, even when that is killed (why not `prefect server start
--background`: docs/decisions/0022-prefect-server-process.md).
"""
