"""The life of a process and its metrics."""
