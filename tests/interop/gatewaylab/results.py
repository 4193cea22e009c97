"""Results as their users see them: a `redis-server` of a test's own, workers that publish, clients that wait.

A worker is redis-py against a real Redis, or against the gateway's own inbox. A waiting client is a raw socket whose frames are
read in the order of the contract: a text message first, then an announcement and a binary message for each chunk, and what ends
it. What to know: `Waiter.result` checks that order while it reads, so a test only says what it wants to see.
"""

import dataclasses
import json
import os
import pathlib
import signal
import uuid

import redis

from . import PATIENCE, wire
from .gateway import route
from .process import Process

PREFIX = "task_response:"
CHUNK = 65536

OUTPUT = route("output", "/ws/output/{task_id}", serve="output")


def new_task():
    return str(uuid.uuid4())


class RedisServer:
    """A Redis that lives as long as its test. It can be killed, frozen and started again at the same place."""

    def __init__(self, folder, *, password=None, port=None, options=()):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.password, self.options = folder, password, list(options)
        self.socket = folder / "redis.sock"
        self.port = port
        self.process = None
        self.start()

    def start(self):
        """On the port it had; the first time on one that the kernel has just given away, and another if that one is taken."""
        for attempt in range(5):
            port = self.port or wire.closed_port()
            command = ["redis-server", "--bind", "127.0.0.1", "--port", port, "--unixsocket", self.socket, "--dir", self.folder]
            command += ["--save", "", "--appendonly", "no", *self.options]
            if self.password:
                command += ["--requirepass", self.password]
            self.process = Process(command)
            try:
                self.process.wait_for_line("Ready to accept connections")
            except AssertionError:
                self.process.kill()
                if self.port or attempt == 4:
                    raise
                continue
            self.port = port
            return

    @property
    def url(self):
        word = f":{self.password}@" if self.password else ""
        return f"redis://{word}127.0.0.1:{self.port}"

    @property
    def unix_url(self):
        return f"unix://{self.socket}"

    def client(self, **options):
        """redis-py with its defaults."""
        return redis.Redis(host="127.0.0.1", port=self.port, password=self.password, socket_timeout=PATIENCE, **options)

    def publish(self, task, result=None, **fields):
        """Publishes as a worker does; returns the number of subscribers."""
        with self.client() as worker:
            return worker.publish(PREFIX + task, payload(result, fields))

    def kept(self):
        """Tasks of which gateways keep something here."""
        with self.client() as client:
            return len(client.keys("task_response_kept:*"))

    def gateways(self):
        """The gateways' connections, as Redis lists them."""
        with self.client() as client:
            return [one for one in client.client_list() if one["name"] == "aivtuber-gateway"]

    def kill(self):
        self.process.kill()

    def freeze(self):
        self.process.signal(signal.SIGSTOP)

    def thaw(self):
        self.process.signal(signal.SIGCONT)

    def restart(self):
        self.kill()
        self.start()

    def stop(self):
        self.process.kill()


def payload(result, fields):
    if result is None:
        result = fields
    return result if isinstance(result, (bytes, str)) else json.dumps(result)


class Inbox:
    """The gateway's own inbox, for workers on redis-py."""

    def __init__(self, gateway):
        found = gateway.process.wait_for_line(r"inbox\S*[ \"]listening address=127\.0\.0\.1:(\d+)")
        self.port = int(found.group(1))

    def client(self, **options):
        return redis.Redis(host="127.0.0.1", port=self.port, socket_timeout=PATIENCE, **options)

    def publish(self, task, result=None, **fields):
        with self.client() as worker:
            return worker.publish(PREFIX + task, payload(result, fields))


class Ear:
    """A worker that listens to all control channels, through redis-py."""

    def __init__(self, server, pattern="task_control:*", **options):
        self.pubsub = server.client(**options).pubsub()
        self.pubsub.psubscribe(pattern)
        assert self.next_message()["type"] == "psubscribe"

    def next_message(self):
        return wire.eventually(lambda: self.pubsub.get_message(timeout=0.05), "a message on a control channel")

    def hears(self, task, action):
        """The next message is this one."""
        message = self.next_message()
        assert message["channel"].decode() == f"task_control:{task}"
        assert json.loads(message["data"]) == {"action": action}

    def hears_nothing(self, for_seconds=0.2):
        assert self.pubsub.get_message(timeout=for_seconds) is None


@dataclasses.dataclass
class Result:
    """One delivery: its text message, and the audio with the numbers of its chunks where there was some."""

    message: dict
    audio: bytes | None = None
    chunks: list = dataclasses.field(default_factory=list)

    @property
    def content(self):
        return self.message["content"]


