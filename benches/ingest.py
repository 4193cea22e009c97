"""A service in Python that takes speech and passes it on, as small as one can be: for the benchmark."""

import base64
import json

clients = {}


def message(**fields):
    return {"type": "websocket.send", "text": json.dumps(fields, separators=(",", ":"))}


async def app(scope, receive, send):
    if scope["type"] != "websocket":
        return
    await receive()
    await send({"type": "websocket.accept"})
    task = scope["path"].removeprefix("/ws/output/")
    if task != scope["path"]:
        clients[task] = send
    while (event := await receive())["type"] == "websocket.receive":
        if not event.get("text"):
            continue
        chunk = json.loads(event["text"])
        task = chunk["sessionId"]
        client = clients[task]
        if chunk["type"] == "CONTROL":
            await client(message(type="audio_complete", task_id=task))
            continue
        pcm = base64.b64decode(chunk["pcm"])
        await client(message(type="audio_chunk", task_id=task, chunk_id=chunk["seq"], total_chunks=None))
        await client({"type": "websocket.send", "bytes": pcm})
    clients.pop(task, None)
