"""Plain HTTP routes and files where the connections are not plain TCP: TLS on either side, and Unix sockets."""

import hashlib
import http.client
import json
import ssl

import pytest

from gatewaylab import PATIENCE, PEERS
from gatewaylab.certificates import Authority
from gatewaylab.gateway import route
from gatewaylab.peers import pattern
from test_forward import MIB, SERVERS, Server, resident
from test_tls import TLS_LISTENING

PAGE = b"<!doctype html><title>app</title><p>the page"


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def backend(request, lab, authority, tmp_path):
    """A backend's URL, by its kind."""
    node = SERVERS["node"]
    if request.param == "http+unix":
        path = tmp_path / "api.sock"
        arguments, url = ["unix", path], f"http+unix://{path}:/{{rest}}"
    elif request.param == "https":
        arguments, url = ["tls", *authority.certify("localhost", file="backend")], "https://localhost:{port}/{{rest}}"
    else:
        arguments, url = [], "http://127.0.0.1:{port}/{{rest}}"
    server = Server([*node, *arguments])
    lab.backends.append(server)
    return url if request.param == "http+unix" else url.format(port=server.port)


@pytest.fixture
def gateway(lab, authority, backend, tmp_path):
    """It listens with and without TLS, and serves files beside the API."""
    pem, key = authority.certify("localhost", file="gateway")
    dist = tmp_path / "dist"
    dist.mkdir()
    (dist / "index.html").write_bytes(PAGE)
    (dist / "big.bin").write_bytes(pattern(8 * MIB))
    (dist / ".env").write_bytes(b"secret")
    gateway = lab.gateway(
        {
            "server": {"listen": ["127.0.0.1:0", "tls://127.0.0.1:0"]},
            "tls": {"certificate": str(pem), "key": str(key), "ca": str(authority.pem)},
            "route": [
                route("api", "/api/{rest...}", backend=backend),
                route("app", "/{file...}", files=str(dist), fallback="index.html"),
            ],
        }
    )
    gateway.tls_port = int(gateway.process.wait_for_line(TLS_LISTENING).group(1))
    return gateway


def connect(gateway, authority, scheme):
    if scheme == "http":
        return http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=PATIENCE)
    return http.client.HTTPSConnection("localhost", gateway.tls_port, timeout=PATIENCE, context=authority.context())


def ask(client, method, target, body=None, **headers):
    client.request(method, target, body, {name.replace("_", "-"): value for name, value in headers.items()})
    response = client.getresponse()
    return response, response.read()


WAYS = pytest.mark.parametrize(
    "backend, scheme",
    [("http", "https"), ("https", "https"), ("http+unix", "https"), ("https", "http"), ("http+unix", "http")],
    indirect=["backend"],
    ids=lambda kind: kind,
)


@WAYS
def test_requests_pass_with_the_scheme_of_the_client(gateway, authority, scheme):
    client = connect(gateway, authority, scheme)
    for method in ("GET", "POST", "PUT", "DELETE"):
        body = pattern(100_000) if method in ("POST", "PUT") else None
        response, content = ask(client, method, "/api/echo?a=b%20c", body)
        seen = json.loads(content)
        assert (response.status, seen["method"], seen["target"]) == (200, method, "/echo?a=b%20c")
        assert (seen["length"], seen["sha256"]) == (len(body or b""), hashlib.sha256(body or b"").hexdigest())
        headers = dict(zip(seen["headers"][::2], seen["headers"][1::2], strict=True))
        assert headers["X-Forwarded-Proto"] == scheme and headers["X-Forwarded-For"] == "127.0.0.1"
        port = gateway.tls_port if scheme == "https" else gateway.port
        assert headers["Host"].endswith(f":{port}")
    response, content = ask(client, "GET", "/api/private")
    assert (response.status, response.headers["WWW-Authenticate"], content) == (401, "Basic", b"no")
    response, content = ask(client, "HEAD", "/api/download?bytes=70000")
    assert (response.headers["Content-Length"], content) == ("70000", b"")
    client.close()


