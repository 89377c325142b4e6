"""The shell around a session that another gateway holds now."""

from typing import cast

from support.played.sessions import AGENT_1, call, command, live_session, session

from gateway.sessions.core.effects import Answer
from gateway.sessions.core.resume import Claim, ClaimKind, Rank, SessionClaim
from gateway.sessions.live import MAX_TOLD, NOWHERE, Part
from gateway.sessions.replies import Replies
from protocol.access import ClientView


class Told:
    """Takes answers, by their replies."""

    def __init__(self) -> None:
        self.replies: list[str] = []

    def answer(self, client: ClientView, effect: Answer) -> None:
        self.replies.append(effect.call.reply)


def part() -> Part:
    claim = Claim(Rank(1, "n"), ClaimKind.CLIENT, 1)
    return Part(SessionClaim(lambda: None, claim, 1), (0, 0), "inbox")


async def test_callers_who_have_heard_of_the_loss_from_the_holder_hear_nothing_more() -> None:
    core, told = session("add"), Told()
    live = live_session(core, NOWHERE, lambda _: None, cast("Replies", told))
    live.part = part()
    for number in (1, 2):
        call(core, AGENT_1, command(), f"r{number}", f"_INBOX.{number}", 1.0)
    live.part.tell(["_INBOX.1"])
    live.leave_gateway(moved=False)
    assert told.replies == ["_INBOX.2"]


def test_so_many_replies_are_remembered() -> None:
    remembered = part()
    remembered.tell(str(number) for number in range(MAX_TOLD + 1))
    assert (len(remembered.told), remembered.told[0]) == (MAX_TOLD, "1")
