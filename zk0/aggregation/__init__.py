"""The server's arithmetic: updates checked, combined into the next global weights, measured."""