@WAYS
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_large_bodies_pass_whole_and_take_no_memory(gateway, authority, scheme, framing):
    size, piece = 16 * MIB, b"0123456789abcdef" * (MIB // 16)
    whole = hashlib.sha256(piece * (size // MIB)).hexdigest()
    client = connect(gateway, authority, scheme)
    ask(client, "GET", "/api/echo")
    before = peak = resident(gateway)

    def pieces():
        nonlocal peak
        for _ in range(size // MIB):
            yield piece
            peak = max(peak, resident(gateway))

    headers = {"Content-Length": str(size)} if framing == "length" else {"Transfer-Encoding": "chunked"}
    client.request("POST", "/api/echo", pieces(), headers, encode_chunked=framing == "chunked")
    seen = json.loads(client.getresponse().read())
    assert (seen["length"], seen["sha256"]) == (size, whole)
    client.request("GET", f"/api/download?bytes={size}" + ("&chunked=1" if framing == "chunked" else ""))
    response, digest, received = client.getresponse(), hashlib.sha256(), 0
    while part := response.read(MIB):
        digest.update(part)
        received += len(part)
        peak = max(peak, resident(gateway))
    assert (received, digest.hexdigest()) == (size, whole)
    assert peak - before < 2 * MIB, f"{peak - before} bytes more"
    client.close()


@WAYS
def test_events_are_passed_on_at_once(gateway, authority, scheme):
    stream, client = connect(gateway, authority, scheme), connect(gateway, authority, scheme)
    stream.request("GET", "/api/events")
    response = stream.getresponse()
    assert [response.readline(), response.readline()] == [b"data: 1\n", b"\n"]
    assert ask(client, "POST", "/api/more", b"")[1] == b"sent"
    assert [response.readline(), response.readline()] == [b"data: 2\n", b"\n"]
    stream.close()
    client.close()


@pytest.mark.parametrize("backend", ["http"], indirect=True)
@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_files_are_the_same_over_tls(gateway, authority, version):
    only = getattr(ssl.TLSVersion, version)
    context = authority.context(minimum_version=only, maximum_version=only)
    client = http.client.HTTPSConnection("localhost", gateway.tls_port, timeout=PATIENCE, context=context)
    response, content = ask(client, "GET", "/", Accept="text/html")
    assert (response.status, content) == (200, PAGE)
    assert client.sock.version() == version.replace("_", ".")
    sock, tag = client.sock, response.headers["ETag"]
    response, content = ask(client, "GET", "/", If_None_Match=tag)
    assert (response.status, content) == (304, b"")
    response, content = ask(client, "GET", "/big.bin")
    assert (response.status, content) == (200, pattern(8 * MIB))
    response, content = ask(client, "GET", "/big.bin", Range=f"bytes={MIB}-{3 * MIB}")
    assert (response.status, content) == (206, pattern(8 * MIB)[MIB : 3 * MIB + 1])
    response, content = ask(client, "HEAD", "/big.bin")
    assert (response.headers["Content-Length"], content) == (str(8 * MIB), b"")
    assert ask(client, "GET", "/.env")[0].status == 404
    response, content = ask(client, "GET", "/talk/7", Accept="text/html")
    assert (response.status, content) == (200, PAGE)
    assert client.sock is sock, "the connection is kept"
    client.close()


# ---- backends that are not used


def failing(lab, backend, **config):
    """What a client gets, and the gateway."""
    gateway = lab.gateway({"route": [route("api", "/api/{rest...}", backend=backend, **config.pop("keys", {}))], **config})
    client = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=PATIENCE)
    response, content = ask(client, "POST", "/api/echo", b"x")
    client.close()
    return gateway, response.status, json.loads(content)


@pytest.mark.parametrize("name, trusts", [("localhost", False), ("127.0.0.1", True)], ids=["root", "name"])
@pytest.mark.parametrize("backend", ["https"], indirect=True)
def test_a_backend_with_another_root_or_name_is_a_502(lab, authority, backend, name, trusts):
    tls = {"tls": {"ca": str(authority.pem)}} if trusts else {}
    gateway, status, content = failing(lab, backend.replace("localhost", name), **tls)
    assert (status, content["error"]) == (502, "backend unavailable: its certificate is not accepted")
    gateway.process.wait_for_line(r"no TLS with the backend why=\"invalid peer certificate")


@pytest.mark.parametrize("backend", ["https"], indirect=True)
def test_an_insecure_route_accepts_any_certificate_and_warns(lab, backend):
    gateway, status, content = failing(lab, backend, keys={"insecure": True})
    assert (status, content["length"]) == (200, 1)
    gateway.process.wait_for_line(r"WARN .*route `api`: insecure = true")


def test_a_backend_whose_socket_is_missing_is_a_502(lab, tmp_path):
    _, status, content = failing(lab, f"http+unix://{tmp_path}/none.sock:/{{rest}}")
    assert (status, content["error"]) == (502, "backend unavailable: could not connect")
