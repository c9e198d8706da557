"""Report of a session: charts, tables, videos, metric files, model card and the HTML pages."""
