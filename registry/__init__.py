"""The registry: keeps the record of every connected client, and answers agents' questions about them."""
