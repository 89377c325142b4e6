"""Load that keeps a ledger."""
