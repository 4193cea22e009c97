"""`aivtuber-gateway demo` needs nothing else, and its stand-in behind /ws/input speaks the input protocol of front ends."""

import contextlib
import io
import json
import re
import signal
import time
import uuid
import wave

import pytest
from websockets.sync.client import connect as connect_to

from gatewaylab.gateway import BINARY, LISTENING, clean_env
from gatewaylab.peers import Message
from gatewaylab.process import Process
from gatewaylab.wire import connect


WAV_HEAD = 44


class Demo:
    def __init__(self, folder):
        self.process = Process([BINARY, "demo", "--listen", "127.0.0.1:0"], env=clean_env(), cwd=folder)
        self.port = int(self.process.wait_for_line(LISTENING).group(1))

    @property
    def url(self):
        return f"ws://127.0.0.1:{self.port}/ws/input"


@pytest.fixture
def demo(tmp_path):
    demo = Demo(tmp_path)
    yield demo
    print(demo.process.text)
    demo.process.kill()


def test_upload_is_accepted_as_front_ends_send_it(demo, open_client):
    """The input protocol: `task_id_assigned`; pairs of a `data_chunk` message and its bytes; `upload_complete`; then
    `upload_processed` with status `queued` and the same task id."""
    client = open_client(demo.url)
    hello = json.loads(client.receive().text)
    assert {key: hello[key] for key in ("type", "action")} == {"type": "system", "action": "task_id_assigned"}
    task = hello["task_id"]
    assert str(uuid.UUID(task)) == task.lower()

    for number, part in enumerate(["こんにちは、", "世界"]):
        client.send(json.dumps({"type": "text", "chunk_id": number, "action": "data_chunk"}))
        client.send(part.encode())
    client.send(json.dumps({"action": "upload_complete"}))
    answer = client.receive()
    assert isinstance(answer, Message)
    assert json.loads(answer.text) == {"type": "system", "action": "upload_processed", "status": "queued", "task_id": task}


def test_recording_is_accepted_and_described(demo, open_client):
    """`"type":"audio"`: a file in any container, in pieces cut anywhere; the answer says what was received."""
    with io.BytesIO() as file:
        with wave.open(file, "wb") as recording:
            recording.setparams((1, 2, 16000, 0, "NONE", ""))
            recording.writeframes(b"\0\1" * 24000)
        recording = file.getvalue()
    client = open_client(demo.url)
    task = json.loads(client.receive().text)["task_id"]
    for number, start in enumerate(range(0, len(recording), 7001)):
        client.send(json.dumps({"type": "audio", "chunk_id": number, "action": "data_chunk"}))
        client.send(recording[start : start + 7001])
    client.send(json.dumps({"action": "upload_complete"}))
    assert json.loads(client.receive().text)["action"] == "upload_processed"
    output = open_client(f"ws://127.0.0.1:{demo.port}/ws/output/{task}")
    answer = json.loads(output.receive().text)
    assert answer["content"].startswith("I heard you: 1.5 seconds of WAV, 48.0 kilobytes.")
    assert answer["audio_present"] is True
    words = " ".join(caption["text"] for caption in answer["captions"])
    assert words == " ".join(answer["content"].split())


@contextlib.contextmanager
def asked(demo, text):
    """Uploads a text: the id of its task, and a client that waits for the answer."""
    with connect_to(demo.url) as client:
        task = json.loads(client.recv())["task_id"]
        with connect_to(f"ws://127.0.0.1:{demo.port}/ws/output/{task}") as output:
            client.send(json.dumps({"type": "text", "chunk_id": 0, "action": "data_chunk"}))
            client.send(text.encode())
            client.send(json.dumps({"action": "upload_complete"}))
            yield task, output


def test_hum_is_heard_while_the_rest_is_made(demo):
    """The text and the first note come at once, the others while it is heard; together they are one WAV. How long the first sound
    takes depends on the machine, so that is printed."""
    began = time.monotonic()
    with asked(demo, "Hello") as (task, output):
        assert json.loads(output.recv())["audio_present"] is True
        first = json.loads(output.recv())
        assert (first["chunk_id"], first["total_chunks"]) == (0, None)
        assert not re.search(f"task {task} answered", demo.process.text)
        sound = output.recv()
        assert any(sound[WAV_HEAD:]), "the first chunk is no silence"
        print(f"{(time.monotonic() - began) * 1000:.0f} ms from the request to the first sound")
        message = json.loads(output.recv())
        while message["type"] == "audio_chunk":
            sound += output.recv()
            message = json.loads(output.recv())
        assert message == {"type": "audio_complete", "task_id": task}
        demo.process.wait_for_line(rf"task {task} answered text=5B")
    with wave.open(io.BytesIO(sound)) as file:
        assert abs(file.getnframes() / file.getframerate() - 4.8) < 0.01
        assert len(file.readframes(file.getnframes())) == 2 * file.getnframes()


def test_hum_ends_when_it_is_stopped(demo):
    """STOP is acknowledged, and no further note is made."""
    with asked(demo, "Hello") as (task, output):
        assert json.loads(output.recv())["audio_present"] is True
        output.send(json.dumps({"type": "control", "action": "STOP"}))
        messages = list(output)
        assert json.loads(messages[-1]) == {"type": "control", "action": "STOP_ACK", "task_id": task}
        assert (output.close_code, output.close_reason) == (1000, "stopped")
    notes = demo.process.wait_for_line(rf"task {task} stopped text=5B notes=(\d+)/12")
    assert int(notes[1]) < 12


def test_each_connection_has_a_task_of_its_own(demo, open_client):
    """The input protocol: each connection gets a UUID of its own."""
    tasks = {json.loads(open_client(demo.url).receive().text)["task_id"] for _ in range(5)}
    assert len(tasks) == 5


def test_bad_uploads_do_not_stop_the_demo(demo, open_client):
    """The stand-in survives whatever it is sent: the next connection is served."""
    client = open_client(demo.url)
    client.receive()
    client.send("this is not JSON")
    client.send(b"\xff\xfe")
    client.send(json.dumps(["neither", "is", "this"]))
    client.vanish()
    assert "task_id_assigned" in open_client(demo.url).receive().text


def test_demo_prints_what_to_open_and_stops_on_ctrl_c(demo):
    """`demo` prints what to open and what to try; INT ends it cleanly, with its stand-in."""
    demo.process.wait_for_line(rf"open +http://(127\.0\.0\.1|localhost):{demo.port}/ +type something, see the answer and hear it")
    client = connect(demo.port)
    assert client.get("/").status == 200
    assert re.search(r"<title>", client.get("/").body.decode())
    client.vanish()
    demo.process.signal(signal.SIGINT)
    assert demo.process.wait() == 0


def test_demo_has_the_endpoints_of_a_gateway(demo):
    """`demo` serves everything that a gateway serves."""
    client = connect(demo.port)
    assert client.get("/health").json()["status"] == "ok"
    assert client.get("/ready").status == 200
    client.vanish()
