"""Commands under an idempotency key."""
