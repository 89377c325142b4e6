"""`python -m agent_api`: one agent API process, configured by the environment."""

from protocol.runtime.process import early_signals

if __name__ == "__main__":
    early_signals.end_at_once()  # before the slow imports

# isort: split

from agent_api.service import serving
from agent_api.settings import ApiSettings
from protocol.runtime.process import life


def main() -> None:
    """Run an agent API until a signal ends it."""
    life.run("agent_api", ApiSettings, serving, user="api")


if __name__ == "__main__":
    main()
