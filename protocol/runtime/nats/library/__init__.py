"""The only folder that uses private attributes of nats-py."""
