"""Dialects as clients speak them: the frames that they write, and the words of what they read."""
