"""A service in Python that takes speech and passes it on, as small as one can be: for the benchmark."""

import base64
import json

clients = {}


async def app(scope, receive, send):
    if scope["type"] != "websocket":
        return
    await receive()
    await send({"type": "websocket.accept"})
    task = scope["path"].removeprefix("/ws/output/")
    if task != scope["path"]:
        clients[task] = send
    chunks = {}
    while (event := await receive())["type"] == "websocket.receive":
        if not event.get("text"):
            continue
        message = json.loads(event["text"])
        task = message["sessionId"]
        client = clients[task]
        if message["type"] == "CONTROL":
            await client({"type": "websocket.send", "text": json.dumps({"type": "audio_complete", "task_id": task})})
            continue
        pcm = base64.b64decode(message["pcm"])
        chunk = {"type": "audio_chunk", "task_id": task, "chunk_id": message["seq"], "total_chunks": None}
        await client({"type": "websocket.send", "text": json.dumps(chunk)})
        await client({"type": "websocket.send", "bytes": pcm})
    clients.pop(task, None)
