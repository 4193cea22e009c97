"""Audio that is sent while its worker writes it (docs/protocol.md, "Growing files")."""

import json
import os
import time

import pytest

from gatewaylab.peers import Closed, Message, pattern
from gatewaylab.results import is_waiting, new_task, status
from gatewaylab.slow_folder import SlowFolder
from gatewaylab.wire import BINARY, TEXT, eventually

CHUNK = 65536
PIECE = 960


class Stage:
    """A gateway with its own inbox, and a worker that writes."""

    def __init__(self, results, **options):
        self.results = results
        self.gateway, self.inbox = results.embedded(**options)

    def wait(self, task, query=""):
        return self.results.wait(self.gateway, task, query)

    def speech(self, name="a.wav", task=None, **fields):
        return Speech(self, name, task or new_task(), fields)


class Speech:
    """A growing file, published."""

    def __init__(self, stage, name, task, fields):
        self.stage, self.name, self.task, self.size = stage, name, task, 0
        self.path = stage.results.write("a.wav", b"")
        self.file = open(self.path, "ab", buffering=0)
        stage.inbox.publish(task, text="t", audio_file=name, audio_growing=True, **fields)

    def write(self, count=PIECE):
        self.file.write(pattern(self.size + count)[self.size :])
        self.size += count

    def end(self, name=None):
        self.stage.inbox.publish(self.task, audio_end=name or self.name)


@pytest.fixture
def stage(results):
    return Stage(results)


def read_chunk(waiter):
    """The next chunk: its announcement and its bytes."""
    message = waiter.message()
    assert message["type"] == "audio_chunk", message
    frame = waiter.read_message_frame()
    assert frame.opcode == BINARY
    return message, frame.payload


def read_rest(waiter):
    """All chunks that are still to come, as (number, offset, bytes), and the message behind them."""
    chunks = []
    while (message := waiter.message()).get("type") == "audio_chunk":
        chunks.append((message["chunk_id"], message["offset"], waiter.read_message_frame().payload))
    return chunks, message


def kill(gateway):
    gateway.may_end = True
    gateway.process.kill()


def complete(task):
    return {"type": "audio_complete", "task_id": task}


def error(words, task):
    return {"status": "error", "error": words, "task_id": task}


def test_each_piece_arrives_before_the_next_one_is_written(stage):
    """A piece leaves at once; the end comes with `audio_end`; then the close for which the final result waited."""
    task = new_task()
    waiter = stage.wait(task)
    speech = stage.speech(task=task)
    assert waiter.message()["audio_present"]
    for number in range(5):
        speech.write()
        message, audio = read_chunk(waiter)
        expected = {"chunk_id": number, "total_chunks": None, "offset": number * PIECE}
        assert message == {"type": "audio_chunk", "task_id": task, **expected}
        assert audio == pattern(5 * PIECE)[number * PIECE :][:PIECE]
    assert status(stage.gateway, task)["status"] == "sending"
    speech.end()
    assert waiter.message() == complete(task)
    waiter.done()
    assert status(stage.gateway, task)["status"] == "completed"
    stage.gateway.process.wait_for_line(rf"stream complete result=0 audio={5 * PIECE}B chunks=5 task={task}")


