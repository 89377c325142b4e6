"""The agent API: how AI agents find clients, send them commands and read their events, by HTTP, SSE and WebSocket."""
