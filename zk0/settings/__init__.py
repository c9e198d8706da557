"""Settings of a session with all defaults, loading them from TOML, and the plans that the server sends to clients."""
