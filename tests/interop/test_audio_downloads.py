"""`GET /audio/{task_id}`: the audio of a kept result as a file (docs/protocol.md section 3)."""

import http.server
import io
import json
import os
import signal
import threading
import urllib.error
import urllib.request
import wave

import pytest

from gatewaylab.peers import pattern
from gatewaylab.results import new_task, status
from gatewaylab.slow_folder import SlowFolder
from gatewaylab.wire import eventually

SIZE = 300_007
SAMPLES = 24_000


@pytest.fixture
def stage(results):
    return Stage(results)


class Stage:
    def __init__(self, results, **options):
        self.results = results
        self.gateway, self.inbox = results.embedded(**options)

    def publish(self, name="a.wav", data=None, *, task=None, age=10, **fields):
        """A kept result whose file was last written to `age` seconds ago."""
        if data is not None:
            path = self.results.write(name, data)
            at = path.stat().st_mtime_ns - int(age * 1e9)
            os.utime(path, ns=(at, at))
        task = task or new_task()
        self.inbox.publish(task, text="t", audio_file=name, **fields)
        eventually(lambda: status(self.gateway, task)["status"] == "ready", "the result is kept")
        return task

    def url(self, task):
        return f"http://127.0.0.1:{self.gateway.port}/audio/{task}"


def wav(seconds=1):
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(SAMPLES)
        out.writeframes(bytes(2 * SAMPLES * seconds))
    return file.getvalue()


def test_whole_file_with_what_a_download_needs(stage):
    """200 with type, length, `ETag`, `Last-Modified`; the connection goes on; the query is ignored; audio is counted."""
    data = pattern(SIZE)
    task = stage.publish(data=data)
    client = stage.gateway.connect()
    for target in (f"/audio/{task}", f"/audio/{task}?x=1", f"/audio/{task}/0", f"/audio/%7B{task}%7D"):
        reply = client.get(target)
        assert (reply.status, reply.body) == (200, data)
        assert reply.head["Content-Type"] == "audio/wav"
        assert reply.head["Accept-Ranges"] == "bytes"
        assert reply.head["Cache-Control"] == "private, no-cache"
        assert reply.head["Access-Control-Allow-Origin"] == "*"
        assert reply.head["ETag"].startswith('"') and reply.head["Last-Modified"].endswith(" GMT")
    client.vanish()
    assert stage.gateway.metrics().total("audio_bytes_total") == 4 * SIZE


def test_head_has_the_length_and_no_body(stage):
    task = stage.publish(data=pattern(SIZE))
    client = stage.gateway.connect()
    reply = client.get(f"/audio/{task}", method="HEAD", headers=[("Range", "bytes=0-1")])
    assert (reply.status, reply.head["Content-Length"], reply.body) == (200, str(SIZE), b"")
    assert client.get("/health").status == 200, "a body came although none was asked for"
    client.vanish()


@pytest.mark.parametrize(
    ("asked", "first", "end"),
    [("0-", 0, SIZE), ("0-0", 0, 1), ("65535-196608", 65535, 196609), ("-5", SIZE - 5, SIZE), (f"{SIZE - 1}-", SIZE - 1, SIZE)],
)
def test_part_of_a_file(stage, asked, first, end):
    """206 with `Content-Range` and just these bytes."""
    data = pattern(SIZE)
    task = stage.publish(data=data)
    reply = stage.gateway.get(f"/audio/{task}", headers=[("Range", f"bytes={asked}")])
    assert (reply.status, reply.body) == (206, data[first:end])
    assert reply.head["Content-Range"] == f"bytes {first}-{end - 1}/{SIZE}"


def test_range_beyond_the_end_is_416(stage):
    task = stage.publish(data=pattern(SIZE))
    reply = stage.gateway.get(f"/audio/{task}", headers=[("Range", f"bytes={SIZE}-")])
    assert (reply.status, reply.head["Content-Range"]) == (416, f"bytes */{SIZE}")
    assert reply.json()["status"] == "error"


