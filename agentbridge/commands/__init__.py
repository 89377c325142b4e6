"""The commands of `agentbridge`, one module each."""
