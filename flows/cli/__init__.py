"""The command line `zk0`."""
