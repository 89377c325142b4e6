"""HTTP itself: connections, heads and bodies, refusals, answers without an end."""
