"""`/connections/closed`: every ending is provoked, and the ledger, the `closed` line, the metrics, what the page draws and the client say
the same. What each of them said is in `endings.md` beside the other outcomes of a run, side by side."""

import json
import re
import resource
import threading

import pytest

from gatewaylab import TARGET
from gatewaylab.certificates import Authority
from gatewaylab.gateway import Metrics, route
from gatewaylab.results import OUTPUT, Inbox, is_waiting, new_task
from gatewaylab.wire import BINARY, CLOSE, PING, TEXT, closed_port, connect, eventually, frame, read_frames
from test_events import Watcher

COUNTS = ["from_client_frames", "from_client_bytes", "to_client_frames", "to_client_bytes"]

QUICK = {"ping_interval": "300ms", "ping_timeout": "300ms"}


COLUMNS = ["provoked by", "reason", "ended by", "phase", "client", "log", "ledger", "page", "metrics", "sentence"]


class Stage:
    """A gateway that relays and serves results, an address for admins, and what has been provoked."""

    def __init__(self, lab, results, table, name):
        self.lab, self.results, self.table, self.name = lab, results, table, name

    def start(self, *, server=None, proxy=None, output=None, redis="embedded://127.0.0.1:0", link=None, backend=None, more_routes=(), tls=None):
        self.backend = self.lab.backend()
        config = {
            "server": {"admin_listen": ["127.0.0.1:0"], **(server or {})},
            "proxy": proxy or {},
            "output": {"audio_root": str(self.results.audio), **(output or {})},
            "redis": {"url": redis, **(link or {})},
            **({"tls": tls} if tls else {}),
            "route": [route(backend=backend or self.backend.url()), OUTPUT, *more_routes],
        }
        self.gateway = self.lab.gateway(config)
        self.admin = int(self.gateway.process.wait_for_line(r"listening address=127\.0\.0\.1:(\d+) for=admins").group(1))
        if redis.startswith("embedded"):
            self.inbox = Inbox(self.gateway)
        return self

    def pair(self):
        return self.lab.pair(self.gateway, self.backend)

    def wait(self, task, query=""):
        return self.results.wait(self.gateway, task, query)

    def waiting(self):
        """A task, and a client that waits for it."""
        task = new_task()
        waiter = self.wait(task)
        is_waiting(self.gateway, task)
        return task, waiter

    def ask(self, target):
        client = connect(self.admin)
        try:
            reply = client.get(target)
            assert reply.status == 200, reply
            return reply
        finally:
            client.vanish()

    def ended(self, reason, code, *, by, phase, client_close, **more):
        """The ending with this reason: log, ledger and metrics are compared, and the entry of the ledger is returned."""
        line = self.gateway.process.wait_for_line(rf"\b(\w+_\d+) closed (reason={reason} .*)$")
        name, fields = line.group(1), read_fields(line.group(2))
        found = self.ask(f"/connections/closed?id={name}").json()["closed"]
        assert len(found) == 1, found
        one = found[0]
        assert (one["reason"], one["client_code"], one["ended_by"], one["phase"]) == (reason, code, by, phase), one
        assert one["client_close"] == client_close, one
        for key, value in more.items():
            assert one[key] == value, (key, one)
        # The log has the same.
        assert fields["reason"] == reason
        assert fields["code"] == ("none" if code is None else str(code))
        assert (fields["ended_by"], fields["phase"], fields["sentence"]) == (by, phase, one["sentence"]), line.group(2)
        assert abs(float(fields["duration"].rstrip("s")) - one["duration_seconds"]) < 0.002
        if phase in ("relay", "output", "dial", "ingest"):
            counts = [one[way][what] for way in ("from_client", "to_client") for what in ("frames", "bytes")]
            assert [int(fields[name]) for name in COUNTS] == counts, (line.group(2), one)
        assert one["sentence"].endswith(".") and one["sentence"][0].isupper(), one["sentence"]
        # The page draws what the snapshot has.
        drawn = self.drawn(name)
        assert drawn == one, "on the page"
        # And the metrics count it.
        metrics = Metrics(self.ask("/metrics").body.decode())
        labels = {"ended_by": by, "reason": reason, "route": one["route"]}.items()
        closed = [dict(key) for name, key in metrics.samples if name == "aivtuber_gateway_connections_closed_total"]
        counted = next((key for key in closed if labels <= key.items()), None)
        assert counted, closed
        if code is not None:
            known = code in (1000, 1001, 1002, 1007, 1008, 1009, 1011, 1012, 1013, 4004, 4008)
            label = (("code", str(code) if known else "other"), ("side", "client"))
            assert metrics.samples[("aivtuber_gateway_close_codes_total", label)] >= 1
        seen = "none" if code is None else str(code)
        places = [(fields["reason"], fields["code"]), (one["reason"], one["client_code"]), (drawn["reason"], drawn["client_code"])]
        said = [f"{word} {'none' if code is None else code}" for word, code in places]
        self.table.append([self.name, reason, by, phase, seen, *said, counted["reason"], one["sentence"]])
        return one

    def drawn(self, name):
        """An ending as the page gets it. The first snapshot may be a second old."""
        watcher = Watcher(self.lab, self.admin)
        listed = lambda: {one["id"]: one for one in watcher.snapshot()["closed"]}.get(name)  # noqa: E731
        try:
            return eventually(listed, f"{name} is in a snapshot")
        finally:
            watcher.client.vanish()

    def balances(self):
        """Once all have left, as many WebSockets have ended as were upgraded."""
        metrics = Metrics(self.ask("/metrics").body.decode())
        sums = {}
        for (name, labels), value in metrics.samples.items():
            if name.startswith("aivtuber_gateway_websocket_") and name.endswith(("upgrades_total", "closes_total")):
                sums.setdefault(dict(labels)["route"], {}).setdefault(name, []).append(value)
        for name, one in sums.items():
            upgrades = sum(one["aivtuber_gateway_websocket_upgrades_total"])
            closes = sum(one.get("aivtuber_gateway_websocket_closes_total", []))
            assert upgrades == closes, f"{name}: {upgrades} upgrades, {closes} closes"
        assert metrics.total("websockets_open") == 0


