"""The `agentbridge` command: starts a deployment, makes its tokens and configuration, and inspects it."""
