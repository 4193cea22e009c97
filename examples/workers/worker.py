"""A worker in Python: takes tasks from Redis, answers with text and a sound, and publishes.

    pip install redis
    AUDIO_ROOT=/tmp/aivtuber_tasks REDIS_URL=redis://localhost:6379 python worker.py

Put your model where `answer` is. `AUDIO_ROOT` is the gateway's `audio_root`.
"""

import json
import math
import os
import pathlib
import struct
import wave

import redis

REDIS = redis.from_url(os.environ.get("REDIS_URL", "redis://localhost:6379"))
AUDIO_ROOT = pathlib.Path(os.environ.get("AUDIO_ROOT", "/tmp/aivtuber_tasks"))
RATE = 24_000


def answer(text):
    return f"You said: {text}"


def speak(text, file):
    """Writes a tone, a tenth of a second for each letter. A voice would go here."""
    with wave.open(str(file), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(RATE)
        samples = (int(12_000 * math.sin(2 * math.pi * 330 * n / RATE)) for n in range(len(text) * RATE // 10))
        sound.writeframes(b"".join(struct.pack("<h", sample) for sample in samples))


AUDIO_ROOT.mkdir(parents=True, exist_ok=True)
print("worker waits for tasks", flush=True)
while True:
    # A second at a time: the client's own timeout would end a longer wait with an exception.
    if (entry := REDIS.brpop("ai_tasks", timeout=1)) is None:
        continue
    _, task = entry
    task_id, _, text = task.decode().partition(" ")
    reply = answer(text)
    # The file is whole before it has its name, and it has its name before the result is published.
    unfinished = AUDIO_ROOT / f".{task_id}.wav"
    speak(reply, unfinished)
    unfinished.rename(AUDIO_ROOT / f"{task_id}.wav")
    REDIS.publish(f"task_response:{task_id}", json.dumps({"text": reply, "audio_file": f"{task_id}.wav"}))