def read_fields(text):
    """`key=value` and `key="quoted \\" value"`."""
    found = re.findall(r'(\w+)=("(?:[^"\\]|\\.)*"|\S+)', text)
    assert len(dict(found)) == len(found), f"a key twice in {text}"
    return {key: re.sub(r"\\(.)", r"\1", value[1:-1]) if value.startswith('"') else value for key, value in found}


def counted(frames):
    """What the ledger says of these bytes of whole frames."""
    whole, rest = read_frames(frames)
    assert not rest
    return {"frames": len(whole), "bytes": len(frames)}


@pytest.fixture(scope="session")
def table():
    """What was said of each ending."""
    rows = []
    yield rows
    lines = [" | ".join(str(cell) for cell in row) for row in [COLUMNS, ["---"] * len(COLUMNS), *rows]]
    (TARGET / "interop" / "endings.md").write_text("".join(f"| {line} |\n" for line in lines))


@pytest.fixture
def staged(lab, results, table, request):
    """A stage whose gateway may end in the test."""
    return Stage(lab, results, table, request.node.name.removeprefix("test_"))


@pytest.fixture
def stage(staged):
    stage = staged
    yield stage
    eventually(stage.gateway.is_empty, "all have left")
    stage.balances()


# ---- relayed routes


def test_client_closed(stage):
    client, peer = stage.start().pair()
    sent = client.say("hello") + client.close_frame(1000, "bye")
    peer.read_frame()
    peer.read_close()
    answered = peer.close_frame(1000)
    peer.half_close()
    client.read_close()
    client.half_close()
    one = stage.ended("client_closed", 1000, by="client", phase="relay", client_close="sent", backend_code=1000, backend_close="received")
    assert (one["from_client"], one["to_client"]) == (counted(sent), counted(answered))
    assert "with code 1000" in one["sentence"]


