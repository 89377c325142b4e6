"""Gaps: a reader is told that it may have missed messages. Nothing is skipped silently."""

import msgspec

from protocol.runtime.streams.jetstream import StreamInfo
from protocol.runtime.streams.positions import Position, epoch_of


class Gap(msgspec.Struct, frozen=True):
    """Messages may have been missed. The reader goes on after `position`."""

    reason: str
    message: str
    position: Position


def expired(position: Position) -> Gap:
    """Return the gap for a position after which the stream has dropped messages."""
    return Gap("expired", "some events after this position are no longer kept; going on with the oldest", position)


def recreated(position: Position) -> Gap:
    """Return the gap of a reader of an earlier stream."""
    return Gap("recreated", "the stream of events was made anew; going on with its oldest event", position)


def unknown(position: Position) -> Gap:
    """Return the gap for a position that this stream has never reached, or a malformed one."""
    return Gap("unknown", "this stream of events does not know this position; going on from now", position)


def gap_of(position: Position, info: StreamInfo) -> Gap | None:
    """Return the gap of a reader at a position, or None if the stream has everything after it."""
    epoch, last = epoch_of(info.created), info.state.last_seq
    kept = Position(epoch, max(info.state.first_seq - 1, 0))
    if position.epoch != epoch:
        return recreated(kept)
    if position.sequence > last:
        return unknown(Position(epoch, last))
    if position.sequence < kept.sequence:
        return expired(kept)
    return None
