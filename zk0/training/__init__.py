"""Local training of one client in one round: optimizer steps, FedProx, SCAFFOLD, feature cache, sharing a GPU."""