class Waiter(wire.Client):
    """A client that waits for a task."""

    task = None
    about = None

    def wait(self, task, query="", headers=(), target=None):
        self.task = task
        self.upgrade(target or f"/ws/output/{task}{query}", headers=headers)
        self.read_switch()
        return self

    def message(self):
        """The next text message; pings in between are skipped."""
        frame = self.read_message_frame()
        assert frame.opcode == wire.TEXT and frame.fin and frame.rsv == 0 and frame.mask is None, frame
        message = json.loads(frame.text)
        # What clients of before 0.3 do not know, so that the tests of what they are promised stay as they are.
        self.about = {name: message.pop(name, None) for name in ("result_id", "audio_type")}
        return message

    def result(self, chunk_size=CHUNK, first_chunk=0):
        """A whole delivery, checked in its order."""
        result = Result(self.message())
        if not result.message.get("audio_present"):
            return result
        result.audio = b""
        while (message := self.message())["type"] == "audio_chunk":
            assert message["task_id"] == self.task
            assert message["chunk_id"] == first_chunk + len(result.chunks), message
            frame = self.read_message_frame()
            assert frame.opcode == wire.BINARY and frame.fin and frame.rsv == 0 and frame.mask is None, frame
            is_last = message["chunk_id"] == message["total_chunks"] - 1
            assert len(frame.payload) == chunk_size or is_last and 0 < len(frame.payload) <= chunk_size, frame
            result.chunks.append((message["chunk_id"], message["total_chunks"]))
            result.audio += frame.payload
        assert message == {"type": "audio_complete", "task_id": self.task}, message
        return result

    def done(self, code=1000, reason="done"):
        """The close, and nothing after it but the end."""
        frame = self.read_message_frame()
        assert frame.opcode == wire.CLOSE, f"expected a close frame, got {frame}"
        assert (frame.code, frame.reason) == (code, reason)
        self.close_frame(code)
        self.half_close()
        self.expect_end()

    def refused(self, error, code, reason, **more):
        """An error message, then the close."""
        assert self.message() == {"status": "error", "error": error, **more}
        self.done(code, reason)


class Results:
    """What tests of results start: Redis servers, gateways that serve `/ws/output/{task_id}`, clients, audio files."""

    def __init__(self, lab, folder):
        self.lab, self.folder = lab, folder
        self.audio = folder / "audio"
        self.audio.mkdir()
        self.servers = 0

    def redis(self, **options):
        self.servers += 1
        server = RedisServer(self.folder / f"redis{self.servers}", **options)
        self.lab.backends.append(server)
        return server

    def gateway(self, server, *, output=None, link=None, routes=(), ready=True, config=None, **options):
        """A gateway whose results come from `server`: a RedisServer, a URL, or several of them. `ready`: wait until it is."""
        urls = [one if isinstance(one, str) else one.url for one in (server if isinstance(server, list) else [server])]
        config = {
            **(config or {}),
            "route": [OUTPUT, *routes],
            "output": {"audio_root": str(self.audio), **(output or {})},
            "redis": {"url": urls if len(urls) > 1 else urls[0], **(link or {})},
        }
        gateway = self.lab.gateway(config, **options)
        if ready:
            is_up(gateway)
        return gateway

    def embedded(self, **options):
        """A gateway with its own inbox, and the inbox."""
        gateway = self.gateway("embedded://127.0.0.1:0", **options)
        return gateway, Inbox(gateway)

    def connect(self, gateway, **options):
        """A client that has not sent its request yet."""
        port = gateway if isinstance(gateway, int) else gateway.port
        waiter = Waiter(wire.connect(port, **options).sock)
        return self.lab.adopt(waiter)

    def wait(self, gateway, task, query="", *, headers=(), target=None, **options):
        """A client that waits for a task, upgraded."""
        return self.connect(gateway, **options).wait(task, query, headers, target)

    def write(self, name, data):
        path = self.audio / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path


def is_up(gateway):
    """Waits until the gateway says that results can arrive."""
    wire.eventually(lambda: gateway.get("/ready").status == 200, "results can arrive")


def status_with_timeline(gateway, task):
    reply = gateway.get(f"/status/{task}")
    assert reply.status == 200, reply
    return reply.json()


def status(gateway, task):
    """Without the timeline, which differs from run to run."""
    found = status_with_timeline(gateway, task)
    found.pop("timeline", None)
    return found


def is_waiting(gateway, task):
    """Waits until a client waits for the task."""
    wire.eventually(lambda: status(gateway, task)["status"] == "waiting", f"a client waits for {task}")


def proportional_bytes(pid):
    """Memory that is the process's own, shared pages divided by their sharers."""
    for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no Pss")


