"""The gateway: holds the WebSockets of applications and executes commands in their sessions."""
