"""A mirror of the clients bucket in this process's memory."""
