"""Figures of interrupted and resumed speech, part of `tests/run figures`: `stop`, `leftover`, `cuts`,
`cuts-growing`, `cuts-ingest`.

- `stop`: from a client's STOP to its STOP_ACK, while audio comes as fast as the client reads. Goal: p99 of 20 ms. Beside it the
  same of a bare process that sends as much and acknowledges at once (`peers/bare_speaker.py`).
- `leftover`: bytes of old audio that leave the gateway's socket after STOP for a client at 1 Mbit/s, with chunks of 4 KiB. Goal: 24 KiB.
- `cuts`, `cuts-growing`, `cuts-ingest`: connections of the client library that break at random bytes of finished files, of files
  that grow, and of speech that a worker pushes. Goal: nothing lost, doubled or out of order.
"""

import array
import base64
import fcntl
import hashlib
import json
import random
import socket
import subprocess
import sys
import termios
import threading
import time

import websockets.sync.client

from gatewaylab import PEERS, ROOT, wire
from gatewaylab.peers import node_env, pattern
from gatewaylab.process import Process
from gatewaylab.results import PREFIX, Waiter, is_waiting, new_task

STOP = json.dumps({"type": "control", "action": "STOP"}).encode()
# The figures, and what `[output]` is for each.
SETTINGS = {"stop": {}, **{name: {"chunk_size": 4096} for name in ("leftover", "cuts", "cuts-growing", "cuts-ingest")}}
# 1 Mbit/s, of everything that the socket carries.
SLOW_BYTES_PER_SECOND = 125_000
SLOW_SECONDS = 3
# Audio that a client could read until it stops it.
STOP_BYTES = 32 << 20


def percentile(samples, percent):
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


def begin(house, name, receive_buffer=None):
    """A client whose task has just got a result with this audio."""
    task = new_task()
    waiter = Waiter(wire.connect(house.gateway.port, receive_buffer=receive_buffer).sock).wait(task)
    is_waiting(house.gateway, task)
    house.redis.publish(task, text="t", audio_file=name)
    return waiter


def stop(house):
    """Seconds from STOP to STOP_ACK."""
    (house.audio / "long.wav").write_bytes(pattern(STOP_BYTES))
    return time_stops(lambda: begin(house, "long.wav"))


def bare_stop():
    """The same of a process that does nothing else."""
    process = Process([sys.executable, str(PEERS / "bare_speaker.py")])
    port = int(process.wait_for_line(r"listening on (\d+)")[1])
    try:
        return time_stops(lambda: Waiter(wire.connect(port).sock).wait(new_task()))
    finally:
        process.kill()


