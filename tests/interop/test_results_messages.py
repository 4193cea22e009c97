"""What a waiting client is sent (docs/protocol.md section 2): ids, messages, audio, errors, resuming, and what applies to its own
messages.

Results are published by redis-py to a real Redis.
"""

import ctypes
import json
import os
import socket
import uuid

import pytest

from gatewaylab import wire
from gatewaylab.peers import Closed, Message, pattern
from gatewaylab.results import new_task, status
from gatewaylab.wire import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, eventually, frame


@pytest.fixture
def desk(results):
    return Desk(results)


class Desk:
    """A Redis and a gateway that uses it."""

    def __init__(self, results, **options):
        self.results = results
        self.redis = results.redis()
        self.gateway = results.gateway(self.redis, **options)

    def wait(self, task, query="", **options):
        return self.results.wait(self.gateway, task, query, **options)

    def deliver(self, result=None, **fields):
        """Publishes, then connects a client: the client and its task."""
        task = new_task()
        assert self.redis.publish(task, result, **fields) == 1
        return self.wait(task), task


# ---- whose results


def test_bad_task_id_gets_an_error_and_4004(desk):
    """An id that is no UUID: the upgrade is completed, `{"status":"error","error":"Invalid task_id format"}` is sent, close
    4004."""
    for bad in ["1", "nonsense", "7d2b1a52-93a2-4c44-9a94-6a2a4a6cf11", "7d2b1a52-93a2-4c44-9a94-6a2a4a6cf1111", "%", "%zz", "%41"]:
        waiter = desk.wait(bad)
        waiter.refused("Invalid task_id format", 4004, "bad task id")
    desk.gateway.process.wait_for_line(r"closed reason=bad_task_id code=4004 duration=\S+ error=")


