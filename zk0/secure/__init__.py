"""Secure aggregation (SecAgg+, Bell et al., CCS 2020): a server learns the sum of the updates, and no single one."""