def time_stops(open_waiter, count=300, size=STOP_BYTES):
    """Seconds from STOP to STOP_ACK at clients that have read a part of this audio."""
    chance = random.Random(3)
    samples = []
    for _ in range(count):
        waiter = open_waiter()
        wanted = chance.randrange(1, size // 4)
        received = 0
        while received < wanted:
            frame = waiter.read_message_frame()
            received += len(frame.payload)
        began = time.perf_counter()
        waiter.say(STOP)
        while b"STOP_ACK" not in (frame := waiter.read_message_frame()).payload[:100]:
            assert frame.opcode in (wire.TEXT, wire.BINARY), frame
        samples.append(time.perf_counter() - began)
        waiter.vanish()
    return samples


class SlowReader:
    """Reads a socket at a rate, and takes the frames apart."""

    def __init__(self, sock, rate):
        self.sock, self.rate = sock, rate
        self.began, self.count, self.buffer = time.monotonic(), 0, bytearray()

    def read(self):
        """What the link carries in some milliseconds."""
        time.sleep(0.005)
        due = int((time.monotonic() - self.began) * self.rate) - self.count
        if due > 0:
            data = self.sock.recv(due)
            self.count += len(data)
            self.buffer += data

    def frames(self):
        while found := wire.parse_frame(self.buffer, 0):
            del self.buffer[: len(found.raw)]
            yield found

    def held_by_kernel(self):
        """Bytes that have left the gateway's socket and were not read yet."""
        waiting = array.array("i", [0])
        fcntl.ioctl(self.sock, termios.FIONREAD, waiting)
        return waiting[0]


def leftover(house, count=5):
    """Bytes that left the gateway's socket between STOP and STOP_ACK."""
    (house.audio / "long.wav").write_bytes(pattern(8 << 20))
    samples = []
    for _ in range(count):
        waiter = begin(house, "long.wav", receive_buffer=4096)
        reader = SlowReader(waiter.sock, SLOW_BYTES_PER_SECOND)
        reader.buffer += waiter.ahead
        while time.monotonic() - reader.began < SLOW_SECONDS:
            reader.read()
            list(reader.frames())
        waiter.say(STOP)
        before = reader.count + reader.held_by_kernel()
        at_end = None
        while at_end is None:
            reader.read()
            if any(b"STOP_ACK" in frame.payload[:100] for frame in reader.frames()):
                at_end = reader.count
        samples.append(at_end - before)
        waiter.vanish()
    return samples


def listen(house, tasks, count, most=80_000):
    """Runs the client library over connections that break within this many bytes, `count` times in all: its answers, and how often
    it connected."""
    # Some connections end before the byte at which they would have broken.
    order = {"cuts": count * 112 // 100, "bytes": most, "stops": [], "seed": 11}
    order.update(url=f"http://127.0.0.1:{house.gateway.port}", tasks=tasks)
    script = ROOT / "tests/interop/peers/library_client.js"
    done = subprocess.run(["node", script], input=json.dumps(order), env=node_env(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    return told["answers"], len(told["queries"])


def whole(content, audio=None):
    return {"content": content, "ends": 0} if audio is None else {"content": content, "sha256": hashlib.sha256(audio).hexdigest(), "ends": 1}


def cuts(house, count=10_000, answers=330):
    """Cuts in finished files, and the answers that were whole: of each, the texts and every byte of audio once."""
    first, second = pattern(1_500_000), pattern(700_001)
    (house.audio / "first.wav").write_bytes(first)
    (house.audio / "second.wav").write_bytes(second)
    tasks = [new_task() for _ in range(answers)]
    for task in tasks:
        house.redis.publish(task, text="One", audio_file="first.wav", final=False)
        house.redis.publish(task, text="Two", final=False)
        house.redis.publish(task, text="Three", audio_file="second.wav")
    told, connections = listen(house, tasks, count)
    wanted = {"state": "done", "results": [whole("One", first), whole("Two"), whole("Three", second)]}
    # Each connection but the last of an answer was cut.
    return connections - answers, told.count(wanted), answers


def cuts_in_growing(house, count=10_000, answers=480):
    """The same while the file is being written: 24 kHz, 16 bit, in pieces of 20 ms, for half a minute."""
    speech = pattern(1_500_000)
    path = house.audio / "speech.wav"
    path.write_bytes(b"")
    tasks = [new_task() for _ in range(answers)]
    for task in tasks:
        house.redis.publish(task, text="One", audio_file="speech.wav", audio_growing=True)

    def work():
        began = time.monotonic()
        with open(path, "ab", buffering=0) as file:
            for number, at in enumerate(range(0, len(speech), 960)):
                time.sleep(max(0, began + number * 0.02 - time.monotonic()))
                file.write(speech[at : at + 960])
        # At once: speech whose end is late has stalled.
        with house.redis.client() as redis:
            for task in tasks:
                redis.publish(PREFIX + task, json.dumps({"audio_end": "speech.wav"}))

    worker = threading.Thread(target=work)
    worker.start()
    told, connections = listen(house, tasks, count)
    worker.join()
    return connections - answers, told.count({"state": "done", "results": [whole("One", speech)]}), answers


def push(house, tasks, speeches, size=2000, pace=0.1):
    """A worker that speaks for all tasks at once, two streams for each: a chunk each tenth of a second, as text and as bytes in turn."""
    url = f"ws://127.0.0.1:{house.gateway.port}/ws/ingest/tts"
    # LEFT and BACK are not read, and a busy machine may take long to answer a ping behind all that.
    with websockets.sync.client.connect(url, ping_interval=None, max_queue=None) as worker:
        began = time.monotonic()
        half = len(speeches[0]) // 2
        for number, at in enumerate(range(0, 2 * half, size)):
            time.sleep(max(0, began + number * pace - time.monotonic()))
            for task, speech in zip(tasks, speeches):
                chunk = {"type": "SPEECH_CHUNK", "sessionId": task, "seq": at % half // size}
                pcm = speech[at : at + size]
                if number % 2:
                    worker.send(json.dumps({**chunk, "pcm": base64.b64encode(pcm).decode()}))
                else:
                    worker.send(json.dumps({**chunk, "bytes": len(pcm)}))
                    worker.send(pcm)
                if (at + size) % half == 0:
                    is_final = at + size == 2 * half
                    worker.send(json.dumps({"type": "CONTROL", "action": "END", "sessionId": task, "final": is_final}))
        # Everything has been read before the connection ends.
        worker.ping().wait()


def cuts_in_ingest(house, count=10_000, answers=200):
    """The same of speech that a worker pushes meanwhile, half a megabyte for each task in half a minute."""
    speech = pattern(500_000)
    speeches = [speech[number:] + speech[:number] for number in range(answers)]
    tasks = [new_task() for _ in range(answers)]
    worker = threading.Thread(target=push, args=(house, tasks, speeches))
    worker.start()
    told, connections = listen(house, tasks, count, most=12_000)
    worker.join()
    half = len(speech) // 2
    wanted = [
        {"state": "done", "results": [{"sha256": hashlib.sha256(part).hexdigest(), "ends": 1} for part in (one[:half], one[half:])]}
        for one in speeches
    ]
    return connections - answers, sum(has == wants for has, wants in zip(told, wanted, strict=True)), answers


CUTS = {
    "cuts": ("finished files:", cuts),
    "cuts-growing": ("growing files: ", cuts_in_growing),
    "cuts-ingest": ("pushed speech: ", cuts_in_ingest),
}


def report(name, house):
    if name == "stop":
        for whose, samples in [("", stop(house)), (" of a bare process", bare_stop())]:
            samples = [one * 1e3 for one in samples]
            figures = f"p50 {percentile(samples, 50):.1f} ms, p99 {percentile(samples, 99):.1f} ms"
            print(f"STOP to STOP_ACK{whose}, audio as fast as it is read: {figures}")
    elif name == "leftover":
        samples = [one / 1024 for one in leftover(house)]
        print(f"old audio after STOP, a client at 1 Mbit/s:    at most {max(samples):.1f} KiB, {', '.join(f'{one:.1f}' for one in samples)}")
    elif name in CUTS:
        where, measure = CUTS[name]
        cut, good, answers = measure(house)
        print(f"{cut} cuts at random bytes of {where}      {good} of {answers} answers whole, each byte once and in order")
