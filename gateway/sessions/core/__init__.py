"""The state of sessions, sans-I/O: events and the time go in, effects come out. Nothing awaits or reads a clock."""
