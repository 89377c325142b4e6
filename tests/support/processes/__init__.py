"""Real processes of ours, and what surrounds them."""
