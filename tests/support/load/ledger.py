"""A ledger of commands: what was sent, what applications executed, what callers were told, and whether all that agrees.

Every command carries its number in its parameters. The two sides write into the ledger independently of each other, so
what AgentBridge lost, doubled or misreported in between shows as a contradiction.
"""

from collections import Counter
from collections.abc import Collection
from typing import Any

from protocol.errors import MEANINGS, Code

SUCCESS = "success"
CUT_OFF = "cut off"  # the agent API died while it held the caller's request
UNREACHED = "unreached"  # there was no agent API to send the request to

NOT_EXECUTED = {UNREACHED, Code.CLIENT_NOT_FOUND.value} | {
    code.value for code, meaning in MEANINGS.items() if meaning.retryable
}
PERHAPS_EXECUTED = {CUT_OFF, Code.CLIENT_LOST.value, Code.TIMEOUT.value, Code.CANCELLED.value}


class Command:
    """One command: to whom it was sent, who executed it, and every terminal answer that its caller was given."""

    def __init__(self, number: int, client_id: str) -> None:
        self.number = number
        self.client_id = client_id
        self.over_http = False  # so that an agent API, too, records what becomes of it
        self.executed_by: list[str] = []
        self.answers: list[str] = []
        self.refusal: Any = None  # what its caller was told, unless it was successful

    @property
    def waits(self) -> bool:
        """Whether its caller has no answer yet."""
        return not self.answers

    def faults(self) -> list[str]:
        """Return what must not be, in words."""
        found = []
        if len(self.answers) != 1:
            found.append(f"{len(self.answers)} terminal answers")
        if len(self.executed_by) > 1:
            found.append("executed more than once")
        if any(client_id != self.client_id for client_id in self.executed_by):
            found.append("executed by somebody else")
        return found + [fault for answer in self.answers for fault in self._faults_of(answer)]

    def _faults_of(self, answer: str) -> list[str]:
        if answer == SUCCESS and not self.executed_by:
            return ["successful without having been executed"]
        if answer in NOT_EXECUTED and self.executed_by:
            return ["executed, though its caller was told that it was not"]
        known = answer == SUCCESS or answer in NOT_EXECUTED or answer in PERHAPS_EXECUTED
        return [] if known else ["an answer that nothing here explains"]

    def __repr__(self) -> str:
        told = f"answers {self.answers} ({self.refusal})" if self.refusal else f"answers {self.answers}"
        return f"command {self.number} for {self.client_id}: {told}, executed by {self.executed_by}"


class Ledger:
    """All commands of a story."""

    def __init__(self) -> None:
        self.commands: list[Command] = []

    def issue(self, client_id: str) -> Command:
        """Write down a command that is about to be sent."""
        command = Command(len(self.commands), client_id)
        self.commands.append(command)
        return command

    def executed(self, number: int, client_id: str) -> None:
        """Write down that an application has begun to execute a command."""
        self.commands[number].executed_by.append(client_id)

    def waiting(self, client_ids: Collection[str] | None = None) -> list[Command]:
        """Return the commands, for these clients or for all, whose callers have no answer yet."""
        return [each for each in self.commands if each.waits and (client_ids is None or each.client_id in client_ids)]

    def outcomes(self) -> Counter[str]:
        """Return how often each answer was given."""
        return Counter(answer for command in self.commands for answer in command.answers)

    def refused(self, allowed: Collection[str]) -> list[Command]:
        """Return the commands that were answered otherwise than by success or as `allowed`."""
        return [each for each in self.commands if not {SUCCESS, *allowed}.issuperset(each.answers)]

    def faults(self) -> list[str]:
        """Return every contradiction; call it when all has come to rest."""
        return [f"{fault}: {command}" for command in self.commands for fault in command.faults()]
