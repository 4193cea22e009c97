"""The log: what it contains, what it never contains, and that it never stops the gateway."""

import json
import re
import resource
import signal

import pytest

from gatewaylab.gateway import route
from gatewaylab.wire import BINARY, PING, TEXT, closed_port, eventually

TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"


def whole_conversation(lab, gateway, backend, code=4321):
    """A client connects, sends a message, gets an answer and closes. Returns when both ends are gone."""
    client, peer = lab.pair(gateway, backend)
    client.say("hello")
    peer.read_frame()
    peer.frame(BINARY, bytes(100))
    client.read_frame()
    client.close_frame(code, "enough")
    peer.read_close()
    peer.close_frame(code)
    peer.half_close()
    client.read_close()
    client.vanish()
    eventually(lambda: gateway.connections()["total_connections"] == 0, "it has left")


def test_info_log_has_the_opening_and_the_end_of_a_connection(lab):
    """`info` logs the start (version, listen, routes, Redis) and each connection, opened and closed (by whom, code, duration,
    frames and bytes each way), with its id (`input_1`) in every line."""
    backend = lab.backend()
    gateway = lab.gateway({"log": {"level": "info"}}, backend=backend.url())
    whole_conversation(lab, gateway, backend)
    gateway.process.wait_for_line(r"input_1\b.*\b4321\b")
    # The rest is the black box: 4321 is no code of a good end.
    lines = [line for line in gateway.log.splitlines() if re.search(r"\binput_1\b", line) and " story " not in line]
    assert len(lines) == 2, "one line opens, one closes"
    assert "client" in lines[1], "who closed"
    for number in ("2", "4321"):
        assert re.search(rf"\b{number}\b", lines[1]), lines[1]
    assert not any(" DEBUG " in line or " TRACE " in line for line in gateway.log.splitlines())
    start = gateway.log[: gateway.log.index("input_1")]
    assert re.search(r"\bversion\b|\d+\.\d+\.\d+", start)
    assert "/ws/input" in start and f"127.0.0.1:{backend.port}" in start


def test_first_line_names_what_was_started(lab):
    """`info` logs the start with version, listen, routes and Redis, and never a password."""
    url = f"redis://me:open-sesame@127.0.0.1:{closed_port()}"
    routes = [route(backend="ws://127.0.0.1:9/"), route("output", "/ws/output/{task_id}", serve="output")]
    gateway = lab.gateway({"route": routes, "redis": {"url": url}})
    gateway.process.wait_for_line("redis trouble")
    first = gateway.log.splitlines()[0]
    assert re.search(r"gateway starting version=\d+\.\d+\.\d+ .*listen=127\.0\.0\.1:0 routes=input,output redis=", first)
    assert first.endswith("redis=" + url.replace("open-sesame", "***"))
    assert "open-sesame" not in gateway.log
    relay = lab.gateway(backend="ws://127.0.0.1:9/")
    assert relay.log.splitlines()[0].endswith("routes=input redis=disabled")


def test_debug_has_each_step_and_each_message(lab):
    """`debug` logs every step of a handshake and every relayed message (connection, direction, opcode, length, FIN)."""
    backend = lab.backend()
    gateway = lab.gateway({"log": {"level": "debug"}}, backend=backend.url())
    client, peer = lab.pair(gateway, backend)
    client.frame(TEXT, "x" * 1234)
    client.frame(PING, b"y" * 17)
    peer.read_frame(), peer.read_frame()
    gateway.process.wait_for_line(r"DEBUG.*input_1\b.*text.*\b1234\b")
    gateway.process.wait_for_line(r"DEBUG.*input_1\b.*ping.*\b17\b")
    steps = [line for line in gateway.log.splitlines() if "DEBUG" in line and "input_1" in line]
    assert len(steps) >= 4, "the dial, the backend's answer, two messages at the least"


def test_lines_are_utc_text(lab):
    """One line per event: time (UTC, milliseconds), level, target, then a short message with `key=value` pairs."""
    backend = lab.backend()
    gateway = lab.gateway({"log": {"level": "trace"}}, backend=backend.url())
    whole_conversation(lab, gateway, backend)
    for line in gateway.log.splitlines():
        assert re.fullmatch(rf"{TIME} (ERROR|WARN|INFO|DEBUG|TRACE) +\S+ \S.*", line), line
    assert re.search(r"INFO +gateway listening\b.* address=127\.0\.0\.1:\d+", gateway.log)


