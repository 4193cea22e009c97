"""`GET /events`: a snapshot a second as Server-Sent Events, for as many as watch."""

import datetime
import json
import signal

import pytest

from gatewaylab.gateway import route, run, toml
from gatewaylab.results import is_waiting, new_task
from gatewaylab.wire import closed_port, eventually


class Watcher:
    """A client that listens to `path`."""

    def __init__(self, lab, gateway, path="/events", version="1.1"):
        self.client = lab.client(gateway)
        self.client.send(f"GET {path} HTTP/{version}\r\nHost: 127.0.0.1\r\n\r\n".encode())
        self.head = self.client.read_head()
        self.is_chunked = "chunked" in self.head.tokens("Transfer-Encoding") if "Transfer-Encoding" in self.head else False
        self.text = ""

    def line(self, end=b"\r\n"):
        out = b""
        while not out.endswith(end):
            out += self.client.read(1)
        return out

    def event(self):
        """The next event: its name and its data. `None`: the stream has ended."""
        while "\n\n" not in self.text:
            if self.is_chunked:
                length = int(self.line(), 16)
                piece = self.client.read(length + 2)[:length]
                if not length:
                    return None
                self.text += piece.decode()
            else:
                self.text += self.line(b"\n\n").decode()
        event, _, self.text = self.text.partition("\n\n")
        fields = dict(line.split(": ", 1) for line in event.split("\n"))
        return self.event() if list(fields) == ["retry"] else (fields["event"], json.loads(fields["data"]))

    def snapshot(self):
        name, data = self.event()
        assert name == "snapshot"
        return data


@pytest.fixture
def watch(lab):
    return lambda gateway, *args: Watcher(lab, gateway, *args)


def test_snapshot_comes_at_once_and_every_second(lab, watch):
    """An event `snapshot` at once and every second, with all of its fields."""
    backend = lab.backend()
    gateway = lab.gateway(backend=backend.url())
    watcher = watch(gateway)
    assert watcher.head.status == 200
    assert watcher.head["Content-Type"] == "text/event-stream"
    assert watcher.head["Cache-Control"] == "no-store"
    first, second, third = (watcher.snapshot() for _ in range(3))
    fields = ["time", "uptime_seconds", "draining", "health", "connections", "rates", "tasks", "latency", "closed", "process"]
    assert list(first) == fields
    times = [datetime.datetime.fromisoformat(one["time"]) for one in (first, second, third)]
    for before, after in zip(times, times[1:]):
        assert 0.9 <= (after - before).total_seconds() < 5
    assert first["health"] | {"uptime_seconds": 0} == gateway.get("/health").json() | {"uptime_seconds": 0}
    assert first["connections"] == {"open": 0, "opened_total": 0, "by_route": {"input": 0}}
    assert first["process"]["open_fds"] > 3 and first["process"]["memory_bytes"] > 1_000_000


def test_traffic_and_endings_are_in_the_snapshot(lab, watch):
    backend = lab.backend()
    gateway = lab.gateway(backend=backend.url())
    watcher = watch(gateway)
    watcher.snapshot()
    client, peer = lab.pair(gateway, backend)
    sent = client.say("hello")
    peer.read_frame()
    seen = eventually(lambda: (one := watcher.snapshot())["rates"]["from_client"]["frames"] > 0 and one, "the frame is in a rate")
    assert seen["connections"] == {"open": 1, "opened_total": 1, "by_route": {"input": 1}}
    assert seen["rates"]["to_backend"] == seen["rates"]["from_client"]
    assert 0 < seen["rates"]["from_client"]["bytes"] <= len(sent)
    client.close_frame(1000)
    peer.read_close()
    peer.close_frame(1000)
    client.read_close()
    peer.half_close()
    client.half_close()
    [ending] = eventually(lambda: watcher.snapshot()["closed"], "the end is in a snapshot")
    assert [ending] == gateway.get("/connections/closed").json()["closed"]


def test_tasks_and_latency_are_in_the_snapshot(results, watch):
    gateway, inbox = results.embedded()
    watcher = watch(gateway)
    assert watcher.snapshot()["latency"]["publish_to_text"] == {"p50": None, "p99": None}
    waiter = results.wait(gateway, task := new_task())
    is_waiting(gateway, task)
    eventually(lambda: watcher.snapshot()["tasks"] == {"waiting": 1, "sending": 0, "completed": 0, "failed": 0}, "it waits")
    inbox.publish(task, text="hi")
    waiter.message()
    waiter.done()
    eventually(lambda: watcher.snapshot()["tasks"] == {"waiting": 0, "sending": 0, "completed": 1, "failed": 0}, "it is completed")
    latency = watcher.snapshot()["latency"]["publish_to_text"]
    assert 0 < latency["p50"] <= latency["p99"] < 60_000


