"""The clients that an agent may see, and their changes. No HTTP, no frames of a socket."""
