"""The black box: what a connection that ended badly did last is in a log at `info`. `explain`: its story, from that log."""

import gzip
import json
import re
import subprocess

from gatewaylab import PATIENCE, wire
from gatewaylab.gateway import BINARY, route
from gatewaylab.results import is_waiting, new_task
from gatewaylab.wire import closed_port

INFO = {"log": {"level": "info"}}


def lines_of(gateway, id):
    return [line for line in gateway.process.lines if re.search(rf"\b{id}\b", line)]


def explain(*args, status=0):
    done = subprocess.run([str(BINARY), "explain", *map(str, args)], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


def opened(gateway, client):
    """The id of the connection that this client has."""
    port = client.sock.getsockname()[1]
    return gateway.process.wait_for_line(rf"(\w+_\d+) opened client=127\.0\.0\.1:{port}\b").group(1)


def close_well(client, peer):
    client.close_frame(1000)
    peer.read_close()
    peer.close_frame(1000)
    client.read_close()
    peer.half_close()
    client.half_close()


def test_exactly_the_bad_ones_of_a_thousand_tell_their_story(lab):
    """1,000 good and 10 bad sessions: detail for exactly the 10, each with its own frames."""
    backend = lab.backend()
    gateway = lab.gateway(INFO, backend=backend.url())
    bad = {}
    for number in range(1010):
        client, peer = lab.pair(gateway, backend)
        client.say("x" * (number % 100 + 1))
        peer.read_frame()
        if number % 101 == 50:
            bad[opened(gateway, client)] = number % 100 + 1
            peer.vanish()
            client.read_close()
            client.half_close()
        else:
            close_well(client, peer)
        client.vanish()
    assert len(bad) == 10
    gateway.process.wait_for_line(r"(input_\d+) ~ before_end=\S+ = sent close to client code=1011", after=0)
    for id, length in bad.items():
        gateway.process.wait_for_line(rf"\b{id} failed reason=backend_vanished code=1011 events=\d sentence=")
        gateway.process.wait_for_line(rf"\b{id} ~ before_end=\S+ = sent close to client code=1011 reason=backend_vanished")
        assert any(f"client>backend text len={length} fin=true" in line for line in lines_of(gateway, id))
    told = {match.group(1) for line in gateway.process.lines if (match := re.search(r"WARN  story (\w+) ", line))}
    assert told == set(bad)
    assert not [line for line in gateway.process.lines if "DEBUG" in line]


def test_story_of_a_dial_that_failed(lab):
    port = closed_port()
    gateway = lab.gateway(INFO, backend=f"ws://127.0.0.1:{port}/")
    client = lab.client(gateway)
    client.upgrade()
    client.read_switch()
    assert client.read_close().code == 1011
    client.half_close()
    gateway.process.wait_for_line(r"input_\d+ failed reason=backend_unavailable code=1011")
    gateway.process.wait_for_line(rf"input_\d+ ~ before_end=\S+ = connecting to backend at 127\.0\.0\.1:{port}")
    gateway.process.wait_for_line(r"input_\d+ ~ before_end=\S+ = attempt failed what=\"connection refused\"")
    gateway.process.wait_for_line(r"input_\d+ ~ before_end=\S+ = backend ws://127\.0\.0\.1:\d+/ failed what=")


def test_story_of_a_worker_whose_speech_was_cut(lab, results):
    """Ingest: its frames, and the steps that are none."""
    ingest = route("ingest", "/ws/ingest", serve="ingest")
    gateway, _ = results.embedded(routes=[ingest], config=INFO)
    worker = lab.client(gateway)
    worker.upgrade("/ws/ingest", host="127.0.0.1")
    worker.read_switch()
    task = new_task()
    worker.say("not JSON")
    assert "error" in worker.read_frame().text
    worker.say(json.dumps({"type": "SPEECH_CHUNK", "sessionId": task, "seq": 0, "bytes": 960}))
    worker.frame(wire.BINARY, bytes(960))
    worker.say(json.dumps({"type": "SPEECH_CHUNK", "sessionId": task, "seq": 7, "bytes": 960}))
    worker.frame(wire.BINARY, bytes(960))
    assert "error" in worker.read_frame().text, "everything before has been read"
    worker.vanish()
    gateway.process.wait_for_line(r"ingest_\d+ failed reason=client_vanished .* before its speech was complete")
    gateway.process.wait_for_line(r"ingest_\d+ ~ before_end=\S+ > error error=")
    gateway.process.wait_for_line(r"ingest_\d+ ~ before_end=\S+ < binary len=960 fin=true")
    good = lab.client(gateway)
    good.upgrade("/ws/ingest", host="127.0.0.1")
    good.read_switch()
    good.say("not JSON")
    assert "error" in good.read_frame().text
    good.close_frame(1000)
    good.read_close()
    good.half_close()
    gateway.process.wait_for_line(r"ingest_\d+ closed reason=client_closed")
    assert gateway.metrics().samples[
        ("aivtuber_gateway_messages_total", (("direction", "from_client"), ("opcode", "binary"), ("route", "ingest")))
    ] == 2, "frames are counted once"
    told = {match.group(1) for line in gateway.process.lines if (match := re.search(r"story (ingest_\d+) ", line))}
    assert len(told) == 1


def test_story_of_a_worker_that_left_in_the_middle_of_a_command(lab, results):
    gateway, inbox = results.embedded(config=INFO)
    port = int(gateway.process.wait_for_line(r"inbox listening address=127\.0\.0\.1:(\d+)").group(1))
    worker = wire.connect(port)
    lab.adopt(worker)
    task = new_task()
    payload = b'{"text":"hi"}'
    command = b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n"
    channel = f"task_response:{task}".encode()
    worker.send(b"*1\r\n$4\r\nPING\r\n" + command % (len(channel), channel, len(payload), payload) + b"*3\r\n$7\r\nPUBL")
    assert worker.read(len(b"+PONG\r\n:0\r\n"))
    worker.half_close()
    gateway.process.wait_for_line(r"inbox_\d+ failed reason=client_vanished .* in the middle of a command")
    gateway.process.wait_for_line(r"inbox_\d+ ~ before_end=\S+ < PING arguments=0")
    gateway.process.wait_for_line(rf"inbox_\d+ ~ before_end=\S+ = published task={task} len=13")
    inbox.publish(new_task(), text="hi")
    gateway.process.wait_for_line(r"inbox_\d+ closed reason=done")
    told = {match.group(1) for line in gateway.process.lines if (match := re.search(r"story (inbox_\d+) ", line))}
    assert len(told) == 1


def test_failures_may_leave_out_frames_or_everything(lab):
    for failures, steps in [("info", True), ("", False)]:
        backend = lab.backend()
        gateway = lab.gateway({"log": {"level": "info", "failures": failures}}, backend=backend.url())
        client, peer = lab.pair(gateway, backend)
        client.say("hello")
        peer.read_frame()
        peer.vanish()
        client.read_close()
        client.half_close()
        gateway.process.wait_for_line(r"input_\d+ closed reason=backend_vanished")
        second, _ = lab.pair(gateway, backend)
        opened(gateway, second)
        story = [line for line in gateway.process.lines if " story " in line]
        assert bool(story) == steps, story
        assert not any("client>backend" in line for line in story), story


def test_what_never_was_a_websocket_has_one_line_and_a_flood_is_counted(lab):
    gateway = lab.gateway({"log": {"level": "info"}, "server": {"allowed_origins": ["https://good.example"]}}, backend=f"ws://127.0.0.1:{closed_port()}/")
    for _ in range(30):
        client = lab.client(gateway)
        client.upgrade(headers=[("Origin", "https://bad.example")])
        client.read_switch()
        assert client.read_close().code == 1008
        client.half_close()
        client.vanish()
    # Counted when a second is over, with the next thing that happens.
    wire.eventually(lambda: gateway.get("/health") and "stories left out" in gateway.log, "what was left out is counted")
    told = [line for line in gateway.process.lines if "WARN  story input_" in line]
    left_out = sum(int(match.group(1)) for line in gateway.process.lines if (match := re.search(r"left out stories=(\d+)", line)))
    assert len(told) + left_out == 30 and all(" failed reason=origin_not_allowed " in line for line in told)


def test_messages_are_counted_whether_remembered_or_not(lab):
    """At `info` frames are counted where they are remembered, at `debug` one by one: `/metrics` shows the same."""
    for level in ["info", "debug"]:
        backend = lab.backend()
        gateway = lab.gateway({"log": {"level": level}}, backend=backend.url())
        client, peer = lab.pair(gateway, backend)
        for number in range(40):
            client.say(f"{number}")
            peer.read_frame()
        count = lambda: gateway.metrics().samples[  # noqa: E731
            ("aivtuber_gateway_messages_total", (("direction", "from_client"), ("opcode", "text"), ("route", "input")))
        ]
        assert count() == 40
        client.say("once more")
        peer.read_frame()
        assert count() == 41, "while it is open, too"
        close_well(client, peer)
        gateway.process.wait_for_line("closed reason=client_closed")
        assert count() == 41


def test_explain_tells_why_one_of_many_connections_failed(lab, results, tmp_path):
    """A log at `info` of many connections, in both formats, rotated and gzipped: the story of one task and one connection."""
    for number, log_format in enumerate(["text", "json"]):
        backend = lab.backend()
        file = tmp_path / f"{number}.log"
        log = {"level": "info", "format": log_format}
        gateway, inbox = results.embedded(routes=[route(backend=backend.url())], config={"log": log})
        for _ in range(20):
            close_well(*lab.pair(gateway, backend))
        client, peer = lab.pair(gateway, backend, headers=[("User-Agent", "the-one-that-complains")])
        client.say("hello")
        peer.read_frame()
        peer.vanish()
        client.read_close()
        client.half_close()
        task = new_task()
        waiter = results.wait(gateway, task)
        is_waiting(gateway, task)
        inbox.publish(task, error="the model is out of memory")
        waiter.message()
        waiter.done()
        gateway.process.wait_for_line("The worker reported that the task failed, and")
        text = "".join(f"{line}\n" for line in gateway.process.lines)
        complaint = re.search(r"(input_\d+) opened .*the-one-that-complains", text).group(1)
        # Rotated in the middle of it.
        cut = text.index(f"{complaint} opened")
        cut = text.index("\n", cut) + 1
        (tmp_path / f"{number}.log.1.gz").write_bytes(gzip.compress(text[:cut].encode()))
        file.write_text(text[cut:])
        story = explain(file, complaint)
        assert "the-one-that-complains" in story and "client>backend text len=5 fin=true" in story
        assert story.rstrip().splitlines()[-1].startswith(f"{complaint}: The backend closed the TCP connection without a close frame")
        assert explain(file, client.sock.getsockname()[0]) != ""
        assert "The worker reported that the task failed" in explain(file, task.upper())
        failures = explain(file)
        assert complaint in failures and "The worker reported that the task failed" in failures
        assert explain(file, "input_99999", status=1) == ""


def test_explain_names_a_log_that_is_not_there(tmp_path):
    done = subprocess.run([str(BINARY), "explain", str(tmp_path / "none")], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 1 and "none: No such file" in done.stderr
