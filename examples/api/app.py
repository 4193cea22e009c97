"""An API and the input WebSocket of an AI in one ASGI application, for any server: uvicorn app:app --port 8100

The gateway is in front of both, on one port: `config.toml` in this folder.
"""

import asyncio
import json
import uuid

VOICES = ["alto", "soprano"]


async def app(scope, receive, send):
    if scope["type"] == "websocket":
        await converse(receive, send)
    elif scope["type"] == "http":
        await answer(scope, receive, send)


async def converse(receive, send):
    """/ws/input: each text becomes a task, whose results a worker publishes."""
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": json.dumps({"task_id": str(uuid.uuid4())})})


async def answer(scope, receive, send):
    match scope["method"], scope["path"]:
        case "GET", "/voices":
            await respond(send, 200, {"voices": VOICES})
        case "POST", "/recordings":
            # The gateway passes an upload on while it comes: it may be of any size.
            length = 0
            while (message := await receive())["type"] == "http.request":
                length += len(message.get("body", b""))
                if not message.get("more_body"):
                    break
            await respond(send, 201, {"bytes": length})
        case "GET", "/progress":
            await begin(send, 200, b"text/event-stream")
            for percent in (0, 50, 100):
                event = f"data: {percent}\n\n".encode()
                await send({"type": "http.response.body", "body": event, "more_body": True})
                await asyncio.sleep(0.1)
            await send({"type": "http.response.body"})
        case _:
            await respond(send, 404, {"error": "not found"})


async def respond(send, status, value):
    await begin(send, status, b"application/json")
    await send({"type": "http.response.body", "body": json.dumps(value).encode()})


async def begin(send, status, kind):
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind)]})
