"""Real NATS servers, and what tests read and write in their streams."""