def test_everyone_gets_the_same_chunks(stage):
    """Clients that were there, one that comes late, and those that return for a chunk or a byte, during the speech and after."""
    speech = stage.speech()
    first = stage.wait(speech.task)
    first.message()
    chunks = []
    for size in (PIECE, 1, 70_000, 5):
        speech.write(size)
        while sum(len(audio) for _, _, audio in chunks) < speech.size:
            message, audio = read_chunk(first)
            chunks.append((message["chunk_id"], message["offset"], audio))
    assert [len(audio) for _, _, audio in chunks] == [PIECE, 1, CHUNK, 70_000 - CHUNK, 5]
    late = stage.wait(speech.task)
    late.message()
    by_chunk = stage.wait(speech.task, "?from_chunk=3")
    by_chunk.message()
    by_byte = stage.wait(speech.task, f"?from_result=0&from_byte={PIECE + 11}")
    by_byte.message()
    assert [read_chunk(late)[1] for _ in chunks] == [audio for _, _, audio in chunks]
    speech.write(7)
    speech.end()
    last = (5, speech.size - 7, pattern(speech.size)[-7:])
    for waiter, expected in ((first, [last]), (late, [last]), (by_chunk, [*chunks[3:], last])):
        assert read_rest(waiter) == (expected, complete(speech.task))
        waiter.done()
    rest, end = read_rest(by_byte)
    assert rest[0] == (2, PIECE + 11, chunks[2][2][10:]) and rest[1:] == [*chunks[3:], last] and end == complete(speech.task)
    by_byte.done()
    os.remove(speech.path)
    for query, expected in (("", [*chunks, last]), ("?from_chunk=2", [*chunks[2:], last]), ("?from_chunk=9", [])):
        waiter = stage.wait(speech.task, query)
        waiter.message()
        assert read_rest(waiter) == (expected, complete(speech.task)), query
        waiter.done()


def test_total_is_known_once_the_end_is(stage):
    speech = stage.speech()
    waiter = stage.wait(speech.task)
    waiter.message()
    speech.write()
    assert read_chunk(waiter)[0]["total_chunks"] is None
    speech.end()
    assert waiter.message() == complete(speech.task)
    waiter.done()
    again = stage.wait(speech.task)
    again.message()
    assert read_chunk(again)[0]["total_chunks"] == 1


@pytest.mark.parametrize("name", ["/nowhere/else/a.wav", "file:///nowhere/else/a.wav", "C:\\voice\\a.wav"])
def test_end_under_another_name_of_the_file(results, name):
    """`path_map` applies to names in `audio_end`."""
    # A table cannot be written by the suite's own writer of configurations.
    stage = Stage(results)
    mapped = f"[output]\npath_map = {{ '/nowhere/else' = '{results.audio}', 'C:\\voice' = '{results.audio}' }}"
    stage.gateway.file.write_text(stage.gateway.file.read_text().replace("[output]", mapped))
    stage.gateway.signal(1)
    stage.gateway.process.wait_for_line("read again")
    speech = stage.speech(str(results.audio / "a.wav"))
    waiter = stage.wait(speech.task)
    waiter.message()
    speech.write()
    read_chunk(waiter)
    speech.end(name)
    assert waiter.message() == complete(speech.task)
    waiter.done()


def test_end_that_comes_before_its_result_counts(stage):
    task = new_task()
    stage.inbox.publish(task, audio_end="a.wav")
    stage.results.write("a.wav", pattern(PIECE))
    stage.inbox.publish(task, text="t", audio_file="a.wav", audio_growing=True)
    waiter = stage.wait(task)
    waiter.message()
    assert read_rest(waiter) == ([(0, 0, pattern(PIECE))], complete(task))
    waiter.done()


def test_file_is_delivered_whatever_becomes_of_its_name(stage):
    """The open file counts: it may be renamed, and another one may take its name."""
    speech = stage.speech()
    waiter = stage.wait(speech.task)
    waiter.message()
    speech.write()
    read_chunk(waiter)
    speech.path.rename(speech.path.with_name("b.wav"))
    speech.path.write_bytes(b"another recording")
    speech.write()
    assert read_chunk(waiter)[1] == pattern(2 * PIECE)[PIECE:]
    late = stage.wait(speech.task)
    late.message()
    speech.end()
    assert waiter.message() == complete(speech.task)
    assert b"".join(audio for _, _, audio in read_rest(late)[0]) == pattern(2 * PIECE)


def test_file_that_becomes_shorter_has_changed(stage):
    speech = stage.speech()
    waiter = stage.wait(speech.task)
    waiter.message()
    speech.write()
    read_chunk(waiter)
    os.truncate(speech.path, 10)
    waiter.refused("Audio file changed", 1011, "audio file changed", task_id=speech.task)
    stage.gateway.process.wait_for_line(r"closed .*reason=audio_lost")


