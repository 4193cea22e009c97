"""Speech that workers push over a WebSocket: `serve = "ingest"`."""

import base64
import json
import os
import resource
import signal
import sys

import pytest
import websockets.sync.client
from websockets.exceptions import InvalidStatus

from gatewaylab import PATIENCE, ROOT, wire
from gatewaylab.gateway import route, run
from gatewaylab.peers import NodeClients, PythonClient, Refused, pattern
from gatewaylab.process import Process
from gatewaylab.results import is_waiting, new_task, status
from gatewaylab.wire import eventually

PATH = "/ws/ingest/tts"
CHUNK = 960


def ingest_route(**keys):
    return route("ingest", PATH, serve="ingest", **keys)


def serve(results, *, output=None, token=None, **options):
    """A gateway with an ingest route and its own inbox, and the inbox."""
    keys = {"token": token} if token else {}
    return results.embedded(routes=[ingest_route(**keys)], output=output, **options)


def chunk_message(task, seq, pcm, **fields):
    text = base64.b64encode(pcm).decode()
    return json.dumps({"type": "SPEECH_CHUNK", "sessionId": task, "seq": seq, "pcm": text, **fields})


def end_message(task, **fields):
    return json.dumps({"type": "CONTROL", "action": "END", "sessionId": task, **fields})


class Worker:
    """A worker on `websockets`, as a TTS service has one."""

    def __init__(self, lab, gateway, *, headers=None, url=None):
        client = PythonClient.open(url or f"ws://127.0.0.1:{gateway.port}{PATH}", headers=headers)
        assert not isinstance(client, Refused), client
        self.client = lab.adopt(client)

    def chunk(self, task, seq, pcm, **fields):
        self.client.send(chunk_message(task, seq, pcm, **fields))

    def binary(self, task, seq, pcm, **fields):
        announced = {"type": "SPEECH_CHUNK", "sessionId": task, "seq": seq, "bytes": len(pcm), **fields}
        self.client.send(json.dumps(announced))
        self.client.send(pcm)

    def end(self, task, **fields):
        self.client.send(end_message(task, **fields))

    def message(self):
        return json.loads(self.client.receive().text)

    def error(self, words, task=None):
        about = {"sessionId": task} if task else {}
        assert self.message() == {"type": "error", "error": words, **about}

    def is_heard(self):
        """Everything before this has been read by the gateway."""
        self.client.ping("heard")

    def close(self):
        self.client.close()


@pytest.fixture
def gateway(results):
    return serve(results)[0]


@pytest.fixture
def worker(lab, gateway):
    return Worker(lab, gateway)


def next_chunk(waiter, number, offset, **fields):
    """The next chunk of a client: checked, and its bytes."""
    told = waiter.message()
    assert told == {
        "type": "audio_chunk",
        "task_id": waiter.task,
        "chunk_id": number,
        "total_chunks": told["total_chunks"],
        "offset": offset,
        **fields,
    }
    frame = waiter.read_message_frame()
    assert frame.opcode == wire.BINARY and frame.fin, frame
    return frame.payload


def ended(waiter):
    assert waiter.message() == {"type": "control", "action": "END", "task_id": waiter.task}
    assert waiter.message() == {"type": "audio_complete", "task_id": waiter.task}


def parts(count, size=CHUNK):
    audio = pattern(count * size)
    return [audio[at : at + size] for at in range(0, len(audio), size)]


def wav(size):
    return b"RIFF" + (size - 8).to_bytes(4, "little") + b"WAVEfmt " + bytes(size - 16)


# ---- delivery


