"""`agentbridge up`: NATS and one process of each kind on this machine, started, watched, restarted and stopped."""