def test_stalled_speech_ends_with_1011_and_later_with_1000(results):
    """No growth for `audio_stall`: an error, and 1011; one that returns gets its chunks, the error, and 1000."""
    stage = Stage(results, output={"audio_stall": "300ms"})
    speech = stage.speech()
    waiter = stage.wait(speech.task)
    waiter.message()
    speech.write()
    read_chunk(waiter)
    waiter.refused("Audio stalled", 1011, "audio stalled", task_id=speech.task)
    stage.gateway.process.wait_for_line(r'stream lost why="Audio stalled" file="a.wav" root="/')
    stage.gateway.process.wait_for_line(r"closed .*reason=audio_stalled")
    assert status(stage.gateway, speech.task)["status"] == "failed"
    assert 'audio_failed_total{reason="stalled"} 1' in stage.gateway.get("/metrics").body.decode()
    for query, chunks in (("", [(0, 0, pattern(PIECE))]), ("?from_chunk=1", [])):
        again = stage.wait(speech.task, query)
        again.message()
        assert read_rest(again) == (chunks, error("Audio stalled", speech.task))
        again.done()


def test_what_follows_a_stalled_speech_is_delivered(results):
    stage = Stage(results, output={"audio_stall": "300ms"})
    speech = stage.speech(final=False)
    waiter = stage.wait(speech.task)
    waiter.message()
    speech.write()
    read_chunk(waiter)
    assert waiter.message() == error("Audio stalled", speech.task)
    stage.inbox.publish(speech.task, text="next")
    assert waiter.result().content == "next"
    waiter.done()


def test_speech_that_becomes_too_large(results):
    stage = Stage(results, output={"max_audio": 2 * PIECE})
    speech = stage.speech()
    waiter = stage.wait(speech.task)
    waiter.message()
    speech.write(2 * PIECE)
    read_chunk(waiter)
    speech.write(1)
    waiter.refused("Audio too large", 1011, "audio too large", task_id=speech.task)
    stage.gateway.process.wait_for_line(r"closed .*reason=audio_too_large")


def test_later_results_wait_for_the_end_of_the_speech(stage):
    speech = stage.speech()
    waiter = stage.wait(speech.task)
    waiter.message()
    stage.inbox.publish(speech.task, text="next")
    speech.write()
    read_chunk(waiter)
    speech.end()
    assert waiter.message() == complete(speech.task)
    assert waiter.result().content == "next"
    waiter.done()


def test_each_piece_of_a_speech_renews_timeout(results):
    stage = Stage(results, output={"timeout": "2s"})
    speech = stage.speech(final=False)
    waiter = stage.wait(speech.task)
    waiter.message()
    began = time.monotonic()
    while time.monotonic() < began + 3:
        speech.write()
        read_chunk(waiter)
    speech.end()
    assert waiter.message() == complete(speech.task)
    waiter.refused("Processing timeout", 4008, "processing timeout", task_id=speech.task)


def test_speech_that_is_silent_for_timeout_ends(results):
    stage = Stage(results, output={"timeout": "200ms", "audio_stall": "0s"})
    speech = stage.speech()
    waiter = stage.wait(speech.task)
    waiter.message()
    waiter.refused("Processing timeout", 4008, "processing timeout", task_id=speech.task)


def test_stop_ends_a_speech(stage):
    speech = stage.speech()
    waiter = stage.wait(speech.task)
    waiter.message()
    speech.write()
    read_chunk(waiter)
    waiter.say('{"type":"control","action":"STOP"}')
    assert waiter.message() == {"type": "control", "action": "STOP_ACK", "task_id": speech.task}
    waiter.done(1000, "stopped")
    speech.end()
    eventually(lambda: "inotify" in descriptors(stage.gateway), "the watch was opened")
    eventually(lambda: "a.wav" not in descriptors(stage.gateway), "the file is closed")


