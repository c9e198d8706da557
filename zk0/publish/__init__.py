"""The door to the Hub and to trackers."""
