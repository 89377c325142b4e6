"""The HTTP routes: they read a request, ask the core and write the answer."""
