"""Logins of agents to NATS, by the server's auth callout."""
