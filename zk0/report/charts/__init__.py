"""Charts of a session, drawn with matplotlib."""
