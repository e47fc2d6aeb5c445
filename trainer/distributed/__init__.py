"""Processes, the device mesh, and the table that says where each array lives."""
