"""Tables of a report: the same cells for HTML and Markdown."""