def descriptors(gateway):
    folder = f"/proc/{gateway.pid}/fd"
    links = []
    for name in os.listdir(folder):
        try:
            links.append(os.readlink(f"{folder}/{name}"))
        except OSError:
            pass
    return " ".join(links)


def test_open_speech_is_not_evicted(results):
    """Its result outlives `retain` and `max_retained` while it grows."""
    stage = Stage(results, output={"retain": "1s", "max_retained": 20_000})
    speech = stage.speech()
    waiter = stage.wait(speech.task)
    waiter.message()
    speech.write()
    read_chunk(waiter)
    evicted = 'results_evicted_total'
    for _ in range(10):
        stage.inbox.publish(new_task(), text="x" * 5000)
    eventually(lambda: stage.gateway.metrics().total(evicted) > 0, "others are evicted")
    gone = new_task()
    stage.inbox.publish(gone, text="short")
    eventually(lambda: status(stage.gateway, gone)["status"] == "not_found", "others have expired")
    again = stage.wait(speech.task, "?from_chunk=1")
    assert again.message()["audio_present"]
    speech.end()
    assert read_rest(again) == ([], complete(speech.task))


@pytest.mark.parametrize("sets", [False, True])
def test_after_a_restart_chunks_begin_anew(results, sets):
    """Boundaries are not kept: `from_chunk` is answered from chunk 0, `from_byte` from its byte. `SET` is as good as `PUBLISH`."""
    redis = results.redis()
    gateway = results.gateway(redis)
    task = new_task()
    path = results.write("a.wav", pattern(3 * PIECE))
    growing = json.dumps({"text": "t", "audio_file": "a.wav", "audio_growing": True})
    waiter = results.wait(gateway, task)
    is_waiting(gateway, task)
    with redis.client() as worker:
        worker.publish(f"task_response:{task}", growing)
        waiter.message()
        read_chunk(waiter)
        eventually(lambda: worker.exists(f"task_response_kept:{task}"), "it is kept")
        waiter.vanish()
        kill(gateway)
        if sets:
            worker.set(f"task_response:{task}", growing, ex=300)
        gateway = results.gateway(redis)
        by_chunk = results.wait(gateway, task, "?from_chunk=1")
        assert by_chunk.message()["audio_present"]
        assert read_chunk(by_chunk)[0]["chunk_id"] == 0
        by_byte = results.wait(gateway, task, f"?from_result=0&from_byte={PIECE}")
        by_byte.message()
        assert read_chunk(by_byte)[1] == pattern(3 * PIECE)[PIECE:]
        with open(path, "ab") as file:
            file.write(b"end")
        if sets:
            worker.set(f"task_response:{task}", json.dumps({"audio_end": "a.wav"}), ex=300)
        worker.publish(f"task_response:{task}", json.dumps({"audio_end": "a.wav"}))
    for waiter in (by_chunk, by_byte):
        assert read_chunk(waiter)[1] == b"end"
        assert waiter.message() == complete(task)
        waiter.done()


def test_end_is_kept_with_the_result(results):
    """After a restart, and on a gateway that did not hear it, the audio is complete."""
    redis = results.redis()
    gateway = results.gateway(redis)
    task = new_task()
    results.write("a.wav", pattern(PIECE))
    waiter = results.wait(gateway, task)
    is_waiting(gateway, task)
    with redis.client() as worker:
        worker.publish(f"task_response:{task}", json.dumps({"text": "t", "audio_file": "a.wav", "audio_growing": True}))
        waiter.message()
        read_chunk(waiter)
        worker.publish(f"task_response:{task}", json.dumps({"audio_end": "a.wav"}))
        assert waiter.message() == complete(task)
        waiter.done()
        eventually(lambda: worker.hget(f"task_response_kept:{task}", "ends") is not None, "it is kept")
    kill(gateway)
    gateway = results.gateway(redis)
    waiter = results.wait(gateway, task)
    assert waiter.message()["audio_present"]
    message, audio = read_chunk(waiter)
    assert (message["total_chunks"], audio) == (1, pattern(PIECE))
    assert waiter.message() == complete(task)
    waiter.done()