TASK = "7d2b1a52-93a2-4c44-9a94-6a2a4a6cf111"
SPELLINGS = {
    "usual": (TASK, TASK),
    "capitals": (TASK.upper(), TASK.upper()),
    "simple": (TASK.replace("-", ""), TASK.replace("-", "")),
    "braces": ("{" + TASK + "}", "{" + TASK + "}"),
    "urn": ("urn:uuid:" + TASK, "urn:uuid:" + TASK),
    "escaped braces": ("%7B" + TASK + "%7d", "{" + TASK + "}"),
    "escaped hyphens": (TASK.replace("-", "%2D"), TASK),
    "all escaped": ("".join(f"%{ord(one):02X}" for one in TASK), TASK),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_id_in_any_form_is_echoed_as_it_was_written(desk, spelling):
    """`task_id` is a UUID in any form that the `uuid` crate reads, and comes back as the client wrote it."""
    segment, echoed = SPELLINGS[spelling]
    desk.results.write("a", b"x")
    waiter = desk.wait(segment)
    waiter.task = echoed
    desk.redis.publish(TASK, text="hi", audio_file="a")
    result = waiter.result()
    assert result.message == {"status": "success", "task_id": echoed, "content": "hi", "audio_present": True}
    assert result.audio == b"x"
    waiter.done()


@pytest.mark.parametrize("published", ["capitals", "simple", "urn"])
def test_worker_and_client_may_spell_the_id_differently(desk, published):
    """Ids are compared as UUIDs, on channels too."""
    waiter = desk.wait(TASK)
    desk.redis.publish(SPELLINGS[published][1], text="hi")
    assert waiter.result().message["task_id"] == TASK
    waiter.done()


def test_id_is_decoded_once(desk):
    """`%`-escapes are decoded once: an id that is escaped twice is no UUID."""
    desk.wait(TASK.replace("-", "%252D")).refused("Invalid task_id format", 4004, "bad task id")


def test_plain_get_on_an_output_path_is_426(desk):
    """A plain GET on a WebSocket path: 426."""
    assert desk.gateway.get(f"/ws/output/{TASK}").status == 426


def test_results_of_other_tasks_are_not_delivered(desk):
    """Each client gets the result of its own task and no other."""
    one, other = new_task(), new_task()
    waiter = desk.wait(one)
    desk.redis.publish(other, text="not yours")
    with desk.redis.client() as worker:
        worker.publish("task_response:", b"{}")
        worker.publish("task_response:nonsense", b"{}")
        worker.publish("other:" + one, json.dumps({"text": "nor this"}))
    desk.redis.publish(one, text="yours")
    assert waiter.result().content == "yours"
    waiter.done()


def test_every_waiting_client_gets_everything(desk):
    """Several clients may wait for one task, here fifty with audio: each gets everything."""
    audio = pattern(200_000)
    desk.results.write("a", audio)
    task = new_task()
    waiters = [desk.wait(task) for _ in range(50)]
    desk.redis.publish(task, text="first", final=False)
    desk.redis.publish(task, text="last", audio_file="a")
    for waiter in waiters:
        first = waiter.result()
        assert first.message == {"status": "success", "task_id": task, "content": "first", "audio_present": False, "final": False}
        last = waiter.result()
        assert (last.content, last.audio) == ("last", audio)
        waiter.done()


# ---- messages


def test_text_comes_first_and_alone(desk):
    """`{"status":"success","task_id":"...","content":"...","audio_present":false}`, and close 1000 after the final result."""
    waiter, task = desk.deliver(text="こんにちは \U0001f399 \"quoted\" \\ \u0000")
    found = waiter.message()
    assert found == {"status": "success", "task_id": task, "content": "こんにちは \U0001f399 \"quoted\" \\ \u0000", "audio_present": False}
    assert list(found) == ["status", "task_id", "content", "audio_present"]
    waiter.done()


@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 65537, 1_000_003])
def test_audio_of_every_size(desk, size):
    """Each chunk of `chunk_size` (64 KiB; the last one may be shorter) is a text message, then a binary message with just its
    bytes. An empty file has no chunk, only `audio_complete`."""
    audio = pattern(size)
    desk.results.write("a.wav", audio)
    waiter, task = desk.deliver(text="t", audio_file="a.wav")
    result = waiter.result()
    assert result.message == {"status": "success", "task_id": task, "content": "t", "audio_present": True}
    total = -(-size // 65536)
    assert result.chunks == [(number, total) for number in range(total)]
    assert result.audio == audio
    waiter.done()


@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 65537, 1_000_003])
def test_libraries_read_audio_of_every_size(desk, open_client, size):
    """The same with `websockets` and `ws`, which offer permessage-deflate; it is not negotiated."""
    audio = pattern(size)
    desk.results.write("a.wav", audio)
    task = new_task()
    client = open_client(f"ws://127.0.0.1:{desk.gateway.port}/ws/output/{task}")
    assert client.extensions == ""
    desk.redis.publish(task, text="t", audio_file="a.wav")
    assert json.loads(client.receive().text)["audio_present"] is True
    total = -(-size // 65536)
    for number in range(total):
        message = json.loads(client.receive().text)
        assert message == {"type": "audio_chunk", "task_id": task, "chunk_id": number, "total_chunks": total}
        assert client.receive() == Message.of(audio[number * 65536 : (number + 1) * 65536])
    assert json.loads(client.receive().text) == {"type": "audio_complete", "task_id": task}
    assert client.receive() == Closed(1000, "done")


def test_chunks_have_the_size_that_is_set(results):
    """Chunks have the size of `chunk_size`."""
    desk = Desk(results, output={"chunk_size": "1KiB"})
    results.write("a", pattern(2500))
    waiter, _ = desk.deliver(text="", audio_file="a")
    result = waiter.result(chunk_size=1024)
    assert result.chunks == [(0, 3), (1, 3), (2, 3)]
    assert result.audio == pattern(2500)
    waiter.done()


def test_large_text_arrives_whole(desk):
    """A text of some megabytes is delivered."""
    text = "x" * 5_000_000
    waiter, _ = desk.deliver(text=text)
    assert waiter.result().content == text
    waiter.done()


# ---- what workers may publish

TEXTS = {
    "text": ({"text": "a"}, "a", {}),
    "text goes before reply": ({"text": "a", "reply": "b"}, "a", {"reply": "b"}),
    "text goes before content": ({"text": "a", "content": "c"}, "a", {}),
    "an empty text is a text": ({"text": "", "reply": "b"}, "", {"reply": "b"}),
    "null is absent": ({"text": None, "reply": "b"}, "b", {}),
    "reply": ({"reply": "b"}, "b", {}),
    "reply goes before content": ({"reply": "b", "content": "c"}, "b", {}),
    "content": ({"content": "c"}, "c", {}),
    "content after nulls": ({"text": None, "reply": None, "content": "c"}, "c", {}),
    "none": ({}, "", {}),
    "all null": ({"text": None, "reply": None, "content": None}, "", {}),
    "status success": ({"text": "a", "status": "success"}, "a", {}),
    "status in capitals": ({"text": "a", "status": "SUCCESS"}, "a", {}),
    "no error": ({"text": "a", "error": False}, "a", {}),
    "null error": ({"text": "a", "error": None}, "a", {}),
    "empty error": ({"text": "a", "error": ""}, "a", {}),
    "no audio: null": ({"text": "a", "audio_file": None}, "a", {}),
    "no audio: empty": ({"text": "a", "audio_file": ""}, "a", {}),
    "final": ({"text": "a", "final": True}, "a", {}),
}


@pytest.mark.parametrize("case", TEXTS)
def test_content_is_text_else_reply_else_content(desk, case):
    """Fields of a result: `text`, else `reply`, else `content`, else `""`; which values mean no error, no audio, and final."""
    published, content, more = TEXTS[case]
    waiter, task = desk.deliver(published)
    assert waiter.message() == {"status": "success", "task_id": task, "content": content, "audio_present": False, **more}
    waiter.done()


FAILURES = {
    "error": ({"error": "no voice"}, "no voice"),
    "error and text": ({"error": "no voice", "text": "a"}, "no voice"),
    "true": ({"error": True}, "Processing failed"),
    "true and text": ({"error": True, "text": "it broke"}, "it broke"),
    "true and reply": ({"error": True, "reply": "it broke"}, "it broke"),
    "status": ({"status": "error"}, "Processing failed"),
    "status and text": ({"status": "failed", "text": "it broke"}, "it broke"),
    "status and error": ({"status": "failed", "text": "t", "error": "e"}, "e"),
    "empty status": ({"status": ""}, "Processing failed"),
    "object": ({"error": {"code": 7, "message": "no voice"}}, "no voice"),
    "object without a message": ({"error": {}, "text": "it broke"}, "it broke"),
    "audio": ({"error": "no voice", "audio_file": "a"}, "no voice"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_failure_is_delivered_as_an_error_and_is_final(desk, case):
    """A `status` other than `success`, or an `error`, is delivered as an error message, and is final."""
    published, error = FAILURES[case]
    desk.results.write("a", b"unused")
    waiter, task = desk.deliver({**published, "emotion": "sad"})
    waiter.refused(error, 1000, "done", task_id=task, emotion="sad")
    assert status(desk.gateway, task) == {"task_id": task, "status": "failed", "connected": False}


MALFORMED = [
    b"",
    b"not JSON",
    b'{"text":"a"',
    b'{"text":"a"} {"text":"b"}',
    b"{text: 'a'}",
    b"[]",
    b'["text"]',
    b'"text"',
    b"1",
    b"null",
    b"true",
    b'{"text":"\xff"}',
    b'{"text":"a\nb"}',
    b'{"text":"a",}',
    b'{"text":NaN}',
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b'{"text":1}',
    b'{"text":["a"]}',
    b'{"text":{}}',
    b'{"text":true}',
    b'{"reply":1}',
    b'{"content":1}',
    b'{"audio_file":1}',
    b'{"audio_file":["a"]}',
    b'{"audio_file":false}',
    b'{"status":1}',
    b'{"status":true}',
    b'{"error":1}',
    b'{"error":[]}',
    b'{"final":"false"}',
    b'{"final":0}',
]


def test_malformed_results_of_every_kind(desk):
    """A result that is not JSON or not an object, or a known field of another type: `Invalid response format`."""
    for published in MALFORMED:
        task = new_task()
        desk.redis.publish(task, published)
        waiter = desk.wait(task)
        message = waiter.message()
        assert message == {"status": "error", "error": "Invalid response format", "task_id": task}, published[:60]
        waiter.done()
        assert status(desk.gateway, task)["status"] == "failed"


def test_failure_that_is_not_final_is_followed_by_others(desk):
    """`final` applies to errors too."""
    waiter, task = desk.deliver({"error": "no voice", "final": False})
    assert waiter.message() == {"status": "error", "error": "no voice", "task_id": task, "final": False}
    desk.redis.publish(task, {"text": "a"})
    assert waiter.result().content == "a"
    waiter.done()


def test_what_is_kept_behind_a_final_or_malformed_result_is_delivered(desk):
    """Several results are kept: they are delivered in order, and the close follows the last one if a final result is among
    them."""
    task = new_task()
    for published in [{"text": "a"}, b"malformed", {"text": "b", "final": False}]:
        desk.redis.publish(task, published)
    waiter = desk.wait(task)
    assert waiter.result().content == "a"
    assert waiter.message()["error"] == "Invalid response format"
    assert waiter.result().content == "b"
    waiter.done()


def test_bad_values_cost_their_field_and_not_the_text(desk):
    """A field that is not JSON becomes null; the text is delivered."""
    waiter, task = desk.deliver(b'\xef\xbb\xbf{"text":"a","x":NaN,"y":"\xff","z":[-Infinity],"ok":1}')
    answer = {"status": "success", "task_id": task, "content": "a", "audio_present": False}
    assert waiter.message() == {**answer, "x": None, "y": None, "z": None, "ok": 1}
    waiter.done()


def test_progress_is_passed_on_and_not_kept(desk):
    """`"status":"progress"` is passed on; it is never final and never kept."""
    task = new_task()
    desk.redis.publish(task, {"status": "queued"})
    waiter = desk.wait(task)
    desk.redis.publish(task, {"status": "Processing", "text": "half"})
    desk.redis.publish(task, {"status": "done", "text": "a"})
    message = waiter.message()
    assert (message["status"], message["content"], message["final"]) == ("progress", "half", False)
    assert waiter.result().content == "a"
    waiter.done()


def test_other_fields_are_passed_on_unchanged(desk):
    """Every other field is passed on in the text or error message, unchanged to the character."""
    extras = '"stats":{"ms":1e400,"n":12345678901234567890.0},"transcript":"\\ud800 \\u00e9","emotion":[null,true,{"a":{}}],"":0,"Text":"x"'
    waiter, task = desk.deliver('{"text":"a",' + extras + "}")
    assert waiter.read_frame().text == f'{{"status":"success","task_id":"{task}","content":"a","audio_present":false,"result_id":0,{extras}}}'
    waiter.done()


def test_reserved_field_names_are_not_passed_on(desk):
    """A field that the gateway sets itself replaces the worker's."""
    ours = {"task_id": "forged", "audio_present": True, "type": "audio_chunk", "chunk_id": 7, "total_chunks": 9}
    waiter, task = desk.deliver({"text": "a", **ours, "emotion": "glad"})
    assert waiter.message() == {"status": "success", "task_id": task, "content": "a", "audio_present": False, "emotion": "glad"}
    waiter.done()


def test_sentence_by_sentence(desk):
    """`final` false: delivered with `"final":false`, with and without audio, and the connection stays open."""
    task = new_task()
    waiter = desk.wait(task)
    for number in range(20):
        audio = pattern(number * 10_000)
        if number % 2:
            desk.results.write(f"{number}", audio)
        desk.redis.publish(task, text=f"{number}", audio_file=f"{number}" if number % 2 else None, final=False, mood=number)
        result = waiter.result()
        assert result.message == {
            "status": "success",
            "task_id": task,
            "content": f"{number}",
            "audio_present": bool(number % 2),
            "final": False,
            "mood": number,
        }
        assert result.audio == (audio if number % 2 else None)
        eventually(lambda: status(desk.gateway, task)["status"] == "waiting", "it waits for the next sentence")
    desk.redis.publish(task, text="end")
    assert waiter.result().message == {"status": "success", "task_id": task, "content": "end", "audio_present": False}
    waiter.done()


def test_equal_results_are_delivered_separately(desk):
    """Identical results are separate results, published before the client came or after."""
    task = new_task()
    for _ in range(2):
        desk.redis.publish(task, text="ha", final=False)
    waiter = desk.wait(task)
    for _ in range(2):
        assert waiter.result().content == "ha"
    for _ in range(2):
        desk.redis.publish(task, text="ha", final=False)
    desk.redis.publish(task, text="end")
    assert [waiter.result().content for _ in range(3)] == ["ha", "ha", "end"]
    waiter.done()


# ---- resuming


@pytest.mark.parametrize("first", [0, 1, 2, 3, 4, 99, 2**64 - 1])
def test_from_chunk_resumes(desk, first):
    """`from_chunk=K`: the text message, then the chunks from K on. K beyond the end: only `audio_complete`."""
    audio = pattern(3 * 65536 + 7)
    desk.results.write("a", audio)
    task = new_task()
    desk.redis.publish(task, text="t", audio_file="a")
    waiter = desk.wait(task, f"?from_chunk={first}")
    result = waiter.result(first_chunk=first)
    assert result.content == "t"
    assert result.chunks == [(number, 4) for number in range(first, 4)]
    assert result.audio == audio[first * 65536 :]
    waiter.done()


def test_lost_connection_is_resumed_where_it_broke(desk):
    """A client that reconnects with `from_chunk`: both parts together are the file."""
    audio = pattern(20 * 65536)
    desk.results.write("a", audio)
    task = new_task()
    desk.redis.publish(task, text="t", audio_file="a")
    waiter = desk.wait(task)
    assert waiter.message()["audio_present"]
    had = b""
    for _ in range(5):
        waiter.message()
        had += waiter.read_frame().payload
    waiter.reset()
    waiter = desk.wait(task, "?from_chunk=5&other=1")
    had += waiter.result(first_chunk=5).audio
    assert had == audio
    waiter.done()


@pytest.mark.parametrize("bad", ["", "x", "-1", "1.5", "0x1", "1e3", " 1", "18446744073709551616", "%31%2e"])
def test_from_chunk_must_be_a_number(desk, bad):
    """`from_chunk` that is not a number: error message, close 4004."""
    task = new_task()
    waiter = desk.wait(task, f"?from_chunk={bad.replace(' ', '%20')}")
    message = waiter.message()
    assert message["status"] == "error" and "from_chunk" in message["error"] and message["task_id"] == task
    waiter.done(4004, "bad task id")


# ---- audio that cannot be sent


def no_audio(desk, name, error):
    waiter, task = desk.deliver(text="the text", audio_file=name, emotion="glad")
    expected = {"status": "success", "task_id": task, "content": "the text", "audio_present": False, "emotion": "glad"}
    assert waiter.message() == expected, name
    waiter.refused(error, 1000, "done", task_id=task)
    assert status(desk.gateway, task)["status"] == "completed"


def test_missing_file_leaves_the_text(desk):
    """A missing audio file: the text message with `"audio_present":false`, then an error message that names it."""
    for name in ["nothing.wav", "no/such/folder.wav", str(desk.results.audio / "nothing"), "x" * 300, "a\0b", "\ud800.wav"]:
        no_audio(desk, name, "Audio file not found")


def test_paths_outside_the_root_are_refused(desk, tmp_path):
    """Only files below `audio_root` are sent, whatever their name."""
    secret = tmp_path / "secret"
    secret.write_text("secret")
    audio = desk.results.audio
    desk.results.write("good", b"x")
    desk.results.write("folder/inside", b"x")
    (audio / "link").symlink_to(secret)
    (audio / "inner-link").symlink_to(audio / "good")
    (audio / "folder-link").symlink_to(tmp_path)
    (audio / "proc-link").symlink_to("/proc/self")
    os.mkfifo(audio / "fifo")
    tricks = [
        "../secret",
        "../audio/good",
        "folder/../../secret",
        "folder/../good",
        str(secret),
        str(audio) + "/../secret",
        str(audio) + "2/good",
        "/etc/passwd",
        "/proc/self/environ",
        "/proc/self/fd/0",
        "/dev/zero",
        "//etc/passwd",
        "link",
        "inner-link",
        "folder-link/secret",
        "proc-link/environ",
        "fifo",
        "folder",
        ".",
        "..",
        "/",
        str(audio),
    ]
    for name in tricks:
        no_audio(desk, name, "Audio file not allowed")
    assert "secret" not in desk.gateway.get("/metrics").body.decode()


def test_file_names_that_are_accepted(desk):
    """Files below `audio_root`: relative and absolute names, subfolders, odd characters."""
    names = ["a.wav", "deep/er/a.wav", "声.wav", "a b%20c?.wav", "-", "..a", "a..", "./a.wav", "deep//er/./a.wav"]
    for number, name in enumerate(names):
        desk.results.write(name, b"%d" % number)
        for written in [name, f"{desk.results.audio}/{name}"]:
            waiter, _ = desk.deliver(text="", audio_file=written)
            assert waiter.result().audio == b"%d" % number, written
            waiter.done()


def test_file_over_the_limit(results):
    """`max_audio`: a larger file is "too large"."""
    desk = Desk(results, output={"max_audio": "1KiB"})
    results.write("fits", bytes(1024))
    results.write("large", bytes(1025))
    waiter, _ = desk.deliver(text="", audio_file="fits")
    assert waiter.result(chunk_size=65536).audio == bytes(1024)
    waiter.done()
    no_audio(desk, "large", "Audio file too large")


def test_unreadable_file(results):
    """A file that cannot be read is "unreadable"."""
    desk = Desk(results, before=without_overrides if os.getuid() == 0 else None)
    results.write("a", b"x").chmod(0)
    no_audio(desk, "a", "Audio file not readable")


def without_overrides():
    """Root can read every file, unless it lacks the capabilities for that."""
    libc = ctypes.CDLL(None)
    for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
        assert libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) == 0


CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, PR_CAPBSET_DROP = 1, 2, 24


def test_missing_audio_root_leaves_the_text(results):
    """`audio_root` is missing: texts are delivered, and files are found once it exists."""
    later = results.folder / "later"
    desk = Desk(results, output={"audio_root": str(later)})
    no_audio(desk, "a", "Audio file not found")
    later.mkdir()
    (later / "a").write_bytes(b"x")
    waiter, _ = desk.deliver(text="", audio_file="a")
    assert waiter.result().audio == b"x"
    waiter.done()


def slowly(desk, size, name="a"):
    """A client with a small window in the middle of a large file; its text message has been read."""
    desk.results.write(name, pattern(size))
    task = new_task()
    desk.redis.publish(task, text="t", audio_file=name)
    waiter = desk.wait(task, receive_buffer=16 * 1024)
    assert waiter.message()["audio_present"]
    eventually(lambda: status(desk.gateway, task)["status"] == "sending", "it is being sent")
    return waiter, task


def test_file_that_vanishes_while_it_is_sent(desk):
    """A file that is deleted while it is sent is delivered to its end."""
    waiter, _ = slowly(desk, 8_000_000)
    (desk.results.audio / "a").unlink()
    audio = b""
    while (message := waiter.message())["type"] == "audio_chunk":
        audio += waiter.read_frame().payload
    assert message["type"] == "audio_complete"
    assert audio == pattern(8_000_000)
    waiter.done()


def test_file_that_shrinks_while_it_is_sent(desk):
    """A file that shrinks while it is sent: an error message and 1011, never wrong bytes. In the middle of a chunk, where no
    frame fits, the connection just ends."""
    size = 8_000_000
    waiter, task = slowly(desk, size)
    # Wholly: in a piece of the page cache that is cut, the kernel clears the rest even where it is on its way to a socket.
    os.truncate(desk.results.audio / "a", 0)
    had = b""
    while True:
        try:
            found = waiter.read_frame()
        except AssertionError as ended:
            assert "connection ended" in str(ended) or "connection reset" in str(ended)
            break
        if found.opcode == BINARY:
            had += found.payload
        elif found.opcode == TEXT:
            message = json.loads(found.text)
            assert message.get("type") != "audio_complete"
            if message.get("status") == "error":
                assert message == {"status": "error", "error": "Audio file changed", "task_id": task}
                waiter.done(1011, "audio file changed")
                break
    assert had == pattern(size)[: len(had)] and len(had) < size
    eventually(lambda: status(desk.gateway, task)["status"] == "failed", "it is known as failed")


def test_no_error_shows_a_path_or_a_workers_bytes(desk):
    """A worker's exception texts and the server's paths never appear in errors to clients."""
    for published in [{"audio_file": "/very/secret/place.wav"}, b'{"text": very secret place}', {"audio_file": "../secret"}]:
        waiter, _ = desk.deliver(published)
        said = waiter.read_to_end().decode("latin-1")
        assert "secret" not in said and str(desk.results.audio) not in said


# ---- time


def test_no_result_in_time(results):
    """No result within `timeout`: `{"status":"error","error":"Processing timeout"}`, close 4008."""
    desk = Desk(results, output={"timeout": "300ms"})
    task = new_task()
    waiter = desk.wait(task)
    message = waiter.message()
    assert message.pop("task_id") == task
    assert message == {"status": "error", "error": "Processing timeout"}
    waiter.done(4008, "processing timeout")
    desk.gateway.process.wait_for_line(f"closed reason=task_timeout code=4008 .*{task}")
    assert status(desk.gateway, task) == {"task_id": task, "status": "timeout", "connected": False}


def test_timeout_fires_even_without_redis(results):
    """The timeout ends the wait even if nothing happens at all."""
    gateway = results.gateway(f"redis://127.0.0.1:{wire.closed_port()}", output={"timeout": "300ms"}, ready=False)
    waiter = results.wait(gateway, new_task())
    assert waiter.message()["error"] == "Processing timeout"
    waiter.done(4008, "processing timeout")


def test_timeout_does_not_interrupt_a_delivery(results):
    """The timeout is about waiting: a client that is being sent a file gets all of it, however long that takes."""
    desk = Desk(results, output={"timeout": "300ms"})
    waiter, _ = slowly(desk, 6_000_000)
    other = desk.wait(new_task())
    assert other.message()["error"] == "Processing timeout"
    other.done(4008, "processing timeout")
    audio = b""
    while waiter.message()["type"] == "audio_chunk":
        audio += waiter.read_frame().payload
    assert audio == pattern(6_000_000)
    waiter.done()


# ---- what the client says


def test_messages_of_clients_are_ignored(desk):
    """What a client sends is ignored, apart from control frames."""
    task = new_task()
    waiter = desk.wait(task)
    waiter.say("hello")
    waiter.frame(BINARY, bytes(4096))
    waiter.frame(TEXT, "a", fin=False)
    waiter.frame(PING, b"in between")
    waiter.frame(CONTINUATION, "b", fin=False)
    waiter.frame(CONTINUATION, "c")
    waiter.frame(PONG, b"unasked")
    waiter.frame(PING, b"")
    waiter.frame(PING, bytes(125))
    for answer in [b"in between", b"", bytes(125)]:
        found = waiter.read_frame()
        assert (found.opcode, found.payload) == (PONG, answer)
    desk.redis.publish(task, text="still here")
    assert waiter.result().content == "still here"
    waiter.done()


def test_frames_cut_at_each_byte(desk):
    """Frames cut anywhere are the same frames (RFC 6455)."""
    waiter = desk.wait(new_task())
    waiter.send_bytewise(frame(TEXT, "héllo", mask=b"mask") + frame(PING, b"x" * 20, mask=b"ksam"))
    assert waiter.read_frame().payload == b"x" * 20


def test_early_bytes_are_read(desk):
    """Frames that come with the request head, before the 101."""
    waiter = desk.results.connect(desk.gateway)
    task = new_task()
    waiter.upgrade(f"/ws/output/{task}", behind=frame(PING, b"early", mask=b"mask") + frame(TEXT, "x", mask=b"mask"))
    waiter.read_switch()
    assert waiter.read_frame().payload == b"early"
    desk.redis.publish(task, text="ok")
    assert waiter.result().content == "ok"
    waiter.done()


TOO_BIG = {
    "one frame": frame(TEXT, "x" * 4097, mask=b"mask"),
    "announced only": b"\x82\xff" + (1 << 40).to_bytes(8, "big") + b"mask",
    "in fragments": frame(TEXT, "x" * 4000, fin=False, mask=b"mask") + frame(CONTINUATION, "x" * 97, mask=b"mask"),
}
PROTOCOL_FAULTS = {
    "no mask": frame(TEXT, "x"),
    "reserved bit": frame(TEXT, "x", rsv=4, mask=b"mask"),
    "reserved opcode": frame(3, "x", mask=b"mask"),
    "reserved control opcode": frame(11, "x", mask=b"mask"),
    "long ping": frame(PING, bytes(126), mask=b"mask"),
    "ping in fragments": frame(PING, b"x", fin=False, mask=b"mask"),
    "continuation of nothing": frame(CONTINUATION, b"x", mask=b"mask"),
    "text inside a text": frame(TEXT, "a", fin=False, mask=b"mask") + frame(TEXT, "b", mask=b"mask"),
    "close of one byte": frame(CLOSE, b"\x03", mask=b"mask"),
    "close with 1005": frame(CLOSE, (1005).to_bytes(2, "big"), mask=b"mask"),
}
NOT_UTF8 = {
    "text": frame(TEXT, b"\xff\xfe", mask=b"mask"),
    "cut character": frame(TEXT, "é".encode()[:1], mask=b"mask"),
    "over fragments": frame(TEXT, "é".encode()[:1], fin=False, mask=b"mask") + frame(CONTINUATION, b"x", mask=b"mask"),
    "surrogate": frame(TEXT, b"\xed\xa0\x80", mask=b"mask"),
}
FAULTS = [
    *((1009, "message too big", *one) for one in TOO_BIG.items()),
    *((1002, "protocol error", *one) for one in PROTOCOL_FAULTS.items()),
    *((1007, "text is not UTF-8", *one) for one in NOT_UTF8.items()),
]


@pytest.mark.parametrize("code, reason, case, sent", FAULTS, ids=[f"{fault[0]} {fault[2]}" for fault in FAULTS])
def test_protocol_errors_of_a_client_end_with_their_code(desk, code, reason, case, sent):
    """Protocol faults end with 1002, bytes that are not UTF-8 with 1007, messages over 4 KiB with 1009."""
    task = new_task()
    waiter = desk.wait(task)
    waiter.send(sent)
    closed = waiter.read_close()
    assert closed.code == code
    assert closed.reason in (reason, "Protocol violation")
    waiter.half_close()
    waiter.expect_end()
    word = {1002: "reason=protocol_fault", 1007: "reason=not_utf8", 1009: "reason=client_message_too_big"}[code]
    if closed.reason == reason:
        desk.gateway.process.wait_for_line(f"closed {word} code={code} .*{task}")
    desk.redis.publish(task, text="kept")
    assert desk.wait(task).result().content == "kept"


def test_message_of_4_kib_is_taken(desk):
    """A message of 4 KiB is allowed, in one frame or several."""
    waiter = desk.wait(new_task())
    waiter.say("x" * 4096)
    waiter.frame(TEXT, "x" * 4000, fin=False)
    waiter.frame(CONTINUATION, "x" * 96)
    waiter.frame(PING, b"still there?")
    assert waiter.read_frame().opcode == PONG


@pytest.mark.parametrize("code", [None, 1000, 1001, 3000, 4999])
def test_client_closes(desk, code):
    """A client's Close is answered with its code, and leaves nothing behind."""
    task = new_task()
    waiter = desk.wait(task)
    waiter.close_frame(code, "" if code is None else "bye")
    assert waiter.read_close().code == code
    waiter.half_close()
    waiter.expect_end()
    eventually(lambda: status(desk.gateway, task) == {"task_id": task, "status": "not_found", "connected": False}, "forgotten")
    assert desk.gateway.connections()["total_connections"] == 0


@pytest.mark.parametrize("how", ["vanish", "reset", "half_close"])
def test_client_that_disconnects_is_noticed_at_once(desk, how):
    """A client that leaves without a Close is noticed at once."""
    task = new_task()
    waiter = desk.wait(task)
    eventually(lambda: status(desk.gateway, task)["connected"], "it is there")
    getattr(waiter, how)()
    eventually(lambda: not status(desk.gateway, task)["connected"], "it has left", patience=4)


def test_silent_clients_are_pinged_then_closed(results):
    """`ping_interval` and `ping_timeout` apply as on relayed routes; a client that answers stays."""
    desk = Desk(results, config={"proxy": {"ping_interval": "200ms", "ping_timeout": "1s"}})
    tasks = [new_task(), new_task()]
    alive, dead = [desk.wait(task) for task in tasks]
    answered = 0
    while status(desk.gateway, tasks[1])["connected"]:
        found = alive.read_frame()
        assert found.opcode == PING
        alive.frame(PONG, found.payload)
        answered += 1
    assert answered >= 2
    assert dead.read_frame().opcode == PING
    dead.expect_gone()
    desk.redis.publish(tasks[0], text="for the living")
    assert alive.result().content == "for the living"
    alive.done()


@pytest.mark.parametrize("size", [4_000_000, 5_123_457, 8_000_000])
def test_ping_behind_a_large_text_is_answered(desk, size):
    """A ping that came while a large message filled the socket is answered once the client reads on."""
    task = new_task()
    waiter = desk.wait(task)
    desk.redis.publish(task, text="x" * size, final=False)
    assert waiter.sock.recv(1, socket.MSG_PEEK), "it is under way, and more than the socket holds"
    waiter.frame(PING, b"are you there?")
    desk.gateway.get("/health")  # by its answer the ping has been seen, too
    assert len(waiter.result().content) == size
    found = waiter.read_frame()
    assert (found.opcode, found.payload) == (PONG, b"are you there?")


def test_nothing_is_compressed(desk):
    """No extension is negotiated on this route, permessage-deflate included; a subprotocol that is offered is accepted."""
    offers = [("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits, x-other")]
    waiter = desk.results.connect(desk.gateway)
    waiter.upgrade(f"/ws/output/{new_task()}", headers=offers)
    assert "Sec-WebSocket-Extensions" not in waiter.read_switch()


def test_task_ids_are_listed(desk):
    """`/connections`: a waiting client has its task, no backend, a state and live counts."""
    task = str(uuid.UUID(new_task())).upper()
    waiter = desk.wait(task)
    sent = waiter.say("x")
    waiter.frame(PING, b"")
    waiter.read_frame()
    (listed,) = desk.gateway.connections()["details"]
    assert (listed["route"], listed["state"], listed["task_id"], listed["backend"]) == ("output", "waiting", task, None)
    assert listed["from_client"] == {"frames": 2, "bytes": len(sent) + 6}