@pytest.mark.parametrize("library", ["websockets", "ws"])
@pytest.mark.parametrize("form", ["pcm", "bytes"])
def test_speech_reaches_the_client_while_it_is_made(lab, results, gateway, library, form):
    task = new_task()
    waiter = results.wait(gateway, task)
    is_waiting(gateway, task)
    clients = lab.adopt_proxy(NodeClients()) if library == "ws" else PythonClient
    client = lab.adopt(clients.open(f"ws://127.0.0.1:{gateway.port}{PATH}"))
    for number, part in enumerate(parts(3)):
        viseme = {"mouth": number / 2}
        if form == "pcm":
            client.send(chunk_message(task, number, part, viseme=viseme))
        else:
            announced = {"type": "SPEECH_CHUNK", "sessionId": task, "seq": number, "bytes": len(part), "viseme": viseme}
            client.send(json.dumps(announced))
            client.send(part)
        # It comes before the worker sends more.
        assert next_chunk(waiter, number, number * CHUNK, viseme=viseme) == part
    client.send(end_message(task, final=True))
    ended(waiter)
    waiter.done()
    client.close()
    gateway.process.wait_for_line(
        r"ingest ingest_\d+ closed reason=client_closed code=1000 .* chunks=3 errors=0 .* to_client_frames=1 to_client_bytes=4 "
        r"ended_by=client phase=ingest sentence=\"The client closed the connection with code 1000\.\""
    )


def test_utterances_with_a_connection_each(lab, results):
    """The client of the later services: base64 in JSON, a new connection for every sentence, no seq after a restart."""
    gateway, inbox = serve(results)
    task = new_task()
    waiter = results.wait(gateway, task)
    is_waiting(gateway, task)
    for sentence in range(3):
        inbox.publish(task, text=f"sentence {sentence}", final=False)
        assert waiter.message()["content"] == f"sentence {sentence}"
        audio = parts(2 + sentence)
        with websockets.sync.client.connect(f"ws://127.0.0.1:{gateway.port}{PATH}", proxy=None) as socket:
            for number, part in enumerate(audio):
                message = {"type": "SPEECH_CHUNK", "sessionId": task, "pcm": base64.b64encode(part).decode()}
                socket.send(json.dumps(message | ({"seq": number} if sentence else {})))
            socket.send(end_message(task))
        for number, part in enumerate(audio):
            assert next_chunk(waiter, number, number * CHUNK) == part
        ended(waiter)
    inbox.publish(task, text="that was all")
    assert waiter.message()["content"] == "that was all"
    waiter.done()


def test_one_connection_carries_many_tasks(results, gateway, worker):
    tasks = [new_task() for _ in range(20)]
    waiters = [results.wait(gateway, task) for task in tasks]
    for task in tasks:
        is_waiting(gateway, task)
    audio = parts(5)
    for number, part in enumerate(audio):
        for task in tasks:
            worker.chunk(task, number, part)
    for task in tasks:
        worker.end(task, final=True)
    for waiter in waiters:
        assert b"".join(next_chunk(waiter, number, number * CHUNK) for number in range(5)) == b"".join(audio)
        ended(waiter)
        waiter.done()


def test_another_connection_continues_a_stream(lab, results, gateway, worker):
    task, audio = new_task(), parts(4)
    waiter = results.wait(gateway, task)
    is_waiting(gateway, task)
    worker.chunk(task, 0, audio[0])
    worker.chunk(task, 1, audio[1])
    assert [next_chunk(waiter, number, number * CHUNK) for number in range(2)] == audio[:2]
    worker.client.vanish()
    second = Worker(lab, gateway)
    # It does not know what arrived, and begins with the last one again.
    for number in (1, 2, 3):
        second.binary(task, number, audio[number])
    second.end(task, final=True)
    assert [next_chunk(waiter, number, number * CHUNK) for number in (2, 3)] == audio[2:]
    ended(waiter)
    waiter.done()


