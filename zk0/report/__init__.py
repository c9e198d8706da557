"""The door to pictures: charts, videos, the report."""
