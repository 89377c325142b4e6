"""`/mcp`: the Model Context Protocol on any replica, in both eras: with a handshake (older) and without (modern).

Only `server` and `exchange` import its library, at the first request.
"""
