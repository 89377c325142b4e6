"""Events of applications and changes of clients, as agents read them: live, and resumed from where a reader was.

One `Hub` a process follows the stream by one consumer and keeps the recent messages in memory. Whoever serves readers
(server-sent events, the agent WebSocket) opens one `Reader` each and writes what it gets:

    async with hub.open(principal, Filters(names=("todo.*",)), since=None) as reader:
        while True:
            for item in await reader.next():  # `Message` or `Gap`; raises a BridgeError when the reader must end
                send(item)

`next()` may be cancelled without loss, by a timeout for a heartbeat say; `reader.position` is then what a reader may
resume from, past all that its filters hide. A reader that is slow costs no memory of its own: it is a place in the
recent messages, and is told and ended where these have moved past it.
"""
