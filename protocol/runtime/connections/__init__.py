"""Connections of peers: turns of the loop for their input, and what they may hold together."""
