"""Repair of a dataset: writes a corrected copy in LeRobot v3.0 format; the original is never written to."""
