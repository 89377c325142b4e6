"""The agents' WebSocket: many commands in flight, what clients tell, what they offer, over one connection."""
