"""The agent API: AI agents find clients, send them commands and read their events, over HTTP, SSE and WebSocket."""