def test_clients_that_come_late_or_again_get_the_same_chunks(results, gateway, worker):
    task, audio = new_task(), parts(6)
    for number, part in enumerate(audio[:4]):
        worker.chunk(task, number, part)
    worker.is_heard()
    assert status(gateway, task)["status"] == "ready"
    whole, from_chunk = results.wait(gateway, task), results.wait(gateway, task, "?from_result=0&from_chunk=3")
    from_byte = results.wait(gateway, task, "?from_byte=1000")
    assert [next_chunk(whole, number, number * CHUNK) for number in range(4)] == audio[:4]
    assert next_chunk(from_chunk, 3, 3 * CHUNK) == audio[3]
    assert next_chunk(from_byte, 1, 1000) == audio[1][40:]
    for number in (2, 3):
        assert next_chunk(from_byte, number, number * CHUNK) == audio[number]
    for number, part in enumerate(audio[4:], 4):
        worker.chunk(task, number, part)
    worker.end(task, final=True)
    for waiter in (whole, from_chunk, from_byte):
        assert [next_chunk(waiter, number, number * CHUNK) for number in (4, 5)] == audio[4:]
        ended(waiter)
        waiter.done()
    late = results.wait(gateway, task)
    assert [next_chunk(late, number, number * CHUNK) for number in range(6)] == audio
    ended(late)
    late.done()


def test_audio_is_there_for_download_with_its_type(results, gateway, worker):
    tasks = {name: new_task() for name in ("named", "wav", "unknown")}
    worker.chunk(tasks["named"], 0, pattern(CHUNK), audio_type="audio/L16;rate=24000")
    worker.chunk(tasks["wav"], 0, wav(CHUNK))
    worker.chunk(tasks["unknown"], 0, pattern(CHUNK))
    for task in tasks.values():
        worker.end(task, final=True)
    worker.is_heard()
    types = {"named": "audio/L16;rate=24000", "wav": "audio/wav", "unknown": "application/octet-stream"}
    for name, task in tasks.items():
        answer = gateway.get(f"/audio/{task}")
        assert (answer.status, answer.head["Content-Type"]) == (200, types[name])
        assert len(answer.body) == CHUNK


def test_download_grows_with_the_speech(results, gateway, worker):
    """Chunked, while it is made; a file with ranges once it is complete."""
    task, audio = new_task(), parts(3)
    worker.chunk(task, 0, audio[0], audio_type="audio/L16;rate=24000")
    worker.is_heard()
    client = gateway.connect()
    client.send(f"GET /audio/{task} HTTP/1.1\r\nHost: a\r\nRange: bytes=0-9\r\n\r\n".encode())
    head = client.read_head()
    assert (head.status, head["Content-Type"], head["Transfer-Encoding"]) == (200, "audio/L16;rate=24000", "chunked")
    assert not any(name in head for name in ("Content-Length", "ETag", "Accept-Ranges"))
    assert client.read(967) == b"3c0\r\n" + audio[0] + b"\r\n"
    for number in (1, 2):
        worker.chunk(task, number, audio[number])
        assert client.read(967) == b"3c0\r\n" + audio[number] + b"\r\n"
    worker.end(task, final=True)
    assert client.read(5) == b"0\r\n\r\n"
    part = client.get(f"/audio/{task}", headers=[("Range", "bytes=950-969")])
    assert (part.status, part.body) == (206, b"".join(audio)[950:970]) and "ETag" in part.head
    client.vanish()


