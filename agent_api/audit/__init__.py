"""The audit stream as administrators read it: pages of the past, newest first, and records as they come."""