def test_conditions(stage):
    """304 for what the client has, 206 only of the file that it has begun, 412 for another one."""
    task = stage.publish(data=pattern(SIZE))
    first = stage.gateway.get(f"/audio/{task}").head

    def ask(**headers):
        named = [(name.replace("_", "-"), value) for name, value in headers.items()]
        return stage.gateway.get(f"/audio/{task}", headers=named)

    for known in ({"If_None_Match": first["ETag"]}, {"If_Modified_Since": first["Last-Modified"]}):
        reply = ask(**known)
        assert (reply.status, reply.body, reply.head["ETag"]) == (304, b"", first["ETag"])
    assert ask(If_None_Match='"x"', If_Modified_Since=first["Last-Modified"]).status == 200
    assert ask(Range="bytes=1-", If_Range=first["ETag"]).status == 206
    assert ask(Range="bytes=1-", If_Range=first["Last-Modified"]).status == 206
    assert ask(Range="bytes=1-", If_Range='"x"').status == 200
    assert ask(If_Match='"x"').status == 412
    stage.results.write("a.wav", pattern(SIZE))
    os.utime(stage.results.audio / "a.wav", (1_000_000_000, 1_000_000_000))
    assert ask(If_None_Match=first["ETag"]).status == 200, "the file is another one by now"


def test_first_result_with_audio_unless_one_is_named(stage):
    task = new_task()
    stage.inbox.publish(task, text="no audio", final=False)
    stage.publish("a.wav", b"first", task=task, final=False)
    stage.publish("b.mp3", b"second", task=task)
    eventually(lambda: stage.gateway.get(f"/audio/{task}/2").status == 200, "all are kept")
    for path, body, kind in [("", b"first", "audio/wav"), ("/1", b"first", "audio/wav"), ("/2", b"second", "audio/mpeg")]:
        reply = stage.gateway.get(f"/audio/{task}{path}")
        assert (reply.status, reply.body, reply.head["Content-Type"]) == (200, body, kind)
    assert stage.gateway.get(f"/audio/{task}/0").status == 404
    assert stage.gateway.get(f"/audio/{task}/3").status == 404


def test_what_is_not_there(stage):
    """400 for what is no UUID, 404 when nothing is kept, or its file cannot be had; no path of the server in the answer."""
    (stage.results.audio / "folder").mkdir()
    cases = [
        ("nonsense", 400),
        (f"{new_task()}/x", 400),
        (f"{new_task()}/-1", 400),
        (new_task(), 404),
        (f"{new_task()}/", 404),
        (stage.publish("missing.wav"), 404),
        (stage.publish("../outside.wav"), 404),
        (stage.publish("folder"), 404),
    ]
    for path, expected in cases:
        reply = stage.gateway.get(f"/audio/{path}")
        assert reply.status == expected, path
        assert reply.json()["status"] == "error"
        assert str(stage.results.audio) not in reply.json()["error"]
    stage.gateway.process.wait_for_line('= no audio why="Audio file not found" .*missing.wav')


def test_path_map_and_types_by_content(results):
    """A worker's path is understood as for a WebSocket; a type that no name tells is recognised by the first bytes."""
    stage = Stage(results)
    # A table cannot be written by the suite's own writer of configurations.
    mapped = f"[output]\npath_map = {{ 'C:\\voices' = '{results.audio}' }}"
    stage.gateway.file.write_text(stage.gateway.file.read_text().replace("[output]", mapped))
    stage.gateway.signal(signal.SIGHUP)
    stage.gateway.process.wait_for_line("read again")
    sound = wav()
    results.write("x", sound)
    task = stage.publish("C:\\voices\\x")
    reply = stage.gateway.get(f"/audio/{task}")
    assert (reply.status, reply.body, reply.head["Content-Type"]) == (200, sound, "audio/wav")
    results.write("y", b"noise")
    assert stage.gateway.get(f"/audio/{stage.publish('y')}").head["Content-Type"] == "application/octet-stream"


