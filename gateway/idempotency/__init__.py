"""Commands with an idempotency key."""