def test_json_log_has_one_object_a_line(lab):
    """`format = "json"`: one object per line."""
    backend = lab.backend()
    gateway = lab.gateway({"log": {"level": "debug", "format": "json"}}, backend=backend.url())
    whole_conversation(lab, gateway, backend)
    gateway.process.wait_for_line("input_1 closed")
    lines = [json.loads(line) for line in gateway.log.splitlines()]
    for line in lines:
        assert re.fullmatch(TIME, line["time"])
        assert line["level"] in ("ERROR", "WARN", "INFO", "DEBUG", "TRACE")
        assert line["target"] and line["message"]
    assert any("input_1" in str(line) for line in lines)


def test_peer_cannot_forge_a_line(lab):
    """A close reason with a line break in it stays on one line."""
    backend = lab.backend()
    gateway = lab.gateway({"log": {"level": "trace"}}, backend=backend.url())
    client, peer = lab.pair(gateway, backend)
    peer.close_frame(4000, "bye\n2026-01-01T00:00:00.000Z ERROR forged line\x1b[31m")
    client.read_close()
    client.vanish()
    peer.vanish()
    eventually(lambda: gateway.connections()["total_connections"] == 0, "it has left")
    assert not re.search(r"(?m)^2026-01-01T00:00:00", gateway.log)
    assert "\x1b" not in gateway.log


SECRETS = {
    "query": "query-s3cret",
    "cookie": "cookie-s3cret",
    "bearer": "bearer-s3cret",
    "text": "text-s3cret",
    "binary": "binary-s3cret",
    "ping": "ping-s3cret",
    "down": "down-s3cret",
    "set-cookie": "setcookie-s3cret",
    "key": "key-s3cret",
}


def test_payloads_tokens_and_query_values_are_never_logged(lab):
    """Payloads, tokens and query values are never logged, not even at trace or about failures."""
    backend = lab.backend()
    gateway = lab.gateway({"log": {"level": "trace"}}, backend=backend.url())
    headers = [
        ("Cookie", f"session={SECRETS['cookie']}"),
        ("Authorization", f"Bearer {SECRETS['bearer']}"),
        ("X-Api-Key", SECRETS["key"]),
    ]
    target = f"/ws/input?token={SECRETS['query']}"
    client = lab.client(gateway)
    client.upgrade(target, headers)
    peer = backend.accept_upgraded(headers=[("Set-Cookie", f"s={SECRETS['set-cookie']}")])
    client.read_switch()
    client.say(SECRETS["text"])
    client.frame(BINARY, SECRETS["binary"])
    client.frame(PING, SECRETS["ping"])
    for _ in range(3):
        peer.read_frame()
    peer.say(SECRETS["down"])
    client.read_frame()
    listed = str(gateway.connections()) + gateway.get("/").body.decode() + gateway.get("/metrics").body.decode()
    peer.vanish()
    assert client.read_close().code == 1011
    client.vanish()

    # And on the way that fails: no backend, no such route, a bad head, a plain request.
    backend.stop()
    again = lab.client(gateway)
    again.upgrade(target, headers)
    again.read_switch()
    again.read_close()
    again.vanish()
    gateway.get(f"/nope?token={SECRETS['query']}", headers=headers)
    gateway.get(target, headers=headers)
    bad = lab.client(gateway)
    bad.send(f"GET {target} HTTP/1.1\r\nHost: a\r\nHost: b\r\nCookie: {SECRETS['cookie']}\r\n\r\n".encode())
    assert bad.read_reply().status == 400

    gateway.process.wait_for_line("input_1")
    for name, secret in SECRETS.items():
        assert secret not in gateway.log, f"the {name} is in the log"
        assert secret not in listed, f"the {name} is in a report"


def test_every_line_of_a_connection_has_its_id(lab):
    """Every line about a connection has its id (`input_1`): one grep separates two connections."""
    backend = lab.backend()
    gateway = lab.gateway({"log": {"level": "debug"}}, backend=backend.url())
    first, first_peer = lab.pair(gateway, backend)
    second, second_peer = lab.pair(gateway, backend)
    first.say("a" * 1111)
    second.say("b" * 2222)
    first_peer.read_frame(), second_peer.read_frame()
    assert "input_1" in gateway.process.wait_for_line(r".*\b1111\b.*").group(0)
    assert "input_2" in gateway.process.wait_for_line(r".*\b2222\b.*").group(0)


