"""Plain HTTP through a route, to servers on node, uvicorn and hyper. docs/protocol.md, section Plain HTTP."""

import hashlib
import http.client
import json
import random
import socket
import subprocess
import sys
import threading

import pytest

from gatewaylab import PATIENCE, PEERS, RUST_BACKEND
from gatewaylab.gateway import route
from gatewaylab.peers import node_env
from gatewaylab.process import Process

SERVERS = {
    "node": ["node", PEERS / "http_backend.js"],
    "uvicorn": [sys.executable, PEERS / "asgi_app.py", "0"],
}

# They parse requests; the others also have what the tests of responses need.
PARSERS = {**SERVERS, "hyper": [RUST_BACKEND]}

MIB = 1024 * 1024


class Server:
    def __init__(self, command):
        self.process = Process(command, env=node_env())
        self.port = int(self.process.wait_for_line(r"^port (\d+)$").group(1))

    def stop(self):
        self.process.kill()


@pytest.fixture(params=SERVERS)
def server(request, lab):
    server = Server(PARSERS[request.param])
    server.kind = request.param
    lab.backends.append(server)
    return server


@pytest.fixture
def gateway(lab, server):
    backend = f"http://127.0.0.1:{server.port}/{{rest}}"
    return lab.gateway({"route": [route("api", "/api/{rest...}", backend=backend)]})


class Connection(http.client.HTTPConnection):
    def ask(self, method, target, body=None, **headers):
        self.request(method, f"/api{target}", body, {name.replace("_", "-"): value for name, value in headers.items()})
        response = self.getresponse()
        return response, response.read()


@pytest.fixture
def client(lab, gateway):
    connection = Connection("127.0.0.1", gateway.port, timeout=PATIENCE)
    yield connection
    connection.close()


