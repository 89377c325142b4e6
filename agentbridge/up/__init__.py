"""`agentbridge up`: starts, watches, restarts and stops NATS and one process of each kind on this machine."""
