"""Federation over Flower: its runtime, the protocol of server and clients, the engines, and the network."""
