"""The clients bucket: its entries, the writing of them, and the announcement of changes."""