def test_close_is_over_although_the_client_keeps_its_tcp_connection(stage):
    """After both close frames, and FIN of the backend and to the client, nothing is waited for."""
    client, peer = stage.start().pair()
    client.close_frame(4001)
    peer.read_close()
    peer.close_frame(4001)
    peer.half_close()
    client.read_close()
    client.expect_end()
    one = stage.ended("client_closed", 4001, by="client", phase="relay", client_close="sent")
    assert one["duration_seconds"] < 10, "it does not wait for the client's FIN"


def test_backend_closed(stage):
    client, peer = stage.start().pair()
    said = peer.say("hello") + peer.close_frame()
    client.read_frame()
    client.read_close()
    client.close_frame()
    peer.read_close()
    peer.half_close()
    client.half_close()
    one = stage.ended("backend_closed", None, by="backend", phase="relay", client_close="received", backend_close="sent")
    assert one["to_client"] == counted(said)
    assert "without a code" in one["sentence"]


def test_client_vanished(stage):
    client, peer = stage.start().pair()
    client.vanish()
    peer.read_close()
    peer.half_close()
    stage.ended("client_vanished", None, by="client", phase="relay", client_close="none", backend_code=1001, backend_close="received")


def test_backend_vanished(stage):
    client, peer = stage.start().pair()
    said = peer.say("hello")
    client.read_frame()
    peer.vanish()
    assert client.read_close().code == 1011
    client.half_close()
    one = stage.ended("backend_vanished", 1011, by="backend", phase="relay", client_close="received", backend_close="none")
    assert one["to_client"] == counted(said), "frames of the sides; the gateway's own are not among them"
    assert "without a close frame" in one["sentence"]


def test_client_that_is_cut_within_a_frame_gets_no_code_and_half_a_frame_is_none(stage):
    client, peer = stage.start().pair()
    said = peer.say("whole")
    half = frame(BINARY, bytes(1000))[:500]
    peer.send(half)
    client.read(len(said) + len(half))
    peer.vanish()
    client.expect_gone()
    one = stage.ended("backend_vanished", None, by="backend", phase="relay", client_close="none")
    assert one["to_client"] == {"frames": 1, "bytes": len(said) + len(half)}
    assert "in the middle of a message" in one["sentence"]


def test_client_silent(stage):
    client, peer = stage.start(proxy=QUICK).pair()

    def answers():
        got = peer.read_frame()
        if got.opcode == PING:
            peer.send(frame(0xA, got.payload))
        return got.opcode == CLOSE

    eventually(answers, "the backend hears that the client is gone")
    peer.half_close()
    one = stage.ended("client_silent", None, by="client", phase="relay", client_close="none", backend_code=1001)
    assert one["pings_sent"] >= 2 and one["pongs_received"] >= 1, one


def test_backend_silent(stage):
    client, peer = stage.start(proxy=QUICK).pair()

    def answers():
        got = client.read_frame()
        if got.opcode == PING:
            client.frame(0xA, got.payload)
        return got.opcode == CLOSE and got.code == 1011

    eventually(answers, "the client hears that the backend is gone")
    client.half_close()
    stage.ended("backend_silent", 1011, by="backend", phase="relay", client_close="received", backend_close="none")


def test_message_too_big(stage):
    stage.start(proxy={"max_message": 10})
    client, peer = stage.pair()
    client.say("more than ten bytes")
    assert client.read_close().code == 1009
    peer.read_close()
    client.half_close()
    peer.half_close()
    one = stage.ended("client_message_too_big", 1009, by="client", phase="relay", client_close="received", backend_code=1001)
    assert one["from_client"]["frames"] == 0, "it never became whole"
    client, peer = stage.pair()
    peer.say("more than ten bytes")
    assert client.read_close().code == 1009
    peer.read_close()
    client.half_close()
    peer.half_close()
    stage.ended("backend_message_too_big", 1009, by="backend", phase="relay", client_close="received", backend_code=1009)


