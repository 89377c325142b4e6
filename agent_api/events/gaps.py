"""What a reader may have missed, told instead of skipped."""

import msgspec

from agent_api.events.positions import Position, epoch_of
from protocol.runtime.jetstream import StreamInfo


class Gap(msgspec.Struct, frozen=True):
    """Messages may have been missed; the reader goes on after `position`."""

    reason: str
    message: str
    position: Position


def expired(position: Position) -> Gap:
    """Return the gap of a reader who asks for what the stream has let go."""
    return Gap("expired", "some of what followed is not kept any more; going on with the oldest that is", position)


def recreated(position: Position) -> Gap:
    """Return the gap of a reader of an earlier stream."""
    return Gap("recreated", "the stream of events was made anew; going on with the oldest that it holds", position)


def unknown(position: Position) -> Gap:
    """Return the gap of a reader who names what this stream has never reached, or what is no position at all."""
    return Gap("unknown", "this stream of events does not know this position; going on from now", position)


def gap_of(position: Position, info: StreamInfo) -> Gap | None:
    """Return what a reader at this position has missed, None where the stream holds all that follows it."""
    epoch, last = epoch_of(info.created), info.state.last_seq
    kept = Position(epoch, max(info.state.first_seq - 1, 0))
    if position.epoch != epoch:
        return recreated(kept)
    if position.sequence > last:
        return unknown(Position(epoch, last))
    if position.sequence < kept.sequence:
        return expired(kept)
    return None