def test_download_of_speech_that_stalls_breaks_off(lab, results):
    gateway, _ = serve(results, output={"audio_stall": "300ms"})
    worker, task = Worker(lab, gateway), new_task()
    worker.chunk(task, 0, pattern(CHUNK))
    worker.is_heard()
    client = gateway.connect()
    client.send(f"GET /audio/{task} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    client.read_head()
    assert client.read(967) == b"3c0\r\n" + pattern(CHUNK) + b"\r\n"
    client.expect_end()
    worker.error("Audio stalled", task)


# ---- what workers do wrong


def test_bad_message_is_answered_and_costs_nothing_else(results, gateway, worker):
    task, audio = new_task(), parts(2)
    waiter = results.wait(gateway, task)
    is_waiting(gateway, task)
    worker.chunk(task, 0, audio[0])
    head = {"type": "SPEECH_CHUNK", "sessionId": task}
    long = base64.b64encode(bytes(65_537)).decode()
    for message, words, names_task in [
        ("nonsense", "The message is not a JSON object", False),
        ("[]", "The message is not a JSON object", False),
        ({}, "The type is neither SPEECH_CHUNK nor CONTROL", False),
        ({"type": "SPEECH_CHUNK", "sessionId": "x", "pcm": ""}, "Invalid task_id format", False),
        (head, "The chunk has neither pcm nor bytes", True),
        (head | {"pcm": "!"}, "pcm is not base64", True),
        (head | {"pcm": 7}, "pcm is not a string", True),
        (head | {"seq": -1, "pcm": ""}, "seq is not a whole number from 0", True),
        (head | {"seq": 7, "pcm": ""}, "seq 7 leaves a gap, the next one is 1", True),
        (head | {"seq": 1, "pcm": long}, "The chunk is longer than chunk_size", True),
        (head | {"seq": 1, "pcm": "", "viseme": "x" * 70_000}, "The further fields of the chunk are too long", True),
        ({"type": "CONTROL", "action": "STAR", "sessionId": task}, "The action is neither END nor STOP_ACK", True),
        (json.loads(end_message(new_task())), "The task has no audio to end", None),
    ]:
        worker.client.send(message if isinstance(message, str) else json.dumps(message))
        answer = worker.message()
        assert (answer["type"], answer["error"]) == ("error", words)
        assert names_task is None or answer.get("sessionId") == (task if names_task else None)
    worker.client.send(b"bytes")
    worker.error("A binary message without a SPEECH_CHUNK before it")
    worker.client.send(json.dumps(head | {"seq": 1, "bytes": 5}))
    worker.client.send(b"four")
    worker.error("The binary message is not as long as bytes says", task)
    worker.client.send(json.dumps(head | {"seq": 1, "bytes": 65_537}))
    worker.error("The chunk is longer than chunk_size", task)
    worker.client.send(bytes(65_537))  # it was announced, so this is no second error
    worker.client.send(json.dumps(head | {"seq": 1, "bytes": 5}))
    worker.client.send(json.dumps({"type": "STOP_ACK", "sessionId": task}))
    worker.error("The bytes of the chunk before did not come", task)
    # The stream goes on as if nothing had been said.
    worker.chunk(task, 0, audio[0])
    worker.chunk(task, 1, audio[1])
    worker.end(task, final=True)
    assert [next_chunk(waiter, number, number * CHUNK) for number in range(2)] == audio
    ended(waiter)
    waiter.done()
    assert gateway.metrics().total("aivtuber_gateway_speech_errors_total") == 17


def test_message_beyond_all_bounds_closes_the_connection(lab, gateway, worker):
    worker.client.send(b"x" * 300_000)
    assert worker.client.receive().code == 1009


@pytest.mark.parametrize("where", ["max_audio", "max_retained", "max_spool"])
def test_speech_beyond_the_limit_ends_with_what_was_received(lab, results, where):
    limits = {"max_audio": {"max_audio": 3000}, "max_retained": {"max_retained": 8000}}
    limits["max_spool"] = {"max_spool": 6000, "spool": str(results.folder / "spool")}
    (results.folder / "spool").mkdir()
    gateway, inbox = serve(results, output=limits[where])
    worker, task, audio = Worker(lab, gateway), new_task(), parts(5)
    waiter = results.wait(gateway, task)
    is_waiting(gateway, task)
    received = 0
    while received < 3:
        worker.chunk(task, received, audio[received])
        assert next_chunk(waiter, received, received * CHUNK) == audio[received]
        received += 1
    worker.chunk(task, 3, audio[3])
    answer = worker.message()
    assert answer["error"] in ("Audio too large", "No room for the audio")
    error = waiter.message()
    assert (error["status"], error["error"]) == ("error", "Audio too large")
    # The rest of it is dropped without another error, and the next stream begins with 0.
    worker.chunk(task, 4, audio[4])
    worker.end(task)
    worker.chunk(task, 0, b"short")
    worker.end(task, final=True)
    assert next_chunk(waiter, 0, 0) == b"short"
    ended(waiter)
    waiter.done()


def test_worker_that_falls_silent_stalls_the_stream(lab, results):
    gateway, inbox = serve(results, output={"audio_stall": "300ms"})
    worker, task = Worker(lab, gateway), new_task()
    waiter = results.wait(gateway, task)
    is_waiting(gateway, task)
    worker.chunk(task, 0, pattern(CHUNK))
    assert next_chunk(waiter, 0, 0) == pattern(CHUNK)
    error = waiter.message()
    assert (error["status"], error["error"]) == ("error", "Audio stalled")
    worker.error("Audio stalled", task)
    # The next chunk has no stream to continue.
    worker.chunk(task, 1, pattern(CHUNK))
    worker.error("seq 1 leaves a gap, the next one is 0", task)
    inbox.publish(task, text="what follows")
    assert waiter.message()["content"] == "what follows"
    waiter.done()


# ---- STOP


def test_stop_reaches_the_worker_once_and_what_it_sends_then_is_dropped(lab, results, gateway, worker):
    task, audio = new_task(), parts(3)
    waiter = results.wait(gateway, task)
    is_waiting(gateway, task)
    worker.chunk(task, 0, audio[0])
    assert next_chunk(waiter, 0, 0) == audio[0]
    waiter.say(json.dumps({"type": "control", "action": "STOP"}).encode())
    assert waiter.message() == {"type": "control", "action": "STOP_ACK", "task_id": task}
    waiter.done(1000, "stopped")
    assert worker.message() == {"type": "CONTROL", "action": "STOP", "sessionId": task}
    worker.client.send(json.dumps({"type": "STOP_ACK", "sessionId": task}))
    for number in (1, 2):
        worker.chunk(task, number, audio[number])
    worker.end(task, final=True)
    worker.is_heard()
    assert gateway.metrics().total("aivtuber_gateway_results_after_stop_total") == 3
    assert status(gateway, task)["status"] == "stopped"
    again = results.wait(gateway, task)
    is_waiting(gateway, task)
    worker.chunk(task, 0, audio[2])
    worker.end(task, final=True)
    assert next_chunk(again, 0, 0) == audio[2]
    ended(again)
    again.done()


def test_worker_hears_its_own_spelling_of_the_task(lab, results, gateway, worker):
    task = new_task()
    worker.chunk(task.upper(), 0, pattern(CHUNK))
    worker.is_heard()
    body = json.dumps({"task_id": task}).encode()
    assert gateway.get("/control/stop", method="POST", body=body).status == 200
    assert worker.message() == {"type": "CONTROL", "action": "STOP", "sessionId": task.upper()}


# ---- who may connect


def refused(gateway, **headers):
    """How a worker with these headers is refused; `None`: it is not."""
    client = PythonClient.open(f"ws://127.0.0.1:{gateway.port}{PATH}", headers=headers)
    if isinstance(client, Refused):
        return client.status
    client.close()
    client.vanish()
    return None


def test_token_is_asked_for(lab, results):
    gateway, _ = serve(results, token="s3cret")
    basic = lambda pair: "Basic " + base64.b64encode(pair.encode()).decode()  # noqa: E731
    assert refused(gateway) == 401
    assert refused(gateway, Authorization="Bearer wrong") == 401
    assert refused(gateway, Authorization=basic("s3cret:x")) == 401
    assert refused(gateway, Authorization="Bearer s3cret") is None
    assert refused(gateway, Authorization=basic("anybody:s3cret")) is None
    worker = Worker(lab, gateway, url=f"ws://x:s3cret@127.0.0.1:{gateway.port}{PATH}")
    worker.is_heard()
    worker.close()
    answer = gateway.get(PATH)
    assert (answer.status, answer.head["WWW-Authenticate"]) == (401, "Bearer")
    assert "s3cret" not in gateway.log


def test_token_file_is_read_again_on_hup(results):
    file = results.folder / "token"
    file.write_text("one\n")
    gateway, _ = results.embedded(routes=[ingest_route(token_file=str(file))])
    assert refused(gateway, Authorization="Bearer one") is None
    file.write_text("two\n")
    gateway.signal(signal.SIGHUP)
    eventually(lambda: refused(gateway, Authorization="Bearer two") is None, "the new token counts")
    assert refused(gateway, Authorization="Bearer one") == 401


def test_without_a_token_only_admins_may_connect(results):
    gateway, _ = serve(results)
    assert refused(gateway) is None
    # A page in an admin's browser.
    assert refused(gateway, Origin="https://elsewhere.example") == 403
    assert refused(gateway, **{"X-Forwarded-For": "127.0.0.1"}) == 403
    strangers, _ = serve(results, config={"server": {"admin_from": ["192.0.2.1"]}})
    assert refused(strangers) == 403


def test_token_is_not_printed(results, lab):
    gateway, _ = serve(results, token="s3cret")
    done = run("--config", gateway.file, "--print-config")
    assert done.returncode == 0 and "s3cret" not in done.stdout
    assert 'token = "***"' in done.stdout


# ---- the spool folder


def test_speech_goes_to_the_spool_folder_and_leaves_nothing_there(lab, results):
    folder = results.folder / "spool"
    folder.mkdir()
    gateway, _ = serve(results, output={"spool": str(folder), "max_retained": "8KiB"})
    worker = Worker(lab, gateway)
    tasks, audio = [new_task() for _ in range(5)], parts(50)
    waiters = [results.wait(gateway, task) for task in tasks]
    for task in tasks:
        is_waiting(gateway, task)
    for number, part in enumerate(audio):
        for task in tasks:
            worker.chunk(task, number, part)
    for task in tasks:
        worker.end(task)
        worker.chunk(task, 0, b"and more")
        worker.end(task, final=True)
    for waiter in waiters:
        assert [next_chunk(waiter, number, number * CHUNK) for number in range(50)] == audio
        ended(waiter)
        assert next_chunk(waiter, 0, 0) == b"and more"
        ended(waiter)
        waiter.done()
    assert list(folder.iterdir()) == []
    links = [os.readlink(entry.path) for entry in os.scandir(f"/proc/{gateway.pid}/fd")]
    assert sum(str(folder) in link for link in links) == 10, links


@pytest.mark.parametrize("where", ["memory", "folder"])
def test_speech_at_the_limit_of_file_sizes_ends_alone(lab, results, where):
    """RLIMIT_FSIZE, which is for files in memory too: the worker gets an error, clients what came before it, and the
    gateway goes on."""
    output = {}
    if where == "folder":
        (results.folder / "spool").mkdir()
        output["spool"] = str(results.folder / "spool")
    limit = 20 * CHUNK
    gateway, _ = serve(
        results,
        output=output,
        before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY)),
    )
    worker, task = Worker(lab, gateway), new_task()
    waiter = results.wait(gateway, task)
    is_waiting(gateway, task)
    audio = parts(24)
    for seq, part in enumerate(audio):
        worker.binary(task, seq, part)
    error = worker.message()
    assert error["type"] == "error" and error["sessionId"] == task, error
    for seq, part in enumerate(audio[:20]):
        assert next_chunk(waiter, seq, seq * CHUNK) == part
    assert "error" in waiter.message()
    other = new_task()
    waiter = results.wait(gateway, other)
    is_waiting(gateway, other)
    worker.binary(other, 0, audio[0])
    worker.end(other, final=True)
    assert next_chunk(waiter, 0, 0) == audio[0]
    ended(waiter)


