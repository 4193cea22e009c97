"""Heads (docs/protocol.md section 1): which route a request takes, and which header lines are passed on."""

import socket

import pytest

from gatewaylab.gateway import route
from gatewaylab.wire import TEXT, frame, plain_request, upgrade_request

SWITCHED_HEADERS = [
    ("Sec-WebSocket-Protocol", "chat.v2"),
    ("Sec-WebSocket-Extensions", "permessage-deflate; server_no_context_takeover"),
    ("Set-Cookie", "a=1; HttpOnly"),
    ("Set-Cookie", "b=2"),
    ("Server", "backend/9"),
    ("X-Custom", "kept: as is"),
]

END_TO_END = [
    ("Cookie", "session=abc; theme=dark"),
    ("Authorization", "Bearer eyJ.x.y"),
    ("Origin", "https://app.example"),
    ("User-Agent", "Mozilla/5.0 (test)"),
    ("Accept-Language", "ja,en;q=0.5"),
    ("Sec-WebSocket-Protocol", "chat.v2, chat.v1"),
    ("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits"),
    ("X-Twice", "one"),
    ("X-Twice", "two"),
    ("X-Odd-Bytes", "caf\xe9 \t in between"),
]

HOP_BY_HOP = [
    ("Keep-Alive", "timeout=5"),
    ("Proxy-Connection", "keep-alive"),
    ("Proxy-Authorization", "Basic c2VjcmV0"),
    ("TE", "trailers"),
    ("Trailer", "X-End"),
    ("X-Hop", "for the next one only"),
]


def upgraded(lab, gateway, backend, target="/ws/input", headers=(), **options):
    """The request head that the backend received, once the upgrade has succeeded."""
    client = lab.client(gateway)
    client.upgrade(target, headers, **options)
    peer = backend.accept_upgraded()
    client.read_switch()
    return client, peer.head


@pytest.mark.parametrize("name", sorted({name for name, _ in END_TO_END}))
def test_end_to_end_headers_go_through_unchanged(lab, way, name):
    """Every end-to-end request header is passed on unchanged: Cookie, Authorization, Origin, User-Agent, Sec-WebSocket-Key,
    -Version, -Protocol and -Extensions, and any other."""
    backend = lab.backend()
    client, head = upgraded(lab, way.to(backend), backend, headers=END_TO_END)
    assert head.all(name) == [value for key, value in END_TO_END if key == name]
    assert head["Sec-WebSocket-Key"] == client.key
    assert head["Sec-WebSocket-Version"] == "13"


def test_order_of_end_to_end_headers_is_kept(lab, way):
    """Headers keep their order: a backend that logs them sees the client's."""
    backend = lab.backend()
    _, head = upgraded(lab, way.to(backend), backend, headers=END_TO_END)
    names = [name.lower() for name, _ in END_TO_END]
    assert [name.lower() for name, _ in head.headers if name.lower() in names] == names


def test_hop_by_hop_headers_are_not_relayed(lab, way):
    """Hop-by-hop headers are not passed on, nor are those that `Connection` names; the upgrade pair is."""
    backend = lab.backend()
    headers = [("Connection", "keep-alive, Upgrade, X-Hop"), *HOP_BY_HOP]
    _, head = upgraded(lab, way.to(backend), backend, headers=headers)
    for name, _ in HOP_BY_HOP:
        assert name not in head, f"{name} went through: {head.raw!r}"
    assert head["Upgrade"].lower() == "websocket"
    assert "upgrade" in head.tokens("Connection")
    assert "x-hop" not in head.tokens("Connection")


def test_host_of_the_client_is_relayed(lab, way):
    """`Host` is passed on, since backends compare it with `Origin`."""
    backend = lab.backend()
    _, head = upgraded(lab, way.to(backend), backend, host="stream.example:8000")
    assert head["Host"] == "stream.example:8000"


def test_route_may_replace_the_host(lab):
    """`host` of a route replaces `Host`; `X-Forwarded-Host` still has what the client asked for."""
    backend = lab.backend()
    gateway = lab.gateway({"route": [route(backend=backend.url(), host="backend.example")]})
    _, head = upgraded(lab, gateway, backend, host="stream.example")
    assert head["Host"] == "backend.example"
    assert head["X-Forwarded-Host"] == "stream.example"


def test_forwarding_headers_are_added(lab):
    """`X-Forwarded-For`, `-Proto` and `-Host`, and `X-Request-Id`, are added."""
    backend = lab.backend()
    gateway = lab.gateway(backend=backend.url())
    _, head = upgraded(lab, gateway, backend, host="stream.example")
    assert head["X-Forwarded-For"] == "127.0.0.1"
    assert head["X-Forwarded-Proto"] == "http"
    assert head["X-Forwarded-Host"] == "stream.example"
    assert len(head["X-Request-Id"]) >= 8


def test_each_request_has_an_id_of_its_own(lab):
    """Each connection gets a different `X-Request-Id`."""
    backend = lab.backend()
    gateway = lab.gateway(backend=backend.url())
    ids = [upgraded(lab, gateway, backend)[1]["X-Request-Id"] for _ in range(20)]
    assert len(set(ids)) == 20


def test_x_forwarded_for_is_appended_to(lab):
    """`X-Forwarded-For` is appended to: what the client says comes first, the address that the gateway sees last."""
    backend = lab.backend()
    gateway = lab.gateway(backend=backend.url())
    _, head = upgraded(lab, gateway, backend, headers=[("X-Forwarded-For", "203.0.113.7, 198.51.100.2")])
    assert head.tokens("X-Forwarded-For") == ["203.0.113.7", "198.51.100.2", "127.0.0.1"]