def test_full_disk_stops_nothing(lab):
    """A full disk is reported once and never stops the gateway."""
    backend = lab.backend()
    gateway = lab.gateway({"log": {"level": "debug", "file": "/dev/full"}}, backend=backend.url(), wait=False)
    gateway.port = eventually(gateway.listening_ports, "it listens")[0]
    for _ in range(5):
        whole_conversation(lab, gateway, backend)
    gateway.process.wait_for_line("/dev/full")
    assert len([line for line in gateway.log.splitlines() if "/dev/full" in line]) == 1, "reported once"
    # Whoever looks at the gateway sees it too, for as long as it lasts.
    problems = lambda: gateway.get("/health").json()["problems"]  # noqa: E731
    assert eventually(lambda: problems() == ["log: No space left on device (os error 28)"], "it is a problem")
    good = lab.folder / "good.log"
    gateway.file.write_text(gateway.file.read_text().replace("/dev/full", str(good)))
    gateway.signal(signal.SIGHUP)
    assert eventually(lambda: problems() == [], "it is no problem any more")


def test_log_at_the_limit_of_file_sizes_stops_nothing(lab, tmp_path):
    """RLIMIT_FSIZE: by default, a write beyond it ends the process by a signal."""
    limit = 32 << 10
    backend = lab.backend()
    gateway = lab.gateway(
        {"log": {"level": "debug", "file": "own.log"}},
        backend=backend.url(),
        wait=False,
        before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY)),
    )
    gateway.port = eventually(gateway.listening_ports, "it listens")[0]
    problems = lambda: gateway.get("/health").json()["problems"]  # noqa: E731
    while not problems():
        whole_conversation(lab, gateway, backend)
    assert problems() == ["log: File too large (os error 27)"]
    assert (gateway.folder / "own.log").stat().st_size == limit
    whole_conversation(lab, gateway, backend)
    gateway.process.wait_for_line("own.log cannot be written: File too large")
    resource.prlimit(gateway.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    whole_conversation(lab, gateway, backend)
    assert eventually(lambda: problems() == [], "it is written again")


def test_impossible_log_file_stops_nothing(lab, tmp_path):
    """A log folder that cannot be created, since a file is in its place, is reported once and never stops the gateway."""
    (tmp_path / "plain").write_text("")
    file = str(tmp_path / "plain" / "gateway.log")
    backend = lab.backend()
    gateway = lab.gateway({"log": {"level": "info", "file": file}}, backend=backend.url(), wait=False)
    gateway.port = eventually(gateway.listening_ports, "it listens")[0]
    for _ in range(3):
        whole_conversation(lab, gateway, backend)
    gateway.process.wait_for_line(re.escape(file))


def test_log_goes_to_its_file(lab, tmp_path):
    """`[log] file` and `--log-file`: lines go there, not to standard error."""
    for config, args in [({"file": "own.log"}, []), ({}, ["--log-file", "own.log"])]:
        backend = lab.backend()
        gateway = lab.gateway({"log": {"level": "info", **config}}, backend=backend.url(), args=args, wait=False)
        gateway.port = eventually(gateway.listening_ports, "it listens")[0]
        whole_conversation(lab, gateway, backend)
        log = gateway.folder / "own.log"
        eventually(lambda: "4321" in log.read_text(), "the story is in the file")
        assert "input_1" not in gateway.log


def test_rotation_by_size(lab):
    """`max_size` and `keep`: the file is rotated at this size, this many old ones are kept, and lines stay whole."""
    backend = lab.backend()
    config = {"level": "debug", "file": "own.log", "max_size": "4KiB", "keep": 2}
    gateway = lab.gateway({"log": config}, backend=backend.url(), wait=False)
    gateway.port = eventually(gateway.listening_ports, "it listens")[0]

    def files():
        return sorted(gateway.folder.glob("own.log*"))

    for _ in range(200):
        whole_conversation(lab, gateway, backend)
        if len(files()) == 3:
            break
    # While files are renamed, one of them is missing for a moment.
    eventually(lambda: [file.name for file in files()] == ["own.log", "own.log.1", "own.log.2"], "three files")
    for _ in range(10):
        whole_conversation(lab, gateway, backend)
    eventually(lambda: len(files()) == 3, "three files")
    for file in files()[1:]:
        assert 0 < file.stat().st_size <= 4096
        assert all(re.match(TIME, line) for line in file.read_text().splitlines())


@pytest.mark.parametrize("level", ["off", "error", "warn"])
def test_info_lines_are_left_out_at_warn(lab, level):
    """`level`: at `warn`, nothing of `info` is logged."""
    backend = lab.backend()
    # Few connections: for many, a small limit of descriptors is worth a warning.
    server = {"listen": ["127.0.0.1:0"], "max_connections": 100}
    # The conversation ends with 4321, which would be told at `warn`.
    config = {"log": {"level": level, "failures": ""}, "server": server}
    gateway = lab.gateway(config, backend=backend.url(), wait=False)
    gateway.port = eventually(gateway.listening_ports, "it listens")[0]
    whole_conversation(lab, gateway, backend)
    assert gateway.log == ""
