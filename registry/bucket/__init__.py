"""The clients bucket: writes its entries and announces their changes."""