def test_empty_file(stage):
    task = stage.publish(data=b"")
    reply = stage.gateway.get(f"/audio/{task}")
    assert (reply.status, reply.head["Content-Length"], reply.body) == (200, "0", b"")


def test_young_file_is_sent_as_it_is(results):
    """A file that may still be written to has no `ETag`, no ranges and no `Last-Modified`: it may be another one soon."""
    stage = Stage(results, output={"audio_wait": "60s"})
    task = stage.publish(data=pattern(SIZE), age=0)
    reply = stage.gateway.get(f"/audio/{task}", headers=[("Range", "bytes=0-0")])
    assert (reply.status, reply.body) == (200, pattern(SIZE))
    for name in ("ETag", "Last-Modified", "Accept-Ranges"):
        assert name not in reply.head


def test_file_that_comes_late_is_waited_for(results):
    stage = Stage(results, output={"audio_wait": "60s"})
    task = stage.publish("late.wav")
    client = stage.gateway.connect()
    client.ask(f"/audio/{task}")
    assert stage.gateway.get("/health").status == 200
    results.write("late.wav.tmp", b"here").rename(results.audio / "late.wav")
    assert client.read_reply("GET").body == b"here"
    client.vanish()


def test_download_of_a_slow_reader_is_complete_and_one_that_stalls_is_given_up(results):
    """A long download goes on while the client takes bytes, and ends `write_timeout` after it takes none."""
    large = pattern(20_000_000)
    stage = Stage(results, config={"server": {"write_timeout": "1s"}})
    task = stage.publish(data=large)
    client = stage.gateway.connect(receive_buffer=16 * 1024)
    client.ask(f"/audio/{task}")
    assert client.read_reply("GET").body == large
    client.ask(f"/audio/{task}")
    eventually(stage.gateway.is_empty, "the download that stalled is given up")
    assert stage.gateway.get("/health").status == 200
    client.vanish()


def test_file_that_changes_during_a_download_breaks_it_off(stage):
    """The client sees fewer bytes than announced, never a mixture that looks complete."""
    task = stage.publish(data=pattern(20_000_000))
    client = stage.gateway.connect(receive_buffer=16 * 1024)
    client.ask(f"/audio/{task}")
    assert client.read_head().status == 200
    os.truncate(stage.results.audio / "a.wav", 19_000_000)
    assert read_all(client) < 20_000_000
    stage.gateway.process.wait_for_line('= audio lost why="Audio file changed"')


def read_all(client):
    received = len(client.ahead)
    try:
        while data := client.sock.recv(1 << 20):
            received += len(data)
    except ConnectionResetError:
        pass
    return received


def test_origins_are_those_of_the_socket(results):
    """Pages of `allowed_origins` may read audio and its ranges; others get 403, as they get no WebSocket."""
    stage = Stage(results, config={"server": {"allowed_origins": ["https://app.example"]}})
    task = stage.publish(data=b"sound")
    reply = stage.gateway.get(f"/audio/{task}", headers=[("Origin", "https://app.example")])
    assert (reply.status, reply.head["Access-Control-Allow-Origin"]) == (200, "https://app.example")
    assert reply.head["Vary"] == "Origin"
    assert "Content-Range" in reply.head["Access-Control-Expose-Headers"]
    assert stage.gateway.get(f"/audio/{task}", headers=[("Origin", "https://evil.example")]).status == 403
    assert stage.gateway.get(f"/audio/{task}").status == 200, "a program, or <audio src>"


@pytest.mark.parametrize("target", [f"/audio/{new_task()}", f"/audio/{new_task()}/1", "/client.js"])
def test_preflight_says_which_pages_may_send_conditions(results, target):
    """Scripts may send `Range` and the `If-…` headers from pages that may read the answer."""
    gateway = results.gateway("embedded://127.0.0.1:0", config={"server": {"allowed_origins": ["https://app.example"]}})
    for origin in ("https://app.example", "https://other.example"):
        reply = gateway.get(target, method="OPTIONS", headers=[("Origin", origin)])
        assert reply.status == 200
        assert {"get", "head"} <= set(reply.head.tokens("Access-Control-Allow-Methods"))
        headers = {"range", "if-range", "if-none-match", "if-modified-since"}
        assert headers <= set(reply.head.tokens("Access-Control-Allow-Headers"))
        expected = ["*"] if target == "/client.js" else [origin] if origin == "https://app.example" else []
        assert reply.head.all("Access-Control-Allow-Origin") == expected


