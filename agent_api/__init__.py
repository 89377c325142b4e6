"""The HTTP side for agents: commands, discovery, health."""
