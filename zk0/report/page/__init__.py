"""HTML pages with their templates, and the session report as Markdown."""
