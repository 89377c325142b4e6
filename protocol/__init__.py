"""What crosses NATS and the WebSocket: names, shapes and rules that every process shares."""

PROTOCOL_VERSION = "1"
