"""What every process needs to run: settings, logs, NATS, endpoints, callers, tokens, its life from start to exit."""
