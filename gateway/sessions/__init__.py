"""Sessions of applications: `core` decides without I/O, `live` performs, `table` keeps them, `replies` answers."""
