"""The NATS configuration of a deployment, and the folder of `agentbridge up`."""
