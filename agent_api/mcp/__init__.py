"""`/mcp`: the Model Context Protocol, both of its eras, on any replica.

Its library is imported at the first request, by `server` and `exchange` alone.
"""
