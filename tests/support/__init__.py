"""What tests share: a real NATS server, real processes, simulated applications, and patience with an end."""
