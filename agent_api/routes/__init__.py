"""The HTTP routes: each decodes a request, calls the core, and writes the answer."""