@pytest.fixture
def silent(results, tmp_path):
    """A folder where the kernel reports nothing: its files grow on a server."""
    folder = SlowFolder(tmp_path / "silent", {"a.wav": b""})
    yield folder
    folder.stop()


def test_folder_where_the_kernel_reports_nothing(results, silent):
    """There the file is looked at by a timer, and nobody waits for that."""
    stage = Stage(results, output={"audio_root": str(silent.folder)})
    task = new_task()
    stage.inbox.publish(task, text="t", audio_file="a.wav", audio_growing=True)
    waiter = stage.wait(task)
    waiter.message()
    for number in range(4):
        silent.contents[0] += pattern(4 * PIECE)[number * PIECE :][:PIECE]
        message, audio = read_chunk(waiter)
        assert (message["chunk_id"], audio) == (number, pattern(4 * PIECE)[number * PIECE :][:PIECE])
    with silent.holding("getattr"):
        silent.wait_until_held("getattr")
        assert stage.gateway.get("/health").status == 200
        silent.contents[0] += b"end"
        stage.inbox.publish(task, audio_end="a.wav")
    chunks, end = read_rest(waiter)
    assert b"".join(audio for _, _, audio in chunks) == b"end" and end == complete(task)
    waiter.done()


def test_libraries_hear_it_while_it_is_made(stage, open_client):
    """`websockets` and `ws` get each piece as it is written."""
    speech = stage.speech()
    client = open_client(f"ws://127.0.0.1:{stage.gateway.port}/ws/output/{speech.task}")
    assert json.loads(client.receive().text)["audio_present"]
    for number in range(10):
        offset = speech.size
        speech.write()
        told = json.loads(client.receive().text)
        assert (told["chunk_id"], told["total_chunks"], told["offset"]) == (number, None, offset)
        assert client.receive() == Message.of(pattern(speech.size)[offset:])
    speech.end()
    assert json.loads(client.receive().text) == complete(speech.task)
    assert client.receive() == Closed(1000, "done")


