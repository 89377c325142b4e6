"""Orders: their checks, their targets, their outcomes. No HTTP, no frames of a socket."""
