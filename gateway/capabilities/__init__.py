"""Capabilities of clients, and the JSON Schemas of their parameters."""
