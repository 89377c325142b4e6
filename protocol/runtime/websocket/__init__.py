"""One WebSocket of a peer; the only place that touches the insides of websockets."""
