"""The messages between server and clients, and what each side does with them: the same on every engine."""