def test_spool_folder_that_is_not_there_is_said_and_costs_the_speech(lab, results):
    gateway, _ = serve(results, output={"spool": "/nowhere/at/all"})
    gateway.process.wait_for_line("output.spool: no file can be written in the folder /nowhere/at/all")
    worker, task = Worker(lab, gateway), new_task()
    worker.chunk(task, 0, pattern(CHUNK))
    worker.error("Gateway out of resources", task)
    gateway.process.wait_for_line(r"no file for speech folder=/nowhere/at/all")


# ---- connections


def test_idle_worker_is_closed_after_idle_timeout(lab, results):
    gateway, _ = serve(results, config={"proxy": {"idle_timeout": "300ms"}})
    worker = Worker(lab, gateway)
    closed = worker.client.receive()
    assert (closed.code, closed.reason) == (1000, "idle timeout")


def test_drain_lets_open_streams_finish(lab, results):
    gateway, _ = serve(results)
    worker, idle, task = Worker(lab, gateway), Worker(lab, gateway), new_task()
    waiter = results.wait(gateway, task)
    is_waiting(gateway, task)
    worker.chunk(task, 0, b"one")
    assert next_chunk(waiter, 0, 0) == b"one"
    gateway.may_end = True
    gateway.signal(signal.SIGTERM)
    assert idle.client.receive().code == 1012
    worker.chunk(task, 1, b"two")
    worker.end(task, final=True)
    assert next_chunk(waiter, 1, 3) == b"two"
    ended(waiter)
    waiter.done()
    assert worker.client.receive().code == 1012
    assert gateway.process.wait(PATIENCE) == 0


