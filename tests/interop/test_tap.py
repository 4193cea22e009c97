"""`GET /events/frames` and `aivtuber-gateway tap`: live frames, for those that the filters choose."""

import base64
import json
import signal

import pytest

from gatewaylab.gateway import BINARY, clean_env, run
from gatewaylab.process import Process
from gatewaylab.results import is_waiting, new_task
from gatewaylab.wire import BINARY as BINARY_FRAME
from gatewaylab.wire import PING, TEXT, frame
from test_events import Watcher


@pytest.fixture
def follow(lab):
    return lambda gateway, query="": Watcher(lab, gateway, "/events/frames" + query)


def frames(watcher, count):
    """The next `count` frames, without steps that are none."""
    found = []
    while len(found) < count:
        name, data = watcher.event()
        assert name == "frame"
        if "opcode" in data:
            found.append(data)
    return found


def pair(lab, **config):
    backend = lab.backend()
    gateway = lab.gateway({"log": {"level": "info"}, **config}, backend=backend.url())
    return gateway, *lab.pair(gateway, backend)


def test_each_frame_of_a_relay_with_direction_kind_and_length(lab, follow):
    """Also of a connection that was open before, with the log at info, which stays as it is."""
    gateway, client, peer = pair(lab)
    watcher = follow(gateway)
    client.say("hello")
    peer.read_frame()
    peer.send(frame(TEXT, "wel", fin=False) + frame(0, "come"))
    client.read_frame()
    client.read_frame()
    seen = frames(watcher, 3)
    assert list(seen[0]) == ["time", "id", "from", "to", "opcode", "length", "fin"]
    assert [tuple(one.values())[2:] for one in seen] == [
        ("client", "backend", "text", 5, True),
        ("backend", "client", "text", 3, False),
        ("backend", "client", "continuation", 4, True),
    ]
    assert {one["id"] for one in seen} == set(gateway.connections()["connections"])
    assert "client>backend" not in gateway.log


def test_frames_of_results_and_other_steps(results, follow):
    gateway, inbox = results.embedded()
    waiter = results.wait(gateway, task := new_task())
    is_waiting(gateway, task)
    watcher = follow(gateway, f"?task={task}")
    inbox.publish(task, text="hi")
    waiter.message()
    waiter.done()
    [text] = frames(watcher, 1)
    assert (text["from"], text["to"], text["opcode"]) == ("gateway", "client", "text") and text["id"].startswith("output_")
    _, close = watcher.event()
    assert close["text"].startswith("> close code=1000")


@pytest.mark.parametrize("query", ["?route=other", "?id=input_999", "?task=x", "?client=192.0.2.1"])
def test_filters_leave_out_the_others(lab, follow, query):
    gateway, client, peer = pair(lab)
    chosen = gateway.connections()["connections"][0]
    other, one = follow(gateway, query), follow(gateway, f"?route=input&client=127.0.0.1&id={chosen}")
    client.say("hello")
    peer.read_frame()
    assert frames(one, 1)[0]["length"] == 5
    # Both were written to in the same turn, or neither was.
    other.client.sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        other.client.sock.recv(1)


def test_unknown_filter_is_400(lab):
    gateway = lab.gateway(backend="ws://127.0.0.1:9/")
    assert gateway.get("/events/frames?limit=1").status == 400


def test_strangers_get_403(lab):
    gateway = lab.gateway({"server": {"admin_from": ["192.0.2.1"]}}, backend="ws://127.0.0.1:9/")
    assert gateway.get("/events/frames").status == 403


def test_slow_follower_loses_lines_and_the_relay_goes_on(lab, follow):
    """`lost` says how many; the connection that is followed never waits."""
    gateway, client, peer = pair(lab)
    watcher = follow(gateway)
    many = frame(TEXT, "", mask=b"mask") * 2000
    for _ in range(20):
        client.send(many)
        peer.read(2000 * 2)
    lost = shown = 0
    while lost + shown < 20 * 2000:
        name, data = watcher.event()
        lost += data["count"] if name == "lost" else 0
        shown += name == "frame" and "opcode" in data
    assert lost + shown == 20 * 2000 and shown > 100


