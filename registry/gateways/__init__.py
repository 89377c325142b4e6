"""A registry's view of the gateways: alive, suspected or lost, and whether their reports are applied."""
