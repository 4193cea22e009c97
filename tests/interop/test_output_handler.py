"""The gateway as a drop-in for the separate output handler: one process with only the output route, and a gateway that relays to
it."""

import json
import signal
import uuid

import pytest
import redis

from gatewaylab.gateway import route
from gatewaylab.peers import Closed, pattern
from gatewaylab.redis_server import RedisServer
from gatewaylab.wire import eventually

PATH = "/ws/output/{task_id}"


class Handlers:
    """An output handler on a port of its own, a gateway in front of it, and a way to publish as a worker."""

    def __init__(self, lab, folder, url, port=None, timeout="300s"):
        self.audio = folder / "audio"
        self.audio.mkdir()
        settings = {"audio_root": str(self.audio), "timeout": timeout}
        only_output = {"route": [route("output", PATH, serve="output")], "output": settings, "redis": {"url": url}}
        self.handler = lab.gateway(only_output)
        self.gateway = lab.gateway({"route": [route("output", PATH, backend=f"ws://127.0.0.1:{self.handler.port}{PATH}")]})
        port = port or self.handler.process.wait_for_line(r"inbox listening address=127\.0\.0\.1:(\d+)").group(1)
        self.handler.process.wait_for_line(r"(redis connected|inbox listening) address=")
        self.worker = redis.Redis(port=int(port))

    def publish(self, task, **result):
        return self.worker.publish(f"task_response:{task}", json.dumps(result))

    def url(self, task):
        return f"ws://127.0.0.1:{self.gateway.port}/ws/output/{task}"


@pytest.fixture(params=["redis", "embedded"])
def handlers(request, lab, tmp_path):
    if request.param == "embedded":
        handlers = Handlers(lab, tmp_path, "embedded://127.0.0.1:0")
        yield handlers
    else:
        server = RedisServer(tmp_path)
        handlers = Handlers(lab, tmp_path, server.url, server.port)
        yield handlers
        server.stop()
    handlers.worker.close()


def everything(client):
    """Everything up to the close."""
    seen = []
    while not isinstance(message := client.receive(), Closed):
        seen.append(message)
    return seen, (message.code, message.reason)


def test_serves_the_output_handler_alone(handlers, open_client):
    """The output handler alone serves only `/ws/output/{task_id}`. A gateway relays to it text, chunks and close unchanged."""
    task = str(uuid.uuid4())
    sound = pattern(150_000)
    (handlers.audio / "a.wav").write_bytes(sound)
    client = open_client(handlers.url(task))
    assert handlers.publish(task, text="Hello", audio_file="a.wav", emotion="joy") == 1
    seen, closed = everything(client)
    texts = [json.loads(message.text) for message in seen if not message.binary]
    assert texts[0] == {"status": "success", "task_id": task, "content": "Hello", "audio_present": True, "emotion": "joy", "result_id": 0, "audio_type": "audio/wav"}
    assert texts[1:] == [
        *({"type": "audio_chunk", "task_id": task, "chunk_id": number, "total_chunks": 3} for number in range(3)),
        {"type": "audio_complete", "task_id": task},
    ]
    chunks = [message for message in seen if message.binary]
    wanted = [sound[at : at + 65536] for at in range(0, len(sound), 65536)]
    assert chunks == [type(seen[0]).of(piece) for piece in wanted]
    assert [message.binary for message in seen] == [False] + [False, True] * 3 + [False]
    assert closed == (1000, "done")


def test_early_result_and_resume_through_a_gateway(handlers, open_client):
    """A result published before its client connects is delivered on connect, and `?from_chunk=K` works, also through a
    gateway."""
    task = str(uuid.uuid4())
    (handlers.audio / "a.wav").write_bytes(pattern(150_000))
    handlers.publish(task, text="Hello", audio_file="a.wav")
    seen, closed = everything(open_client(handlers.url(task) + "?from_chunk=2"))
    assert [json.loads(message.text).get("chunk_id") for message in seen if not message.binary] == [None, 2, None]
    assert [message.size for message in seen if message.binary] == [150_000 - 2 * 65536]
    assert closed == (1000, "done")


def test_close_codes_of_the_output_handler_reach_the_client(lab, tmp_path, open_client):
    """The handler's own close codes, 4004 and 4008, pass through the gateway in front of it."""
    handlers = Handlers(lab, tmp_path, "embedded://127.0.0.1:0", timeout="200ms")
    seen, closed = everything(open_client(handlers.url("no-uuid")))
    assert [message.text for message in seen] == ['{"status":"error","error":"Invalid task_id format"}']
    assert closed == (4004, "bad task id")
    task = str(uuid.uuid4())
    seen, closed = everything(open_client(handlers.url(task)))
    assert json.loads(seen[0].text) == {"status": "error", "error": "Processing timeout", "task_id": task}
    assert closed == (4008, "processing timeout")
    handlers.worker.close()


def test_output_handler_serves_only_its_route(handlers):
    """With only the output route, another path is 404, and each of the two processes reports its own state."""
    assert handlers.handler.get("/ws/input").status == 404
    assert handlers.handler.get("/ready").status == 200
    health = handlers.handler.get("/health").json()
    assert health["backend_services"] == {"output": "built in"}
    assert health["redis"] in ("connected", "embedded")
    assert handlers.gateway.get("/health").json()["redis"] == "disabled"


def test_reload_that_adds_an_output_route_connects_to_redis(lab, tmp_path):
    """Redis is connected to only if a route serves output, also if that route came with a HUP."""
    server_of_results = RedisServer(tmp_path)
    try:
        backend = lab.backend()
        server = {"listen": ["127.0.0.1:0"]}
        relaying = {"server": server, "redis": {"url": server_of_results.url}, "route": [route(backend=backend.url())]}
        gateway = lab.gateway(relaying)
        assert gateway.get("/health").json()["redis"] == "disabled"
        serving = relaying | {"route": [*relaying["route"], route("output", "/ws/output/{task_id}", serve="output")]}
        gateway.configure(serving | {"server": {"listen": [f"127.0.0.1:{gateway.port}"]}})
        gateway.signal(signal.SIGHUP)
        assert eventually(lambda: gateway.get("/health").json()["redis"] == "connected", "Redis is connected")
    finally:
        server_of_results.stop()
