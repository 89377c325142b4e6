"""The product's streams and buckets: makes them at their first use, grows them, and retires those of old versions."""
