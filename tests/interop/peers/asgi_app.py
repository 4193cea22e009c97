"""The same as `http_backend.js`, as an ASGI application on uvicorn, with a WebSocket beside."""

import asyncio
import hashlib
import json
import sys
from urllib.parse import parse_qs

import uvicorn

PATTERN = b"0123456789abcdef" * 4096
more = asyncio.Event()


async def body_of(receive):
    digest, length = hashlib.sha256(), 0
    while True:
        message = await receive()
        body = message.get("body", b"")
        digest.update(body)
        length += len(body)
        if not message.get("more_body"):
            return length, digest.hexdigest()


async def app(scope, receive, send):
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": message["text"]})
        return
    query = parse_qs(scope["query_string"].decode())

    async def respond(status, body=b"", headers=()):
        headers = [*headers, (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    match scope["path"]:
        case "/echo":
            length, sha256 = await body_of(receive)
            headers = [text.decode("latin1") for pair in scope["headers"] for text in pair]
            target = f"{scope['raw_path'].decode()}" + (f"?{scope['query_string'].decode()}" if scope["query_string"] else "")
            seen = {"method": scope["method"], "target": target, "headers": headers, "version": scope["http_version"]}
            await respond(200, json.dumps({**seen, "length": length, "sha256": sha256}).encode())
        case "/download":
            left = int(query["bytes"][0])
            headers = [] if "chunked" in query else [(b"content-length", str(left).encode())]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            while left > 0:
                piece = PATTERN[: min(left, len(PATTERN))]
                left -= len(piece)
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        case "/events":
            headers = [(b"content-type", b"text/event-stream")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
            gone = asyncio.create_task(receive())
            while not gone.done():
                ready = asyncio.create_task(more.wait())
                await asyncio.wait([gone, ready], return_when=asyncio.FIRST_COMPLETED)
                if more.is_set():
                    more.clear()
                    await send({"type": "http.response.body", "body": b"data: 2\n\n", "more_body": True})
                    gone = asyncio.create_task(receive()) if gone.done() and gone.result()["type"] == "http.request" else gone
                elif gone.done() and gone.result()["type"] == "http.request":
                    gone = asyncio.create_task(receive())
            print("stream closed", flush=True)
        case "/more":
            more.set()
            await respond(200, b"sent")
        case "/private":
            await respond(401, b"no", [(b"www-authenticate", b"Basic")])
        case "/moved":
            await respond(302, headers=[(b"location", b"/api/echo")])
        case "/known":
            await send({"type": "http.response.start", "status": 304, "headers": [(b"etag", b'"x"')]})
            await send({"type": "http.response.body", "body": b""})
        case _:
            await respond(404, b"not here")


class Server(uvicorn.Server):
    """Listens by itself: asyncio sets TCP_NODELAY on no socket that it is handed."""

    async def startup(self, sockets=None):
        await super().startup(sockets)
        print(f"port {self.servers[0].sockets[0].getsockname()[1]}", flush=True)


if __name__ == "__main__":
    config = uvicorn.Config(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", lifespan="off")
    asyncio.run(Server(config).serve())