def tap(gateway, *args):
    process = Process([BINARY, "tap", "--config", gateway.file, "--listen", f"127.0.0.1:{gateway.port}", *args], env=clean_env())
    gateway.process.wait_for_line("GET /events/frames")
    return process


def test_tap_prints_readable_lines(lab):
    gateway, client, peer = pair(lab, log={"level": "debug"})
    process = tap(gateway, "--route", "input")
    try:
        client.say("hello")
        peer.read_frame()
        process.wait_for_line(r"^\d\d:\d\d:\d\d\.\d{3} input_\d+ client → backend text 5 B$")
    finally:
        process.kill()


def test_tap_prints_json(lab):
    gateway, client, peer = pair(lab, log={"level": "debug"})
    process = tap(gateway, "--json", "--id", gateway.connections()["connections"][0])
    try:
        client.say("hello")
        peer.read_frame()
        line = process.wait_for_line(r"^\{.*opcode.*$").group(0)
        assert json.loads(line)["length"] == 5
    finally:
        process.kill()


def test_tap_as_a_stranger_names_the_cure(lab, tmp_path):
    gateway = lab.gateway({"server": {"admin_from": ["192.0.2.1"]}}, backend="ws://127.0.0.1:9/")
    done = run("tap", "--listen", f"127.0.0.1:{gateway.port}", cwd=tmp_path)
    assert done.returncode == 1
    assert "stranger" in done.stderr and "admin_listen" in done.stderr


def test_tap_without_a_gateway(tmp_path):
    done = run("tap", "--listen", "127.0.0.1:9", cwd=tmp_path)
    assert done.returncode == 1 and "no gateway answers" in done.stderr


def test_tap_ends_with_the_gateway(lab):
    gateway, client, peer = pair(lab, log={"level": "debug"})
    process = tap(gateway)
    gateway.may_end = True
    gateway.process.kill()
    assert process.wait() == 0


def test_log_level_is_as_before_when_nobody_follows(lab, follow):
    """Followers raise no level: at info, no debug line is written while they are there or afterwards."""
    gateway, client, peer = pair(lab)
    watcher = follow(gateway)
    client.say("one")
    peer.read_frame()
    frames(watcher, 1)
    watcher.client.vanish()
    client.say("two")
    peer.read_frame()
    assert gateway.get("/health").status == 200
    assert "DEBUG" not in gateway.log


# ---- payloads

PAYLOAD = {"allow_tap_payload": True}


def payloads(watcher, count):
    """The payloads of the next `count` frames, as text or bytes."""
    return [
        base64.b64decode(one["payload_base64"]) if "payload_base64" in one else one.get("payload") for one in frames(watcher, count)
    ]


def test_payloads_need_the_key(lab, tmp_path):
    gateway = lab.gateway(backend="ws://127.0.0.1:9/")
    reply = gateway.get("/events/frames?payload=true")
    assert reply.status == 403 and "allow_tap_payload" in reply.json()["error"]
    assert gateway.get("/events/frames?payload=yes").status == 400
    done = run("tap", "--payload", "--listen", f"127.0.0.1:{gateway.port}", cwd=tmp_path)
    assert done.returncode == 1 and "allow_tap_payload = true" in done.stderr and "stranger" not in done.stderr


