"""The gateways as a registry sees them: alive, suspected or lost, and whether their reports are known."""
