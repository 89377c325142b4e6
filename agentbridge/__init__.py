"""The `agentbridge` command: starts a deployment, makes its tokens and configuration, and inspects it."""

PROCESSES = ("up", "gateway", "agent-api", "registry")  # commands that run until a signal