def test_payloads_are_text_or_base64_and_only_for_those_that_ask(lab, follow):
    gateway, client, peer = pair(lab, server=PAYLOAD)
    shown, hidden = follow(gateway, "?payload=true"), follow(gateway)
    client.say("hello \u58f0")
    client.send_bytewise(frame(TEXT, "byte by byte", mask=b"mask"))
    client.frame(BINARY_FRAME, bytes(range(256)))
    client.send(frame(TEXT, "frag", fin=False, mask=b"mask") + frame(0, "ments", mask=b"mask") + frame(TEXT, "", mask=b"mask"))
    client.frame(PING, b"ping")
    for _ in range(7):
        peer.read_frame()
    expected = ["hello \u58f0", "byte by byte", bytes(range(256)), "frag", "ments", None, b"ping"]
    assert payloads(shown, 7) == expected
    assert payloads(hidden, 7) == [None] * 7
    peer.say("back")
    assert client.read_frame().text == "back"
    assert payloads(shown, 1) == ["back"]


def test_long_payloads_are_cut_and_pass_unchanged(lab, follow):
    """Also where frames would otherwise pass through a pipe."""
    gateway, client, peer = pair(lab, server=PAYLOAD)
    big = bytes(range(256)) * 4096
    for _ in range(3):
        peer.frame(BINARY_FRAME, big)
        assert client.read_frame().payload == big
    watcher = follow(gateway, "?payload=true")
    for _ in range(3):
        peer.frame(BINARY_FRAME, big)
        assert client.read_frame().payload == big
    assert payloads(watcher, 3) == [big[:4096]] * 3
    text = "\u58f0" * 5000
    client.say(text)
    assert peer.read_frame().text == text
    assert payloads(watcher, 1) == [text[: 4096 // 3]]


def test_a_frame_that_is_cut_is_shown_with_what_came(lab, follow):
    gateway, client, peer = pair(lab, server=PAYLOAD)
    watcher = follow(gateway, "?payload=true")
    client.send(frame(TEXT, "it ends here, and goes no further", mask=b"mask")[:-20])
    peer.read(10)
    client.vanish()
    assert payloads(watcher, 1) == ["it ends here,"]


def test_texts_of_results_have_payloads(results, follow):
    gateway, inbox = results.embedded(config={"server": PAYLOAD})
    waiter = results.wait(gateway, task := new_task())
    is_waiting(gateway, task)
    watcher = follow(gateway, f"?task={task}&payload=true")
    inbox.publish(task, text="hi")
    waiter.message()
    waiter.done()
    [text] = payloads(watcher, 1)
    assert json.loads(text)["content"] == "hi"


def test_a_learned_task_costs_no_payload(lab, follow):
    backend = lab.backend()
    config = {"server": PAYLOAD, "route": [{"name": "input", "path": "/ws/input", "backend": backend.url(), "learn_task": "task_id"}]}
    gateway = lab.gateway(config)
    client, peer = lab.pair(gateway, backend)
    watcher = follow(gateway, "?payload=true")
    client.say("a question")
    peer.read_frame()
    peer.say('{"task_id": "7"}')
    client.read_frame()
    peer.say("more")
    client.read_frame()
    assert payloads(watcher, 3) == ["a question", '{"task_id": "7"}', "more"]


def test_a_reload_takes_payloads_away(lab, follow):
    gateway, client, peer = pair(lab, server=PAYLOAD)
    watcher = follow(gateway, "?payload=true")
    client.say("one")
    peer.read_frame()
    assert payloads(watcher, 1) == ["one"]
    gateway.file.write_text(gateway.file.read_text().replace("allow_tap_payload = true", "allow_tap_payload = false"))
    gateway.signal(signal.SIGHUP)
    gateway.process.wait_for_line("read again config=")
    client.say("two")
    peer.read_frame()
    client.say("three")
    peer.read_frame()
    assert payloads(watcher, 2)[-1] is None


def test_tap_prints_payloads(lab):
    gateway, client, peer = pair(lab, log={"level": "debug"}, server=PAYLOAD)
    process = tap(gateway, "--payload")
    try:
        client.say('say "hello"')
        peer.read_frame()
        process.wait_for_line(r'input_\d+ client → backend text 11 B "say \\"hello\\""$')
    finally:
        process.kill()