def test_connections_show_workers(gateway, worker):
    worker.is_heard()
    details = gateway.connections()["details"]
    assert [(one["route"], one["state"]) for one in details] == [("ingest", "ingest")]


def test_plain_get_on_the_path_is_told_to_upgrade(gateway):
    assert gateway.get(PATH).status == 426


def test_upgrade_without_the_library_needs_what_it_always_needs(gateway):
    with pytest.raises(InvalidStatus) as refusal:
        websockets.sync.client.connect(
            f"ws://127.0.0.1:{gateway.port}{PATH}", additional_headers={"X-Forwarded-For": "192.0.2.1"}, proxy=None
        )
    assert refusal.value.response.status_code == 403


# ---- the recipe


EXAMPLE = ROOT / "examples/workers/ingest_tts.py"


def test_example_worker_speaks_and_can_be_stopped(request, results):
    gateway, _ = serve(results, token="s3cret")
    env = {**os.environ, "GATEWAY": f"ws://x:s3cret@127.0.0.1:{gateway.port}{PATH}"}

    def speak(task, text):
        worker = Process([sys.executable, EXAMPLE, task, text], env=env)
        request.addfinalizer(worker.kill)
        return worker

    task, text = new_task(), "Hello there."
    waiter = results.wait(gateway, task)
    is_waiting(gateway, task)
    worker = speak(task, text)
    first = waiter.message()
    assert (first["chunk_id"], first["viseme"], waiter.about["audio_type"]) == (0, "H", "audio/L16;rate=24000")
    assert len(waiter.read_message_frame().payload) == CHUNK
    for number, letter in enumerate(text[1:], 1):
        assert len(next_chunk(waiter, number, number * CHUNK, viseme=letter)) == CHUNK
    ended(waiter)
    waiter.done()
    worker.wait_for_line(f"spoke {len(text)} chunks")
    assert worker.wait() == 0
    task = new_task()
    waiter = results.wait(gateway, task)
    is_waiting(gateway, task)
    worker = speak(task, "x" * 10_000)
    assert waiter.message()["chunk_id"] == 0
    waiter.say(json.dumps({"type": "control", "action": "STOP"}).encode())
    worker.wait_for_line("stopped")
    assert worker.wait() == 0
