"""Secure aggregation (SecAgg+, Bell et al., CCS 2020): a server learns the sum of the clients' updates, and no update."""
