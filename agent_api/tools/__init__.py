"""Capabilities as tools of language models. No HTTP, no protocol of a host."""