def test_idle_timeout(stage):
    client, peer = stage.start(proxy={"idle_timeout": "300ms"}).pair()
    assert client.read_close().code == 1000
    client.half_close()
    peer.read_close()
    peer.half_close()
    stage.ended("idle_timeout", 1000, by="gateway", phase="relay", client_close="received", backend_code=1001)


@pytest.mark.parametrize("reason", ["client_stalled", "backend_stalled"])
def test_side_that_takes_nothing(stage, reason):
    """`write_timeout`: the side that does not read is given up, though it is connected."""
    client, peer = stage.start(server={"write_timeout": "1s"}).pair()
    is_client = reason == "client_stalled"
    sender = peer if is_client else client
    whole = frame(BINARY, bytes(1 << 20), mask=None if is_client else b"\x01\x02\x03\x04")

    def flood():
        try:
            while True:
                sender.sock.sendall(whole)
        except OSError:
            pass

    threading.Thread(target=flood, daemon=True).start()
    by, code, client_close = ("client", None, "none") if is_client else ("backend", None, "none")
    line = stage.gateway.process.wait_for_line(rf"closed reason={reason} code=(\S+) ")
    if not is_client and line.group(1) != "none":
        code, client_close = int(line.group(1)), "received"
    client.vanish()
    peer.vanish()
    one = stage.ended(reason, code, by=by, phase="relay", client_close=client_close)
    assert "took no byte" in one["sentence"]


# ---- before there is a relay


def test_no_backend(stage):
    stage.start(backend=f"ws://127.0.0.1:{closed_port()}/")
    client = stage.lab.client(stage.gateway)
    client.upgrade()
    client.read_switch()
    closed = client.read_close()
    client.close_frame(1011)
    one = stage.ended("backend_unavailable", 1011, by="backend", phase="dial", client_close="received")
    assert one["to_client"] == {"frames": 1, "bytes": len(closed.raw)}
    assert one["from_client"]["frames"] == 1, "its answer"
    assert one["duration_seconds"] < 10, "a client that has answered need not end its TCP connection"
    failed = Metrics(stage.ask("/metrics").body.decode()).samples
    labels = (("reason", "backend_unavailable"), ("route", "input"))
    assert failed[("aivtuber_gateway_websocket_handshakes_failed_total", labels)] == 1
    assert "connection refused" in one["sentence"] and one["backend"].startswith("ws://127.0.0.1:")


