"""Numbers and types of results: `result_id`, `audio_type`, `from_result`, `from_byte`."""

import json
import signal

import pytest

from gatewaylab.peers import Message, pattern
from gatewaylab.results import is_waiting, new_task, status
from gatewaylab.wire import eventually

CHUNK = 65536


@pytest.fixture
def redis(results):
    return results.redis()


@pytest.fixture
def gateway(results, redis):
    return results.gateway(redis)


def numbers(waiter, count):
    """The next results as (number, text)."""
    return [(waiter.about["result_id"], message["content"]) for message in (waiter.message() for _ in range(count))]


def test_results_are_numbered_from_zero_errors_too_and_progress_is_not(results, redis, gateway):
    task = new_task()
    waiter = results.wait(gateway, task)
    is_waiting(gateway, task)
    redis.publish(task, text="a", final=False)
    redis.publish(task, status="processing", text="b")
    redis.publish(task, error="c", final=False)
    redis.publish(task, text="d")
    seen = []
    for _ in range(4):
        message = waiter.message()
        seen.append((message.get("content", message.get("error")), waiter.about["result_id"]))
    assert seen == [("a", 0), ("b", None), ("c", 1), ("d", 2)]
    waiter.done()


def test_numbers_are_the_same_on_another_gateway_and_after_a_restart(results, redis, gateway):
    task = new_task()
    texts = ["Hm.", "Yes!", "Hm."]
    for text in texts:
        redis.publish(task, text=text, final=False)
    wanted = list(enumerate(texts))
    assert numbers(results.wait(gateway, task), 3) == wanted
    other = results.gateway(redis)
    assert numbers(results.wait(other, task), 3) == wanted
    for one in (gateway, other):
        one.may_end = True
        one.signal(signal.SIGTERM)
        assert one.process.wait() == 0
    fresh = results.gateway(redis)
    redis.publish(task, text="last")
    waiter = results.wait(fresh, task)
    assert numbers(waiter, 4) == [*wanted, (3, "last")]
    waiter.done()


def test_from_result_leaves_out_what_the_client_has(results, redis, gateway):
    task = new_task()
    for text in ["a", "b", "c"]:
        redis.publish(task, text=text, final=text == "c")
    eventually(lambda: status(gateway, task)["status"] == "ready", "the results are known")
    for first in range(3):
        waiter = results.wait(gateway, task, f"?from_result={first}")
        assert numbers(waiter, 3 - first) == list(enumerate("abc"))[first:]
        waiter.done()
    # It has had the final one, and missed the Close frame.
    results.wait(gateway, task, "?from_result=3").done()


def test_from_result_waits_for_what_is_not_published_yet(results, redis, gateway):
    task = new_task()
    redis.publish(task, text="a", final=False)
    waiter = results.wait(gateway, task, "?from_result=1")
    is_waiting(gateway, task)
    redis.publish(task, text="b")
    assert numbers(waiter, 1) == [(1, "b")]
    waiter.done()


def test_numbers_go_on_behind_what_a_client_has_seen_elsewhere(results):
    """Without a Redis, a restart forgets the numbers: a client that has had three results gets those that come then."""
    gateway, inbox = results.embedded()
    task = new_task()
    waiter = results.wait(gateway, task, "?from_result=3")
    is_waiting(gateway, task)
    inbox.publish(task, text="d")
    assert numbers(waiter, 1) == [(3, "d")]
    waiter.done()


@pytest.mark.parametrize("first_chunk", [0, 1, 3, 4, 99])
def test_from_chunk_counts_in_the_result_that_is_asked_for(results, redis, gateway, first_chunk):
    one, other = pattern(2 * CHUNK + 5), pattern(3 * CHUNK + 5)
    results.write("a.wav", one)
    results.write("b.wav", other)
    task = new_task()
    redis.publish(task, text="a", audio_file="a.wav", final=False)
    redis.publish(task, text="b", audio_file="b.wav", final=False)
    redis.publish(task, text="c", audio_file="a.wav")
    waiter = results.wait(gateway, task, f"?from_result=1&from_chunk={first_chunk}")
    result = waiter.result(first_chunk=first_chunk)
    assert (result.content, result.audio) == ("b", other[first_chunk * CHUNK :])
    last = waiter.result()
    assert (last.content, last.audio) == ("c", one)
    waiter.done()


@pytest.mark.parametrize("first", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 4, 3 * CHUNK + 5, 10**12])
def test_from_byte_resumes_at_a_byte(results, redis, gateway, first):
    audio = pattern(3 * CHUNK + 5)
    results.write("a.wav", audio)
    task = new_task()
    redis.publish(task, text="t", audio_file="a.wav")
    waiter = results.wait(gateway, task, f"?from_result=0&from_byte={first}")
    assert waiter.message()["content"] == "t"
    got = b""
    while (message := waiter.message())["type"] == "audio_chunk":
        at = first + len(got)
        assert message == {"type": "audio_chunk", "task_id": task, "chunk_id": at // CHUNK, "total_chunks": 4, "offset": at}
        payload = waiter.read_frame().payload
        assert len(payload) == min(CHUNK - at % CHUNK, len(audio) - at)
        got += payload
    assert got == audio[first:]
    waiter.done()


@pytest.mark.parametrize("name", ["from_result", "from_byte"])
@pytest.mark.parametrize("bad", ["", "x", "-1", "1.5", "18446744073709551616"])
def test_what_is_not_a_number_is_refused(results, gateway, name, bad):
    task = new_task()
    waiter = results.wait(gateway, task, f"?{name}={bad}")
    waiter.refused(f"Invalid {name} format", 4004, "bad task id", task_id=task)


@pytest.mark.parametrize(
    ("name", "first_bytes", "wanted"),
    [
        ("a.wav", b"whatever", "audio/wav"),
        ("a.MP3", b"RIFF", "audio/mpeg"),
        ("a.opus", b"OggS", "audio/ogg"),
        ("sound", b"RIFF\x24\0\0\0WAVEfmt ", "audio/wav"),
        ("sound.tmp", b"fLaC\0", "audio/flac"),
        ("b", b"no idea", None),
        ("empty", b"", None),
    ],
)
def test_audio_type_is_that_of_the_extension_or_the_first_bytes(results, redis, gateway, name, first_bytes, wanted):
    results.write(name, first_bytes)
    task = new_task()
    redis.publish(task, text="t", audio_file=name)
    waiter = results.wait(gateway, task)
    result = waiter.message()
    assert result["audio_present"]
    assert waiter.about == {"result_id": 0, "audio_type": wanted}
    waiter.reset()


def test_a_library_reads_numbers_and_types(results, redis, gateway, open_client):
    """`websockets` and `ws`: the new fields come behind those of older messages."""
    results.write("a.wav", b"sound")
    task = new_task()
    client = open_client(f"ws://127.0.0.1:{gateway.port}/ws/output/{task}?from_byte=2")
    is_waiting(gateway, task)
    redis.publish(task, text="t", audio_file="a.wav", emotion="joy")
    message = json.loads(client.receive().text)
    assert list(message) == ["status", "task_id", "content", "audio_present", "result_id", "audio_type", "emotion"]
    message = json.loads(client.receive().text)
    assert (message["chunk_id"], message["total_chunks"], message["offset"]) == (0, 1, 2)
    assert client.receive() == Message.of(b"und")
