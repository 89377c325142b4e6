"""Commands: what is ordered, whom that reaches, and what comes of it."""
