#!/usr/bin/env python3
"""A worker that speaks over ingest: text in, speech out while it is made.

    pip install websockets
    GATEWAY=ws://localhost:8000/ws/ingest/tts python3 ingest_tts.py TASK_ID "Hello there."

The gateway needs a route with `serve = "ingest"` (docs/protocol.md, Speech over a WebSocket). With
a token, put it in the URL: ws://x:TOKEN@localhost:8000/ws/ingest/tts.
"""

import asyncio
import json
import math
import os
import struct
import sys

from websockets.asyncio.client import connect

RATE = 24_000
PIECE_SECONDS = 0.02


async def tts(text):
    """A stand-in for a TTS that streams: 20 ms of a hum for each letter, as fast as it is spoken."""
    samples = int(RATE * PIECE_SECONDS)
    for letter in text:
        pitch = 110 * 2 ** (ord(letter.lower()) % 24 / 12)
        wave = (math.sin(2 * math.pi * pitch * n / RATE) for n in range(samples))
        yield struct.pack(f"<{samples}h", *(int(8000 * value) for value in wave)), letter
        await asyncio.sleep(PIECE_SECONDS)


async def speak(socket, task, text):
    """Sends speech chunk by chunk. Ends early when the listener stops it."""
    stopped = asyncio.create_task(wait_for_stop(socket, task))
    try:
        number = 0
        async for pcm, letter in tts(text):
            if stopped.done():
                return "stopped"
            chunk = {"type": "SPEECH_CHUNK", "sessionId": task, "seq": number, "bytes": len(pcm)}
            if number == 0:
                chunk["audio_type"] = f"audio/L16;rate={RATE}"
            # Any further field goes to the page with its audio, to move the avatar's mouth.
            chunk["viseme"] = letter
            await socket.send(json.dumps(chunk))
            await socket.send(pcm)
            number += 1
        end = {"type": "CONTROL", "action": "END", "sessionId": task, "final": True}
        await socket.send(json.dumps(end))
        return f"spoke {number} chunks"
    finally:
        stopped.cancel()


async def wait_for_stop(socket, task):
    """What the gateway says meanwhile: errors, and STOP when the listener has had enough."""
    async for text in socket:
        message = json.loads(text)
        if message["type"] == "error":
            print("the gateway says:", message["error"], file=sys.stderr)
        elif message.get("action") == "STOP" and message["sessionId"] == task:
            await socket.send(json.dumps({"type": "STOP_ACK", "sessionId": task}))
            return


async def main(task, text):
    gateway = os.environ.get("GATEWAY", "ws://localhost:8000/ws/ingest/tts")
    async with connect(gateway) as socket:
        print(await speak(socket, task, text))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:3]))
