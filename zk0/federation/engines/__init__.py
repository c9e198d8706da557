"""Engines carry messages between server and clients: worker processes, Ray, or nodes over the network."""
