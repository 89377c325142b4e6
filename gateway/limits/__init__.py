"""Rates of commands and frames, and shares of the buffer in front of NATS."""