def test_overloaded_backend(stage):
    stage.start()
    client = stage.lab.client(stage.gateway)
    client.upgrade()
    peer = stage.backend.accept()
    peer.read_upgrade()
    peer.send(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n")
    client.read_switch()
    client.read_close()
    client.half_close()
    stage.ended("backend_overloaded", 1013, by="backend", phase="dial", client_close="received")


def test_client_that_leaves_while_dialing(stage):
    stage.start()
    client = stage.lab.client(stage.gateway)
    client.upgrade()
    stage.backend.accept().read_upgrade()
    client.vanish()
    stage.ended("client_vanished", None, by="client", phase="dial", client_close="none")


def test_origin(stage):
    stage.start(server={"allowed_origins": ["https://app.example"]})
    client = stage.lab.client(stage.gateway)
    client.upgrade(headers=[("Origin", "https://evil.example")])
    client.read_switch()
    closed = client.read_close()
    client.half_close()
    one = stage.ended("origin_not_allowed", 1008, by="client", phase="request", client_close="received")
    assert one["to_client"] == {"frames": 1, "bytes": len(closed.raw)}
    assert "https://evil.example" in one["sentence"]


def test_heads_that_get_no_answer_but_an_error(stage):
    stage.start(server={"header_timeout": "200ms"})
    client = stage.lab.client(stage.gateway)
    client.send(b"nonsense\r\n\r\n")
    assert client.read_reply().status == 400
    client.half_close()
    stage.ended("bad_request", None, by="client", phase="request", client_close="none", route="http")
    client = stage.lab.client(stage.gateway)
    client.send(b"GET /")
    assert client.read_reply().status == 408
    client.half_close()
    stage.ended("header_timeout", None, by="client", phase="request", client_close="none", route="http")


def test_connection_limit(stage):
    stage.start(server={"max_connections": 1})
    first, peer = stage.pair()
    client = stage.lab.client(stage.gateway)
    client.upgrade()
    assert client.read_reply().status == 503
    client.half_close()
    one = stage.ended("refused", None, by="gateway", phase="request", client_close="none", route="http")
    assert "too many connections" in one["sentence"]
    refused = Metrics(stage.ask("/metrics").body.decode()).samples
    assert refused[("aivtuber_gateway_connections_refused_total", (("limit", "full"), ("reason", "refused")))] == 1
    first.vanish()
    peer.read_close()
    peer.half_close()


# ---- results


def deliver(stage, *messages, **fields):
    """Publishes; the client reads these messages (texts or binary) and the close. Returns the bytes of frames that it got."""
    task, waiter = stage.waiting()
    stage.inbox.publish(task, **fields)
    got = b""
    while (one := waiter.read_frame()).opcode != CLOSE:
        got += one.raw
    got += one.raw
    sent = waiter.close_frame(1000)
    return got, sent


def test_delivered(stage):
    stage.start()
    stage.results.write("a.wav", bytes(100_000))
    got, sent = deliver(stage, text="hi", audio_file="a.wav")
    one = stage.ended("delivered", 1000, by="worker", phase="output", client_close="received")
    assert one["to_client"] == counted(got), "the handshake is not among the bytes"
    assert one["from_client"] == counted(sent)


def test_worker_failed(stage):
    stage.start()
    got, _ = deliver(stage, status="failed", error="out of memory")
    one = stage.ended("worker_failed", 1000, by="worker", phase="output", client_close="received")
    assert one["to_client"] == counted(got)


def test_malformed_result(stage):
    stage.start()
    deliver(stage, result="no JSON")
    one = stage.ended("malformed_result", 1000, by="worker", phase="output", client_close="received")
    assert "not a JSON object" in one["sentence"]


def test_audio_missing(stage):
    stage.start(output={"audio_wait": "0s"})
    deliver(stage, text="hi", audio_file="missing.wav")
    one = stage.ended("audio_missing", 1000, by="worker", phase="output", client_close="received")
    assert "Audio file not found" in one["sentence"]


def test_audio_lost(stage):
    stage.start()
    path = stage.results.write("long.wav", bytes(8 << 20))
    task = new_task()
    waiter = stage.results.connect(stage.gateway, receive_buffer=4096).wait(task)
    stage.inbox.publish(task, text="hi", audio_file="long.wav")
    waiter.message()
    path.write_bytes(b"short")
    while True:
        try:
            one = waiter.read_frame()
        except AssertionError:  # it was cut inside a chunk
            break
        if one.opcode == CLOSE:
            waiter.close_frame(1011)
            break
    line = stage.gateway.process.wait_for_line(r"closed reason=audio_lost code=(\w+)")
    code = None if line.group(1) == "none" else int(line.group(1))
    seen = "none" if code is None else "received"
    stage.ended("audio_lost", code, by="worker", phase="output", client_close=seen)


def growing(stage, **output):
    """A client that has the first piece of a growing file, and the file."""
    stage.start(output=output)
    path = stage.results.write("a.wav", b"")
    task, waiter = stage.waiting()
    stage.inbox.publish(task, text="t", audio_file="a.wav", audio_growing=True)
    waiter.message()
    file = open(path, "ab", buffering=0)
    file.write(bytes(960))
    waiter.message()
    assert waiter.read_message_frame().opcode == BINARY
    return task, waiter, file


def test_audio_stalled(stage):
    task, waiter, file = growing(stage, audio_stall="300ms")
    waiter.refused("Audio stalled", 1011, "audio stalled", task_id=task)
    file.close()
    stage.ended("audio_stalled", 1011, by="worker", phase="output", client_close="received", task_id=task)


def test_audio_too_large(stage):
    task, waiter, file = growing(stage, max_audio=4096)
    file.write(bytes(4096))
    file.close()
    waiter.refused("Audio too large", 1011, "audio too large", task_id=task)
    stage.ended("audio_too_large", 1011, by="worker", phase="output", client_close="received", task_id=task)


def test_client_too_slow(stage):
    """Too much waits for a client that does not read."""
    stage.start(output={"max_retained": "1MiB"})
    task = new_task()
    deaf = stage.results.wait(stage.gateway, task, receive_buffer=4096)
    is_waiting(stage.gateway, task)
    with stage.inbox.client() as worker:
        for _ in range(60):
            worker.publish(f"task_response:{task}", json.dumps({"text": "x" * (1 << 20), "final": False}))
    stage.gateway.process.wait_for_line(r"output_\d+ > close code=1013 reason=\"client too slow\"")
    deaf.read_to_end()
    deaf.half_close()
    stage.ended("client_too_slow", 1013, by="client", phase="output", client_close="received", task_id=task)


def test_worker_that_speaks(lab, stage):
    stage.start(more_routes=[route("ingest", "/ws/ingest", serve="ingest", token="open")])
    task, waiter = stage.waiting()

    def speaks():
        worker = lab.client(stage.gateway)
        worker.upgrade("/ws/ingest", [("Authorization", "Bearer open")])
        worker.read_switch()
        said = worker.say(f'{{"type":"SPEECH_CHUNK","sessionId":"{task}","bytes":4}}') + worker.frame(BINARY, b"pcm!")
        return worker, said

    worker, said = speaks()
    waiter.message()
    worker.vanish()
    one = stage.ended("client_vanished", None, by="client", phase="ingest", client_close="none", route="ingest")
    assert one["from_client"] == counted(said) and one["to_client"] == {"frames": 0, "bytes": 0}
    assert one["sentence"].endswith(", before its speech was complete."), one
    worker, said = speaks()
    said += worker.close_frame(1000)
    worker.read_close()
    worker.half_close()
    one = stage.ended("client_closed", 1000, by="client", phase="ingest", client_close="sent", route="ingest")
    assert one["from_client"] == counted(said) and one["to_client"] == {"frames": 1, "bytes": 4}
    worker, said = speaks()
    worker.close_frame(1005)
    worker.read_close()
    worker.half_close()
    stage.ended("protocol_fault", 1002, by="client", phase="ingest", client_close="received", route="ingest")
    waiter.vanish()


def test_task_stopped(stage):
    stage.start()
    task, waiter = stage.waiting()
    waiter.say('{"type":"control","action":"STOP"}')
    assert waiter.message()["action"] == "STOP_ACK"
    waiter.done(1000, "stopped")
    stage.ended("task_stopped", 1000, by="client", phase="output", client_close="received", task_id=task)
    task, waiter = stage.waiting()
    with stage.inbox.client() as worker:
        worker.publish(f"task_control:{task}", '{"action":"STOP"}')
    assert waiter.message()["action"] == "STOP_ACK"
    waiter.done(1000, "stopped")
    line = stage.gateway.process.wait_for_line(rf"reason=task_stopped .*task={task} ended_by=(\w+)")
    assert line.group(1) == "worker"


@pytest.mark.parametrize("target", ["nonsense", f"{new_task()}?from_chunk=x"], ids=["id", "from_chunk"])
def test_bad_task_id(stage, target):
    waiter = stage.start().results.connect(stage.gateway)
    waiter.upgrade(f"/ws/output/{target}")
    waiter.read_switch()
    got = waiter.read_frame().raw + waiter.read_close().raw
    waiter.close_frame(4004)
    one = stage.ended("bad_task_id", 4004, by="client", phase="output", client_close="received")
    assert one["to_client"] == counted(got)
    assert one["task_id"] == (None if target == "nonsense" else target.split("?")[0])


def test_task_timeout(stage):
    stage.start(output={"timeout": "200ms"})
    waiter = stage.wait(new_task())
    waiter.message()
    waiter.done(4008, "processing timeout")
    stage.ended("task_timeout", 4008, by="worker", phase="output", client_close="received")


def test_redis_away(stage):
    stage.start(redis=f"redis://127.0.0.1:{closed_port()}", link={"grace": "300ms"})
    waiter = stage.wait(new_task())
    waiter.message()
    waiter.done(1013, "Redis connection not available")
    stage.ended("redis_away", 1013, by="redis", phase="output", client_close="received")


@pytest.mark.parametrize(
    ("reason", "code", "wrong"),
    [
        ("protocol_fault", 1002, frame(TEXT, b"not masked")),
        ("not_utf8", 1007, frame(TEXT, b"\xff", mask=b"\0\0\0\0")),
        ("client_message_too_big", 1009, frame(TEXT, bytes(5000), mask=b"\0\0\0\0")),
    ],
    ids=["protocol", "utf-8", "size"],
)
def test_client_that_breaks_the_protocol_of_a_served_route(stage, reason, code, wrong):
    task, waiter = stage.start().waiting()
    waiter.send(wrong)
    assert waiter.read_close().code == code
    waiter.half_close()
    stage.ended(reason, code, by="client", phase="output", client_close="received", task_id=task)


def test_client_that_waits_and_leaves(stage):
    task, waiter = stage.start().waiting()
    sent = waiter.say("nobody reads this")
    stage.gateway.process.wait_for_line(r"output_\d+ < text len=17 fin=true")
    waiter.vanish()
    one = stage.ended("client_vanished", None, by="client", phase="output", client_close="none", task_id=task)
    assert one["from_client"] == counted(sent) and one["to_client"] == {"frames": 0, "bytes": 0}
    assert "while it waited for a result" in one["sentence"]
    task, waiter = stage.waiting()
    waiter.close_frame(1001)
    waiter.read_close()
    stage.ended("client_closed", 1001, by="client", phase="output", client_close="sent", task_id=task)


def test_tls_handshake_that_fails(stage, tmp_path):
    pem, key = Authority(tmp_path / "authority").certify("localhost", "127.0.0.1")
    stage.start(server={"listen": ["127.0.0.1:0", "tls://127.0.0.1:0"]}, tls={"certificate": str(pem), "key": str(key)})
    port = int(stage.gateway.process.wait_for_line(r"listening address=tls://127\.0\.0\.1:(\d+)").group(1))
    client = stage.lab.client(port)
    client.send(b"\x16\x03\x01\x00\x05hello")
    client.read_to_end()
    one = stage.ended("tls_failed", None, by="client", phase="accept", client_close="none", route="http")
    assert one["sentence"].startswith("The TLS handshake with the client failed: ")


def test_connection_of_a_proxy_without_its_header(stage):
    stage.start(server={"trusted_proxies": ["127.0.0.1"], "proxy_protocol": True})
    client = stage.lab.client(stage.gateway)
    client.send(b"GET / HTTP/1.1\r\n")
    client.expect_gone()
    # What looks at the gateway comes without a header, too.
    stage.gateway.port = stage.admin
    one = stage.ended("bad_proxy_header", None, by="client", phase="accept", client_close="none", route="http")
    assert one["sentence"].endswith(": it does not begin with one.")


def test_gateway_without_descriptors_for_a_backend(stage):
    stage.start()
    client = stage.lab.client(stage.gateway)
    assert client.get("/ready").status == 200
    pid = stage.gateway.pid
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, limits[1]))
    client.upgrade()
    client.read_switch()
    assert client.read_close().code == 1013
    resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
    client.half_close()
    stage.ended("out_of_resources", 1013, by="gateway", phase="dial", client_close="received", backend_close="none")


