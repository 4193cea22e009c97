"""A small input handler: takes uploads on /ws/input and puts each text into a Redis list for workers.

    pip install websockets redis
    LISTEN=127.0.0.1:8001 REDIS_URL=redis://localhost:6379 python input_handler.py

An entry of the list `ai_tasks` is the id of the task, a space, and the text.
"""

import asyncio
import json
import os
import uuid

import redis.asyncio
from websockets.asyncio.server import serve

HOST, PORT = os.environ.get("LISTEN", "127.0.0.1:8001").rsplit(":", 1)
REDIS = redis.asyncio.from_url(os.environ.get("REDIS_URL", "redis://localhost:6379"))
TEXT_BYTES_MAX = 64 * 1024


async def take_upload(ws):
    task_id = str(uuid.uuid4())
    text = b""
    await ws.send(json.dumps({"type": "system", "action": "task_id_assigned", "task_id": task_id}))
    async for message in ws:
        if isinstance(message, bytes):
            text += message
            if len(text) > TEXT_BYTES_MAX:
                await ws.close(1009, "the text is too long")
                return
        elif json.loads(message).get("action") == "upload_complete":
            await REDIS.lpush("ai_tasks", f"{task_id} ".encode() + text)
            queued = {"type": "system", "action": "upload_processed", "status": "queued", "task_id": task_id}
            await ws.send(json.dumps(queued))


async def main():
    async with serve(take_upload, HOST, int(PORT)) as server:
        print(f"input handler on {HOST}:{PORT}", flush=True)
        await server.serve_forever()


asyncio.run(main())