def test_young_file_that_grows_has_the_same_chunks_for_everyone(stage):
    """A file that was published too early is a stream like any other: a client that returns gets the rest of the chunks."""
    path = stage.results.write("a.wav", pattern(100))
    task = new_task()
    waiter = stage.wait(task)
    is_waiting(stage.gateway, task)
    large = stage.results.write("b.wav", pattern(4_000_000))
    stage.inbox.publish(task, text="t", audio_file="b.wav")
    assert path.exists() and waiter.message()["audio_present"]
    first = waiter.message()
    assert (first["chunk_id"], first["total_chunks"]) == (0, -(-4_000_000 // CHUNK))
    with open(large, "ab") as file:
        file.write(b"more")
    waiter.read_message_frame()
    sizes = []
    while (message := waiter.message())["type"] == "audio_chunk":
        frame = waiter.read_message_frame()
        assert frame.opcode != TEXT
        sizes.append(len(frame.payload))
    assert message == complete(task)
    assert sum(sizes) + CHUNK == 4_000_004
    again = stage.wait(task, f"?from_chunk={len(sizes) - 1}")
    again.message()
    rest = []
    while (message := again.message())["type"] == "audio_chunk":
        rest.append(len(again.read_message_frame().payload))
    assert rest == sizes[-2:]


# ---- GET /audio


def download(stage, task, version="1.1", target=None):
    client = stage.gateway.connect()
    client.send(f"GET /audio/{target or task} HTTP/{version}\r\nHost: a\r\n\r\n".encode())
    return client


def test_download_grows_with_the_speech(stage):
    """Chunked, without `Range` and `ETag`, each piece as it is written; then the next request."""
    speech = stage.speech()
    speech.write(3)
    client = download(stage, speech.task)
    head = client.read_head()
    assert head.status == 200 and head["Content-Type"] == "audio/wav" and head["Transfer-Encoding"] == "chunked"
    assert not any(name in head for name in ("Content-Length", "ETag", "Accept-Ranges", "Last-Modified"))
    assert client.read(8) == b"3\r\n" + pattern(3) + b"\r\n"
    for _ in range(3):
        before = speech.size
        speech.write()
        assert client.read(967) == b"3c0\r\n" + pattern(speech.size)[before:] + b"\r\n"
    speech.end()
    assert client.read(5) == b"0\r\n\r\n"
    whole = client.get(f"/audio/{speech.task}")
    assert whole.body == pattern(speech.size) and "ETag" in whole.head and "Content-Length" in whole.head
    client.vanish()


def test_download_by_an_old_client_ends_with_the_connection(stage):
    speech = stage.speech()
    speech.write()
    client = download(stage, speech.task, version="1.0")
    head = client.read_head()
    assert "Transfer-Encoding" not in head and head["Connection"] == "close"
    assert client.read(PIECE) == pattern(PIECE)
    speech.write()
    speech.end()
    assert client.read(PIECE) == pattern(2 * PIECE)[PIECE:]
    client.expect_end()


@pytest.mark.parametrize("how", ["stall", "stop", "shorter"])
def test_download_of_a_speech_that_is_not_completed_breaks_off(results, how):
    """No last chunk: the client sees that something is missing."""
    stage = Stage(results, output={"audio_stall": "300ms" if how == "stall" else "60s"})
    speech = stage.speech()
    speech.write()
    client = download(stage, speech.task)
    client.read_head()
    assert client.read(967).endswith(pattern(PIECE) + b"\r\n")
    if how == "stop":
        body = json.dumps({"task_id": speech.task})
        other = stage.gateway.connect()
        other.send(f"POST /control/stop HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
        assert other.read_reply("POST").status == 200
        other.vanish()
    elif how == "shorter":
        os.truncate(speech.path, 5)
    client.expect_end()
    if how == "stop":
        assert stage.gateway.get(f"/audio/{speech.task}").status == 404


def test_head_of_a_growing_file(stage):
    speech = stage.speech()
    client = stage.gateway.connect()
    reply = client.get(f"/audio/{speech.task}", method="HEAD")
    assert reply.status == 200 and reply.head["Transfer-Encoding"] == "chunked" and reply.body == b""
    assert client.get("/health").status == 200
    client.vanish()


def test_download_and_sockets_share_one_stream(stage):
    """Whoever comes first opens the file; the download of an ended speech has a length."""
    speech = stage.speech()
    client = download(stage, speech.task)
    client.read_head()
    waiter = stage.wait(speech.task)
    waiter.message()
    speech.path.unlink()
    speech.write()
    assert read_chunk(waiter)[1] == pattern(PIECE) and client.read(967).endswith(pattern(PIECE) + b"\r\n")
    client.vanish()
    speech.end()
    assert waiter.message() == complete(speech.task)
    waiter.done()
    assert stage.gateway.get(f"/audio/{speech.task}", headers=[("Range", "bytes=0-9")]).body == pattern(10)


def test_two_gateways_deliver_the_same_speech(results):
    """Both hear `audio_end`; the client of each gets everything."""
    redis = results.redis()
    gateways = [results.gateway(redis) for _ in range(2)]
    task = new_task()
    results.write("a.wav", pattern(PIECE))
    waiters = [results.wait(gateway, task) for gateway in gateways]
    for gateway in gateways:
        is_waiting(gateway, task)
    with redis.client() as worker:
        growing = {"text": "t", "audio_file": "a.wav", "audio_growing": True}
        worker.publish(f"task_response:{task}", json.dumps(growing))
        for waiter in waiters:
            waiter.message()
            assert read_chunk(waiter)[1] == pattern(PIECE)
        worker.publish(f"task_response:{task}", json.dumps({"audio_end": "a.wav"}))
    for waiter in waiters:
        assert waiter.message() == complete(task)
        waiter.done()
