"""A backend on the `websockets` library: echoes, does what a message that begins with `!` asks for, tells how it ended.

It prints `port N` first, then one JSON line for each connection that closed. `ws_backend.js` is its twin.
"""

import asyncio
import json
import sys

from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed

PATTERN = bytes(range(251))


def pattern(size):
    return (PATTERN * (size // 251 + 1))[:size]


async def talk(connection):
    try:
        async for message in connection:
            if isinstance(message, str) and message.startswith("!"):
                await obey(connection, *message[1:].split(" ", 1))
            else:
                await connection.send(message)
    except ConnectionClosed:
        pass
    finally:
        await connection.wait_closed()
        tell(connection)


def choose(connection, offered):
    """Ours first; none is fine, too, which the library's own rule would refuse."""
    return next((name for name in ("chat.v2", "chat.v1") if name in offered), None)


async def obey(connection, order, rest=""):
    if order == "head":
        request = connection.request
        head = {"target": request.path, "headers": list(request.headers.raw_items())}
        await connection.send(json.dumps(head))
    elif order == "close":
        code, _, reason = rest.partition(" ")
        await connection.close(int(code), reason)
    elif order == "ping":
        await (await connection.ping(rest.encode()))
        await connection.send(f"ponged {rest}")
    elif order == "binary":
        await connection.send(pattern(int(rest)))
    elif order == "fragments":
        await connection.send([f"part{number}." for number in range(int(rest))])
    else:
        await connection.send(f"unknown order {order}")


def tell(connection):
    end = {
        "target": connection.request.path,
        "code": connection.close_code,
        "reason": connection.close_reason,
    }
    print(json.dumps(end), file=sys.stderr, flush=True)


async def main():
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    server = await serve(
        talk,
        "127.0.0.1",
        port,
        max_size=None,
        ping_interval=None,
        select_subprotocol=choose,
    )
    print("port", server.sockets[0].getsockname()[1], file=sys.stderr, flush=True)
    await server.serve_forever()


asyncio.run(main())
