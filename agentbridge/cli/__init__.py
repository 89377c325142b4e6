"""Shared parts of the commands: credentials, output, signals, requests and subscriptions."""
