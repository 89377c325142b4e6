"""Events of applications and changes of clients for agents: live, and resumed from a reader's position.

One `Hub` a process follows each tenant with readers by one consumer, and keeps the recent messages in memory. The
routes (server-sent events, the agent WebSocket) open one `Reader` for each of their peers and write its items:

    async with hub.open(principal, Filters(names=("todo.*",)), since=None) as reader:
        while True:
            for item in await reader.next():  # `Message` or `Gap`; raises a BridgeError when the reader must end
                send(item)

`next()` may be cancelled without loss, by a timeout for a heartbeat say; `reader.position` is then the resume position,
behind all messages that its filters hide. A slow reader costs no memory of its own, because it is only a place among
the recent messages. If these move past it, it reads on from history, and is ended if it stays too slow.
"""
