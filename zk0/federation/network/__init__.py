"""A federation over the network: server, nodes, gateway, node keys and certificates, and supervised processes."""
