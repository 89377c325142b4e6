"""The agents' WebSocket: many commands in flight, events and capabilities over one connection."""