def resident(gateway):
    """Its memory in bytes."""
    with open(f"/proc/{gateway.process.pid}/status") as status:
        line = next(line for line in status if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024


def test_requests_and_responses_pass_over_one_connection(client):
    for method in ["GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"]:
        body = b"x" * 100 if method in ("POST", "PUT", "PATCH") else None
        response, content = client.ask(method, "/echo?a=b%20c", body, X_Test="1")
        seen = json.loads(content)
        assert (response.status, seen["method"], seen["target"]) == (200, method, "/echo?a=b%20c")
        assert seen["length"] == len(body or b"")
        headers = {name.lower(): value for name, value in zip(seen["headers"][::2], seen["headers"][1::2], strict=True)}
        assert headers["x-test"] == "1" and headers["x-forwarded-for"] == "127.0.0.1"
        assert headers["via"] == "1.1 aivtuber-gateway"
        sock = client.sock
    assert client.sock is sock, "the connection is kept"


def test_statuses_pass(client):
    response, content = client.ask("GET", "/private")
    assert (response.status, response.headers["WWW-Authenticate"], content) == (401, "Basic", b"no")
    response, _ = client.ask("GET", "/moved")
    assert (response.status, response.headers["Location"]) == (302, "/api/echo")
    response, content = client.ask("GET", "/known")
    assert (response.status, response.headers["ETag"], content) == (304, '"x"', b"")
    response, content = client.ask("HEAD", "/download?bytes=70000")
    assert (response.status, response.headers["Content-Length"], content) == (200, "70000", b"")
    response, content = client.ask("GET", "/nothing")
    assert (response.status, content) == (404, b"not here")


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_large_bodies_take_no_memory(client, gateway, framing):
    size = 64 * MIB
    client.ask("GET", "/echo")
    before = resident(gateway)
    peak = 0

    def pieces():
        nonlocal peak
        for _ in range(size // MIB):
            yield b"0123456789abcdef" * (MIB // 16)
            peak = max(peak, resident(gateway))

    headers = {"Content-Length": str(size)} if framing == "length" else {"Transfer-Encoding": "chunked"}
    client.request("POST", "/api/echo", pieces(), headers, encode_chunked=framing == "chunked")
    seen = json.loads(client.getresponse().read())
    digest = hashlib.sha256(b"0123456789abcdef" * (size // 16)).hexdigest()
    assert (seen["length"], seen["sha256"]) == (size, digest)

    client.request("GET", f"/api/download?bytes={size}" + ("&chunked=1" if framing == "chunked" else ""))
    response = client.getresponse()
    got, received = hashlib.sha256(), 0
    while piece := response.read(MIB):
        got.update(piece)
        received += len(piece)
        peak = max(peak, resident(gateway))
    assert (received, got.hexdigest()) == (size, digest)
    assert peak - before < 2 * MIB, f"{peak - before} bytes more"


def test_a_slow_reader_holds_the_backend_back(lab, client, gateway, server):
    """What the client does not take, the gateway does not read: most of the body stays with the backend."""
    before = resident(gateway)
    slow = socket.create_connection(("127.0.0.1", gateway.port), timeout=PATIENCE)
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    slow.sendall(f"GET /api/download?bytes={64 * MIB} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    assert slow.recv(1000).startswith(b"HTTP/1.1 200 OK\r\n")
    for _ in range(20):
        client.ask("GET", "/echo")
    assert resident(gateway) - before < 2 * MIB
    slow.close()


def test_events_are_passed_on_at_once(lab, client, gateway, server):
    stream = Connection("127.0.0.1", gateway.port, timeout=PATIENCE)
    stream.request("GET", "/api/events")
    response = stream.getresponse()
    assert response.headers["Content-Type"] == "text/event-stream"
    assert [response.readline(), response.readline()] == [b"data: 1\n", b"\n"]
    # The second event is caused by another request, once the first has arrived.
    assert client.ask("POST", "/more", b"")[1] == b"sent"
    assert [response.readline(), response.readline()] == [b"data: 2\n", b"\n"]
    stream.close()
    server.process.wait_for_line(r"^stream closed$")


def test_curl_waits_for_continue(gateway, server, tmp_path):
    file = tmp_path / "body"
    file.write_bytes(b"y" * MIB)
    command = ["curl", "-sS", "-i", "-T", file, "-H", "Expect: 100-continue", f"http://127.0.0.1:{gateway.port}/api/echo"]
    done = subprocess.run(command, capture_output=True, timeout=PATIENCE)
    assert done.stdout.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n"), done
    assert json.loads(done.stdout.split(b"\r\n\r\n")[2])["length"] == MIB


def test_pipelined_requests_are_answered_in_order(lab, gateway):
    client = lab.client(gateway)
    client.send(b"".join(b"GET /api/echo?n=%d HTTP/1.1\r\nHost: a\r\n\r\n" % n for n in range(5)))
    for number in range(5):
        reply = client.read_reply()
        assert json.loads(reply.body)["target"] == f"/echo?n={number}"


def test_an_http_1_0_client_gets_a_stream_until_the_end(gateway):
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=PATIENCE) as client:
        client.sendall(b"GET /api/download?bytes=100000&chunked=1 HTTP/1.0\r\n\r\n")
        received = b"".join(iter(lambda: client.recv(65536), b""))
    head, body = received.split(b"\r\n\r\n", 1)
    assert b"Connection: close" in head and b"Transfer-Encoding" not in head
    assert len(body) == 100000


def test_no_backend_is_a_502_in_json(lab):
    gateway = lab.gateway({"route": [route("api", "/api/{rest...}", backend="http://127.0.0.1:1/{rest}")]})
    connection = Connection("127.0.0.1", gateway.port, timeout=PATIENCE)
    response, content = connection.ask("POST", "/echo", b"x")
    assert (response.status, json.loads(content)["error"]) == (502, "backend unavailable: connection refused")
    connection.close()
    # It stays failed, and says so.
    assert gateway.process.wait_for_line(r"api_1 = backend http://127\.0\.0\.1:1/\{rest\} failed")


def test_a_cut_response_is_seen_to_be_cut(lab):
    server = Server(SERVERS["node"])
    lab.backends.append(server)
    backend = f"http://127.0.0.1:{server.port}/{{rest}}"
    gateway = lab.gateway({"route": [route("api", "/api/{rest...}", backend=backend)]})
    connection = Connection("127.0.0.1", gateway.port, timeout=PATIENCE)
    with pytest.raises(http.client.IncompleteRead):
        connection.ask("GET", "/cut")
    connection.close()
    gateway.process.wait_for_line(r"api_1 closed reason=response_cut .* method=GET status=200 what=")


# ---- what the gateway saw is what the backend sees


def draw(chance, number):
    """A request: its bytes, and what the backend is to report of it."""
    method = chance.choice(["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
    target = "/echo" + chance.choice(["", "?", f"?n={number}", "?a=b&c=%20%2f", "?x=" + "y" * 100])
    body = bytes(chance.randrange(256) for _ in range(chance.choice([0, 1, 10, 500, 5000])))
    framing = "none" if method in ("GET", "OPTIONS") else chance.choice(["length", "chunked"])
    headers = [("Host", "a.example"), ("X-Number", str(number))]
    for index in range(chance.randrange(4)):
        headers.append((f"X-{index}", chance.choice(["", "a", "a, b", "c=d; e", "\u00e9\u00ff", "tab\there", "z" * 300])))
    lines = [f"{method} /api{target} HTTP/1.1".encode()]
    for name, value in headers:
        spaces = [chance.choice(["", " ", "  ", "\t"]) for _ in range(2)]
        lines.append(f"{name}:{spaces[0]}{value}{spaces[1]}".encode("latin1"))
    if framing == "none":
        body = b""
    elif framing == "length":
        lines.append(b"content-length: " + b"0" * chance.randrange(3) + str(len(body)).encode())
    else:
        lines.append(b"Transfer-Encoding: chunked")
    content = body
    if framing == "chunked":
        content, left = b"", body
        while left:
            size = chance.randint(1, len(left))
            content += b"0" * chance.randrange(3) + b"%x\r\n" % size + left[:size] + b"\r\n"
            left = left[size:]
        content += chance.choice([b"0\r\n\r\n", b"0\r\nX-Trailer: dropped\r\n\r\n"])
    return b"\r\n".join(lines) + b"\r\n\r\n" + content, (method, target, headers, body)


@pytest.mark.parametrize("server", PARSERS, indirect=True)
def test_a_thousand_requests_arrive_as_they_were_sent(lab, gateway, server):
    chance = random.Random(7)
    drawn = [draw(chance, number) for number in range(1000)]
    wire = b"".join(data for data, _ in drawn)
    client = lab.client(gateway)

    def send():
        at = 0
        while at < len(wire):
            size = chance.choice([1, 7, 100, 1400, 60000])
            client.send(wire[at : at + size])
            at += size

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    for _, (method, target, headers, body) in drawn:
        seen = json.loads(client.read_reply().body)
        assert (seen["method"], seen["target"].rstrip("?")) == (method, target.rstrip("?"))
        assert (seen["length"], seen["sha256"]) == (len(body), hashlib.sha256(body).hexdigest())
        assert not seen.get("trailers")
        pairs = [(name.lower(), value) for name, value in zip(seen["headers"][::2], seen["headers"][1::2], strict=True)]
        own = [(name, value) for name, value in pairs if name == "host" or name.startswith("x-") and name[2:3] in "0123456789n"]
        assert own == [(name.lower(), value) for name, value in headers]
        lengths = [name for name, _ in pairs if name in ("content-length", "transfer-encoding")]
        assert len(lengths) == (method not in ("GET", "OPTIONS"))
    sender.join()
