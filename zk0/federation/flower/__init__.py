"""The interface to Flower's runtime: its HTTP APIs, its runs and tasks, and the format of its messages."""
