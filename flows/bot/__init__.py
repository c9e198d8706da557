"""The command line `zk0bot`."""