def test_largest_holder_goes_when_memory_is_short(stage):
    """A worker has begun a long message: its buffer grows beyond what there is."""
    ingest = route("ingest", "/ws/ingest", serve="ingest", token="open")
    stage.start(server={"memory_limit": "8MiB"}, more_routes=[ingest], output={"chunk_size": "4MiB"})
    worker = stage.lab.client(stage.gateway)
    worker.upgrade("/ws/ingest", headers=[("Authorization", "Bearer open")])
    worker.read_switch()
    worker.send(frame(TEXT, bytes(3 << 20), mask=b"\0\0\0\0")[:-1])
    assert worker.read_close().code == 1013
    worker.vanish()
    stage.ended("over_budget", 1013, by="gateway", phase="ingest", client_close="received")


@pytest.mark.parametrize("reason, by", [("response_cut", "backend"), ("client_left", "client")])
def test_plain_http_that_is_cut(stage, reason, by):
    backend = stage.lab.backend()
    stage.start(more_routes=[route("api", "/api/{rest...}", backend=f"http://127.0.0.1:{backend.port}/{{rest}}")])
    client = stage.lab.client(stage.gateway)
    client.ask("/api/a")
    peer = backend.accept()
    peer.read_head()
    peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello")
    client.read_head()
    assert client.read(5) == b"hello"
    (peer if by == "backend" else client).vanish()
    stage.ended(reason, None, by=by, phase="http", client_close="none", route="api")
    client.vanish()