def test_backend_states_say_since_when_and_why(lab, watch):
    """`/health` for admins: `backend_states`, by route and URL."""
    url = f"ws://127.0.0.1:{closed_port()}/"
    gateway = lab.gateway(backend=url)
    watcher = watch(gateway)
    assert watcher.snapshot()["health"]["backend_states"] == {"input": {url: {"state": "untried"}}}
    client = lab.client(gateway)
    client.upgrade()
    client.read_switch()
    client.read_close()
    state = gateway.get("/health").json()["backend_states"]["input"][url]
    assert (state["state"], state["error"]) == ("failed", "connection refused")
    since = datetime.datetime.fromisoformat(state["since"])
    assert abs((datetime.datetime.now(datetime.timezone.utc) - since).total_seconds()) < 60


def test_strangers_get_403(lab):
    gateway = lab.gateway({"server": {"admin_from": ["192.0.2.1"]}}, backend="ws://127.0.0.1:9/")
    reply = gateway.get("/events")
    assert reply.status == 403 and "admin_from" in reply.json()["error"]
    assert "backend_states" not in gateway.get("/health").json()


def test_head_of_the_stream_has_no_body(lab):
    client = lab.client(lab.gateway(backend="ws://127.0.0.1:9/"))
    client.send(b"HEAD /events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    assert client.read_head()["Content-Type"] == "text/event-stream"
    assert client.get("/health").status == 200


def test_client_of_http_1_0_gets_plain_events(lab, watch):
    """It knows no chunks: the events come as they are."""
    watcher = watch(lab.gateway(backend="ws://127.0.0.1:9/"), "/events", "1.0")
    assert "Transfer-Encoding" not in watcher.head
    assert watcher.snapshot() and watcher.snapshot()


def test_snapshot_is_made_once_for_all_watchers(lab, watch):
    gateway = lab.gateway(backend="ws://127.0.0.1:9/")
    watchers = [watch(gateway) for _ in range(20)]
    for watcher in watchers:
        watcher.snapshot()
    second = [watcher.snapshot()["time"] for watcher in watchers]
    third = [watcher.snapshot()["time"] for watcher in watchers]
    assert len(set(second) | set(third)) <= 3, "they share them"


def test_too_many_watchers_get_503(lab):
    gateway = lab.gateway(backend="ws://127.0.0.1:9/")
    clients = []
    for _ in range(256):
        client = lab.client(gateway)
        client.send(b"GET /events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert client.read_head().status == 200
        clients.append(client)
    assert gateway.get("/events").status == 503
    clients[0].vanish()
    eventually(lambda: lab.client(gateway).get("/events", method="HEAD").status == 200, "there is room again")


def test_streams_end_when_the_last_session_has(lab, watch):
    """A drain: watchers see it to its end, and then their stream ends whole."""
    backend = lab.backend()
    gateway = lab.gateway({"server": {"drain_timeout": "20s"}}, backend=backend.url())
    client, peer = lab.pair(gateway, backend)
    watcher = watch(gateway)
    watcher.snapshot()
    gateway.may_end = True
    client.send(b"\x81\x8amask12345")  # half of a message: it is waited for
    gateway.signal(signal.SIGTERM)
    assert eventually(lambda: watcher.snapshot()["draining"], "the drain is in a snapshot")
    client.vanish()
    peer.vanish()
    while watcher.event() is not None:
        pass
    gateway.process.wait()


def test_relay_goes_on_while_many_watch(lab, watch):
    backend = lab.backend()
    gateway = lab.gateway(backend=backend.url())
    client, peer = lab.pair(gateway, backend)
    watchers = [watch(gateway) for _ in range(50)]
    for number in range(200):
        client.say(str(number))
        assert peer.read_frame().text == str(number)
    assert all(watcher.snapshot() for watcher in watchers)


def test_route_cannot_hide_the_stream(tmp_path):
    for path in ("/events", "/gateway"):
        (tmp_path / "config.toml").write_text(toml({"route": [route("a", path, backend="ws://127.0.0.1:9/")]}))
        done = run("--check", cwd=tmp_path)
        assert (done.returncode, f"its path `{path}` is never reached" in done.stderr) == (0, True)
