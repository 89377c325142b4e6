"""`python -m agent_api`: one agent API process, configured by the environment."""

from agent_api.service import start
from agent_api.settings import ApiSettings
from protocol.runtime import process


def main() -> None:
    """Run an agent API until a signal ends it."""
    process.run("agent_api", ApiSettings, start, user="api")


if __name__ == "__main__":
    main()
