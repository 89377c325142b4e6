"""JetStream: its API, KV buckets, ordered consumers, direct gets, acknowledgements, positions."""
