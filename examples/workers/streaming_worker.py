"""A worker in Python that speaks while its voice is still being made, and stops when its task is stopped.

    pip install redis
    AUDIO_ROOT=/tmp/aivtuber_tasks REDIS_URL=redis://localhost:6379 python streaming_worker.py

Put your streaming TTS where `voice` is: anything that yields pieces of 16-bit PCM. `AUDIO_ROOT` is the gateway's
`audio_root`. Without a Redis, `REDIS_URL` is the gateway's inbox, and the tasks come from somewhere else.
"""

import json
import math
import os
import pathlib
import struct
import threading
import time

import redis

REDIS = redis.from_url(os.environ.get("REDIS_URL", "redis://localhost:6379"))
AUDIO_ROOT = pathlib.Path(os.environ.get("AUDIO_ROOT", "/tmp/aivtuber_tasks"))
RATE = 24_000
# A worker that nobody listens to waits for this long, then gives up: less than the gateway's `audio_stall`.
PATIENCE = 8


def voice(text):
    """A stand-in: a tone, a fifth of a second for each letter, made a little faster than it is heard."""
    for letter in range(len(text)):
        at = letter * RATE // 5
        yield b"".join(struct.pack("<h", int(12_000 * math.sin(2 * math.pi * 330 * n / RATE))) for n in range(at, at + RATE // 5))
        time.sleep(0.15)


class Controls:
    """What is said about the tasks at hand: STOP, LEFT, BACK."""

    def __init__(self):
        self.last = {}
        self.news = threading.Condition()
        self.pubsub = REDIS.pubsub()
        self.pubsub.psubscribe(**{"task_control:*": self.hear})
        self.pubsub.run_in_thread(sleep_time=1, daemon=True)

    def hear(self, message):
        task_id = message["channel"].decode().removeprefix("task_control:")
        with self.news:
            if task_id in self.last:
                self.last[task_id] = json.loads(message["data"]).get("action")
                self.news.notify_all()

    def may_go_on(self, task_id):
        """Waits while nobody listens. False: stop."""
        with self.news:
            self.news.wait_for(lambda: self.last[task_id] != "LEFT", PATIENCE)
            return self.last[task_id] not in ("STOP", "LEFT")


def wav_head():
    """Of a WAV whose length is not known yet."""
    unknown = 0xFFFFFFFF
    head = struct.pack("<4sI4s4sIHHIIHH", b"RIFF", unknown, b"WAVE", b"fmt ", 16, 1, 1, RATE, 2 * RATE, 2, 16)
    return head + struct.pack("<4sI", b"data", unknown)


def publish(task_id, **result):
    REDIS.publish(f"task_response:{task_id}", json.dumps(result))


def answer(task_id, text, controls):
    controls.last[task_id] = None
    name = f"{task_id}.wav"
    # Without a buffer: what is written can be sent at once.
    with open(AUDIO_ROOT / name, "wb", buffering=0) as sound:
        sound.write(wav_head())
        publish(task_id, text=f"You said: {text}", audio_file=name, audio_growing=True)
        for piece in voice(text):
            if not controls.may_go_on(task_id):
                print(f"stopped task={task_id}", flush=True)
                break
            sound.write(piece)
    publish(task_id, audio_end=name)
    del controls.last[task_id]


AUDIO_ROOT.mkdir(parents=True, exist_ok=True)
controls = Controls()
print("worker waits for tasks", flush=True)
while True:
    # A second at a time: the client's own timeout would end a longer wait with an exception.
    if (entry := REDIS.brpop("ai_tasks", timeout=1)) is None:
        continue
    _, task = entry
    task_id, _, text = task.decode().partition(" ")
    answer(task_id, text, controls)
