"""Events of applications and changes of clients for agents: live, and resumed from a reader's position.

A process has one `Hub`. For each tenant with readers it runs one consumer, and keeps the recent messages in memory. The
routes (server-sent events, the agents' WebSocket) open one `Reader` for each peer and write its items:

    async with hub.open(principal, Filters(names=("todo.*",)), since=None) as reader:
        while True:
            for item in await reader.next():  # `Message` or `Gap`; raises a BridgeError when the reader must end
                send(item)

`next()` may be cancelled without loss, for example by a timeout for a heartbeat. `reader.position` is then the position
to resume from, behind all messages that the filters hide. A slow reader costs no memory of its own, because it is only
a position among the recent messages. If these move past it, it reads on from history. If it stays too slow, it is
ended.
"""
