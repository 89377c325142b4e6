"""The names, message shapes and rules that all processes share."""

PROTOCOL_VERSION = "1"
