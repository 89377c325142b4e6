"""The connection of a process to NATS, the servers that it accepts, and fixed endpoints on it."""