def test_stopped_gateway_finishes_a_download(stage):
    """A download is in flight during a drain, and its connection ends behind it."""
    large = pattern(20_000_000)
    task = stage.publish(data=large)
    client = stage.gateway.connect(receive_buffer=16 * 1024)
    client.ask(f"/audio/{task}")
    assert client.read_head().status == 200
    stage.gateway.may_end = True
    stage.gateway.signal(signal.SIGTERM)
    stage.gateway.process.wait_for_line("draining")
    assert read_all(client) == len(large)
    client.vanish()
    assert stage.gateway.process.wait() == 0


@pytest.fixture
def slow(tmp_path):
    folder = SlowFolder(tmp_path / "slow", {"a.wav": pattern(SIZE)})
    yield folder
    folder.stop()


@pytest.mark.parametrize("operation", ["lookup", "open", "read"])
def test_slow_folder_holds_up_nobody_else(results, slow, operation):
    """Nothing in the loop waits for a disk, and what a background thread reads arrives whole."""
    stage = Stage(results, output={"audio_root": str(slow.folder)})
    task = stage.publish("a.wav")
    client = stage.gateway.connect()
    with slow.holding(operation):
        client.ask(f"/audio/{task}")
        slow.wait_until_held(operation)
        assert stage.gateway.get("/health").status == 200
    assert client.read_reply("GET").body == pattern(SIZE)
    part = client.get(f"/audio/{task}", headers=[("Range", "bytes=7-200000")])
    assert (part.status, part.body) == (206, pattern(SIZE)[7:200_001])
    client.vanish()


def test_python_downloads_and_resumes(stage):
    """urllib takes it as any file: the whole, then the rest from where a download broke off."""
    data = pattern(SIZE)
    url = stage.url(stage.publish(data=data))
    with urllib.request.urlopen(url) as reply:
        assert reply.read() == data
        tag = reply.headers["ETag"]
    rest = urllib.request.Request(url, headers={"Range": "bytes=1000-", "If-Range": tag})
    with urllib.request.urlopen(rest) as reply:
        assert (reply.status, reply.read()) == (206, data[1000:])
    known = urllib.request.Request(url, headers={"If-None-Match": tag})
    with pytest.raises(urllib.error.HTTPError) as raised:
        urllib.request.urlopen(known)
    assert raised.value.code == 304


PLAY = """
(url) => new Promise((done) => {
  const audio = new Audio(url);
  audio.muted = true;
  audio.onerror = () => done({ error: audio.error.message });
  audio.onloadedmetadata = () => {
    audio.currentTime = 8.5;
    audio.onseeked = () => {
      audio.play().catch((why) => done({ error: String(why) }));
      audio.onended = () => done({ duration: audio.duration, at: audio.currentTime });
    };
  };
})
"""


class FrontEnd(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", "15")
        self.end_headers()
        self.wfile.write(b"<!doctype html>")

    def log_message(self, *_):
        pass


def test_audio_element_plays_and_seeks(stage, browser):
    """`<audio src>` on a page of another origin knows the length, seeks by a range, and plays to the end."""
    url = stage.url(stage.publish(data=wav(seconds=9)))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), FrontEnd)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        browser.goto(f"http://127.0.0.1:{server.server_port}/")
        played = browser.evaluate(f"({PLAY.strip()})({json.dumps(url)})")
    finally:
        browser.leave()
        server.shutdown()
        server.server_close()
    assert "error" not in played, played
    assert played["duration"] == pytest.approx(9) and played["at"] == pytest.approx(9, abs=0.1)
