"""Commands: the caller's side, the entries of idempotency keys, the audit stream."""