def test_workers_have_their_endings_too(stage):
    stage.start()
    stage.inbox.publish(new_task(), text="hi")
    one = stage.ended("done", None, by="client", phase="inbox", client_close="none", route="inbox")
    assert one["id"].startswith("inbox_")


def test_strangers_see_no_endings(lab):
    gateway = lab.gateway({"server": {"admin_from": ["192.0.2.1"]}}, backend=f"ws://127.0.0.1:{closed_port()}/")
    assert gateway.get("/connections/closed").status == 403


def test_shutdown_is_the_operators_act(staged):
    """`admin_listen` stays open until a drain is over: the ledger lists the connections that the drain has closed so far."""
    stage = staged.start()
    client, peer = stage.pair()
    waited_for, its_peer = stage.pair()
    waited_for.send(frame(TEXT, b"half", mask=b"abcd")[:-1])
    its_peer.read(9)
    stage.gateway.may_end = True
    stage.gateway.signal(15)
    assert client.read_close().code == 1012
    client.half_close()
    peer.half_close()
    one = stage.ended("draining", 1012, by="operator", phase="relay", client_close="received", backend_code=1001)
    assert one["sentence"].startswith("The gateway is shutting down")
    ready = connect(stage.admin)
    assert ready.get("/ready").status == 503
    ready.vanish()
    waited_for.vanish()
    its_peer.vanish()
    stage.gateway.process.wait()


def test_second_signal_stops_what_has_not_ended(lab):
    """TERM twice: the gateway does not wait any longer."""
    backend = lab.backend()
    gateway = lab.gateway(backend=backend.url())
    client, peer = lab.pair(gateway, backend)
    # In the middle of a message, so that a drain waits for it.
    client.send(frame(TEXT, b"half", mask=b"abcd")[:-1])
    peer.read(5)
    gateway.may_end = True
    gateway.signal(15)
    gateway.process.wait_for_line("draining connections=")
    gateway.signal(15)
    gateway.process.wait_for_line(r"closed reason=stopped code=\S+ .* ended_by=operator phase=relay")
    gateway.process.wait()
