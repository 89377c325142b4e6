"""The only place that touches the insides of nats-py."""
