"""Connections of peers: turns of the event loop for their input, and shares of the memory that they use."""
