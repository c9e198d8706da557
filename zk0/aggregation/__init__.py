"""The server's arithmetic: verify updates, aggregate them into the next global weights, measure contributions."""
