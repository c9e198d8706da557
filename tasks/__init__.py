"""Prefect tasks: a decorator, a docstring, a late import, a call."""
