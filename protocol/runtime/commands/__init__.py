"""Commands as every process meets them: the caller's side, idempotency entries, the audit stream."""