def test_each_gateway_appends_to_x_forwarded_for(lab):
    """Two gateways in a row: each appends its client to `X-Forwarded-For`, and the client's host is kept."""
    backend = lab.backend()
    inner = lab.gateway(backend=backend.url())
    outer = lab.gateway(backend=f"ws://127.0.0.1:{inner.port}/ws/input")
    client = lab.client(outer, source="127.0.0.9")
    client.upgrade(host="stream.example")
    peer = backend.accept_upgraded()
    client.read_switch()
    assert peer.head.tokens("X-Forwarded-For") == ["127.0.0.9", "127.0.0.1"]
    assert peer.head["Host"] == "stream.example"


def test_backends_101_comes_back_with_its_own_headers(lab, way):
    """The backend's 101 comes back with its own headers, so subprotocol and permessage-deflate are negotiated end to end."""
    backend = lab.backend()
    client = lab.client(way.to(backend))
    client.upgrade(headers=END_TO_END)
    backend.accept_upgraded(headers=SWITCHED_HEADERS)
    head = client.read_switch()
    for name in {name for name, _ in SWITCHED_HEADERS}:
        assert head.all(name) == [value for key, value in SWITCHED_HEADERS if key == name]


@pytest.mark.parametrize("query", ["", "?a=1", "?token=a%2Fb&x=1&x=2", "?", "?q=%E3%81%82+b", "?a=?b=/c"])
def test_query_string_goes_along(lab, way, query):
    """The query is passed on unchanged, whatever is in it."""
    backend = lab.backend()
    _, head = upgraded(lab, way.to(backend), backend, target=f"/ws/input{query}")
    assert head.target in (f"/ws/input{query}", f"/ws/input{query.rstrip('?')}")


@pytest.mark.parametrize("task", ["7d2b1a52-93a2-4c44-9a94-6a2a4a6cf111", "not-a-uuid", "a%20b", "x.y~z", "%2F", "1"])
def test_task_ids_are_not_validated_on_relayed_routes(lab, task):
    """The backend's URL may use the names of the route's path. Task ids are not validated on a relayed route."""
    backend = lab.backend()
    routes = [route("output", "/ws/output/{task_id}", backend=backend.url("/results/{task_id}/stream"))]
    gateway = lab.gateway({"route": routes})
    _, head = upgraded(lab, gateway, backend, target=f"/ws/output/{task}?from_chunk=3")
    assert head.target == f"/results/{task}/stream?from_chunk=3"


def test_path_names_can_be_used_anywhere_in_the_backend_url(lab):
    """`{name}` matches one non-empty path segment; the backend's URL may use several names, in another order."""
    backend = lab.backend()
    routes = [route("room", "/rooms/{room}/users/{user}", backend=backend.url("/u/{user}/in/{room}"))]
    gateway = lab.gateway({"route": routes})
    _, head = upgraded(lab, gateway, backend, target="/rooms/blue/users/ann")
    assert head.target == "/u/ann/in/blue"


@pytest.mark.parametrize("target", ["/ws/output/", "/ws/output/a/b", "/ws/output", "/ws/inputs", "/ws/input/", "/WS/input", "/ws"])
def test_path_that_no_route_matches_is_not_found(lab, target):
    """A path that no route matches is 404 for an upgrade, too: `{name}` matches one segment, and not an empty one."""
    routes = [route(backend="ws://127.0.0.1:9/ws/input"), route("output", "/ws/output/{task_id}", backend="ws://127.0.0.1:9/")]
    gateway = lab.gateway({"route": routes})
    client = lab.client(gateway)
    client.upgrade(target)
    reply = client.read_reply()
    assert reply.status == 404
    assert reply.json()["status"] == "error"


def test_each_route_has_its_own_backend(lab):
    """Only the path of the request target is matched."""
    one, two = lab.backend(), lab.backend()
    routes = [route("one", "/a", backend=one.url("/one")), route("two", "/b", backend=two.url("/two"))]
    gateway = lab.gateway({"route": routes})
    assert upgraded(lab, gateway, two, target="/b")[1].target == "/two"
    assert upgraded(lab, gateway, one, target="/a")[1].target == "/one"


LOCALHOST = sorted({address[0] for *_, address in socket.getaddrinfo("localhost", 0)})
"""What the name means on this machine: often both loopback addresses, of which a backend may have only one."""


@pytest.mark.parametrize("host", LOCALHOST)
def test_all_addresses_of_a_name_are_tried(lab, host):
    """A backend named `localhost` is found whether it listens on 127.0.0.1 or on ::1."""
    backend = lab.backend(host=host)
    gateway = lab.gateway(backend=f"ws://localhost:{backend.port}/ws/input")
    client, peer = lab.pair(gateway, backend)
    client.say("found you")
    assert peer.read_frame().text == "found you"


def test_upgrade_may_follow_plain_requests_on_one_connection(lab):
    """Requests, pipelined and one by one, and then a WebSocket on the same connection."""
    backend = lab.backend()
    client = lab.client(lab.gateway(backend=backend.url()))
    request, client.key = upgrade_request()
    client.send(plain_request("/health") + plain_request("/ready") + request + frame(TEXT, "early", mask=b"mask"))
    assert client.read_reply().json()["gateway"] == "running"
    assert client.read_reply().status == 200
    peer = backend.accept_upgraded()
    client.read_switch()
    assert peer.read_frame().text == "early"
