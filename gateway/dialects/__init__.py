"""Translators between the frames of a connection and our messages, one module each. Sans-I/O."""
