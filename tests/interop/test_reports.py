"""What the gateway reports about itself (docs/protocol.md section 3): `/`, `/health`, `/ready`, `/connections`, `/metrics`, and
CORS."""

import datetime
import re
import tomllib

import pytest

from gatewaylab import ROOT
from gatewaylab.gateway import route
from gatewaylab.wire import BINARY, PING, TEXT, closed_port, connect, eventually, frame

VERSION = tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]["version"]


def test_status_page_is_self_contained_html(lab):
    """`GET /`: the status page, 200 `text/html`. It loads nothing from anywhere."""
    gateway = lab.gateway(backend="ws://127.0.0.1:9/ws/input")
    reply = gateway.get("/")
    assert reply.status == 200
    assert reply.head["Content-Type"].split(";")[0] == "text/html"
    page = reply.body.decode()
    assert page.lower().lstrip().startswith("<!doctype html>")
    assert VERSION in page
    assert "/ws/input" in page
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", page)


def test_routes_name_cannot_write_into_the_page(lab):
    """What comes from outside is shown as text, never as markup."""
    backend = lab.backend()
    gateway = lab.gateway({"route": [route("output", "/ws/output/{task_id}", backend=backend.url("/o/{task_id}"))]})
    lab.pair(gateway, backend, "/ws/output/<script>alert(1)<%2Fscript>")
    assert "<script>alert" not in gateway.get("/").body.decode()


def test_health_has_all_its_fields(lab):
    """`GET /health`: `status`, `gateway`, `version`, `uptime_seconds`, `active_connections`, `backend_services`, `redis`."""
    backend = lab.backend()
    routes = [route(backend=backend.url()), route("output", "/ws/output/{task_id}", backend="ws://127.0.0.1:9/o/{task_id}")]
    gateway = lab.gateway({"route": routes})
    health = gateway.get("/health")
    assert health.status == 200
    body = health.json()
    assert body["status"] == "ok"
    assert body["gateway"] == "running"
    assert body["version"] == VERSION
    assert body["uptime_seconds"] >= 0
    assert body["active_connections"] == 0
    assert body["backend_services"]["input"] == backend.url()
    assert "127.0.0.1:9" in body["backend_services"]["output"]
    assert body["redis"] == "disabled", "no route serves output"

    client, peer = lab.pair(gateway, backend)
    assert gateway.get("/health").json()["active_connections"] == 1
    client.vanish()
    peer.vanish()
    eventually(lambda: gateway.get("/health").json()["active_connections"] == 0, "it has left")


def test_health_is_degraded_while_a_backend_is_away(lab):
    """`degraded` when a backend's last attempt failed, and `ok` after the next one that succeeds."""
    port = closed_port()
    gateway = lab.gateway(backend=f"ws://127.0.0.1:{port}/ws/input")
    client = lab.client(gateway)
    client.upgrade()
    client.read_switch()
    assert client.read_close().code == 1011
    assert gateway.get("/health").json()["status"] == "degraded"
    assert gateway.get("/health").status == 200

    lab.pair(gateway, lab.backend(port=port))
    assert gateway.get("/health").json()["status"] == "ok"


def test_ready(lab):
    """`GET /ready`: 200 `{"status":"ready"}`; a relay needs no Redis for that."""
    reply = lab.gateway(backend="ws://127.0.0.1:9/").get("/ready")
    assert (reply.status, reply.json()) == (200, {"status": "ready"})


TASK = "7d2b1a52-93a2-4c44-9a94-6a2a4a6cf111"


@pytest.mark.parametrize("written", [TASK, TASK.upper(), TASK.replace("-", ""), "{" + TASK + "}", "urn:uuid:" + TASK])
def test_status_of_an_unknown_task(lab, written):
    """`GET /status/{task_id}`: 200 and `not_found`, with the id as the client wrote it."""
    reply = lab.gateway(backend="ws://127.0.0.1:9/").get(f"/status/{written}")
    assert reply.status == 200
    assert reply.json() == {"task_id": written, "status": "not_found", "connected": False}


@pytest.mark.parametrize("written", ["nonsense", "1", TASK + "0", TASK[:-1]])
def test_status_of_an_invalid_task_id_is_400(lab, written):
    """`GET /status/{task_id}`: 400 for an id that is no UUID."""
    reply = lab.gateway(backend="ws://127.0.0.1:9/").get(f"/status/{written}")
    assert reply.status == 400
    assert reply.json()["status"] == "error"


def test_connections_are_listed_live(lab):
    """`GET /connections`: id, route, state, client address, backend, task_id, opened (RFC 3339), idle seconds, and frames and
    bytes each way, all of them live."""
    backend = lab.backend()
    routes = [route(backend=backend.url()), route("output", "/ws/output/{task_id}", backend=backend.url("/o/{task_id}"))]
    gateway = lab.gateway({"route": routes})
    assert gateway.connections() == {"total_connections": 0, "connections": [], "details": []}

    started = datetime.datetime.now(datetime.timezone.utc)
    client, peer = lab.pair(gateway, backend)
    other, other_peer = lab.pair(gateway, backend, "/ws/output/task-7?token=hidden")
    sent = [client.say("hello"), client.frame(BINARY, bytes(1000)), client.frame(PING, b"p")]
    for _ in sent:
        peer.read_frame()
    answer = peer.say("welcome")
    client.read_frame()

    listed = gateway.connections()
    assert listed["total_connections"] == 2
    assert len(listed["connections"]) == len(listed["details"]) == 2
    details = {one["route"]: one for one in listed["details"]}
    one = details["input"]
    assert re.fullmatch(r"input_\d+", one["id"])
    assert one["id"] in listed["connections"]
    assert isinstance(one["state"], str) and one["state"]
    assert one["client"] == "127.0.0.1:%d" % client.sock.getsockname()[1]
    assert one["backend"] == backend.url()
    assert one["task_id"] is None
    opened = datetime.datetime.fromisoformat(one["opened"])
    assert abs((opened - started).total_seconds()) < 60
    assert 0 <= one["idle_seconds"] < 60
    assert one["from_client"] == {"frames": 3, "bytes": sum(map(len, sent))}
    assert one["to_client"] == {"frames": 1, "bytes": len(answer)}
    assert details["output"]["task_id"] == "task-7"
    assert re.fullmatch(r"output_\d+", details["output"]["id"])
    assert "hidden" not in str(listed)

    client.say("again")
    peer.read_frame()
    again = {one["route"]: one for one in gateway.connections()["details"]}
    assert again["input"]["from_client"]["frames"] == 4

    other.vanish()
    other_peer.vanish()
    eventually(lambda: gateway.connections()["connections"] == [one["id"]], "only one is left")


def test_frames_are_counted_however_they_are_cut(lab):
    """Frames are counted as they pass, whether they arrive byte by byte or many at once."""
    backend = lab.backend()
    gateway = lab.gateway(backend=backend.url())
    client, peer = lab.pair(gateway, backend)
    many = b"".join(frame(TEXT, f"{number}", mask=b"mask") for number in range(500))
    client.send(many)
    peer.read(len(many))
    drops = frame(BINARY, bytes(300), mask=b"mask") + frame(BINARY, bytes(70_000), mask=b"mask")[:20]
    client.send_bytewise(drops)
    peer.read(len(drops))
    counted = gateway.connections()["details"][0]["from_client"]
    assert counted["frames"] in (501, 502), "the last one has only begun"
    assert counted["bytes"] == len(many) + len(drops)


def test_metrics_are_prometheus_text_and_move(lab):
    """`GET /metrics`: the Prometheus text format, with counters that grow with what happens."""
    backend = lab.backend()
    gateway = lab.gateway(backend=backend.url())
    reply = gateway.get("/metrics")
    assert reply.status == 200
    assert reply.head["Content-Type"].startswith("text/plain; version=0.0.4")
    before = gateway.metrics()
    for name, kind in before.types.items():
        assert name.startswith(("aivtuber_gateway_", "process_")), name
        assert before.help.get(name), f"{name} has no HELP"
        assert (kind == "counter") == name.endswith("_total"), f"{name} is a {kind}"

    client, peer = lab.pair(gateway, backend)
    sent = client.say("one") + client.say("two")
    peer.read(len(sent))
    during = gateway.metrics()
    assert during.total("connections_accepted_total") > before.total("connections_accepted_total")
    assert during.total("websockets_open") == before.total("websockets_open") + 1
    assert during.total("websocket_upgrades_total") == before.total("websocket_upgrades_total") + 1
    assert during.total("_frames_total") == before.total("_frames_total") + 2
    assert during.total("frame_bytes_total") == before.total("frame_bytes_total") + len(sent)

    client.close_frame(1000)
    peer.read_close()
    peer.close_frame(1000)
    peer.half_close()
    client.read_close()
    client.vanish()
    eventually(lambda: gateway.metrics().total("websockets_open") == 0, "it has left")
    after = gateway.metrics()
    assert after.total("_frames_total") == during.total("_frames_total") + 2, "counters never run backwards"
    assert after.total("websocket_closes_total") == 1


def test_metrics_at_an_address_of_admin_listen(lab):
    """`admin_listen`: every client there is an admin, whatever `admin_from` says."""
    server = {"admin_listen": ["127.0.0.1:0"], "admin_from": ["192.0.2.1"]}
    gateway = lab.gateway({"server": server}, backend="ws://127.0.0.1:9/")
    assert gateway.get("/metrics").status == 403
    port = gateway.process.wait_for_line(r"listening address=127\.0\.0\.1:(\d+) for=admins").group(1)
    client = lab.adopt(connect(int(port)))
    assert client.get("/metrics").status == 200


def test_failed_dials_are_counted(lab):
    """`/metrics` shows what an operator needs to know when a backend is away."""
    gateway = lab.gateway(backend=f"ws://127.0.0.1:{closed_port()}/")
    client = lab.client(gateway)
    client.upgrade()
    client.read_switch()
    client.read_close()
    samples = gateway.metrics().samples
    failed = [value for (name, labels), value in samples.items() if "dials" in name and ("result", "failed") in labels]
    assert sum(failed) >= 1


JSON_ENDPOINTS = ["/health", "/ready", "/connections", "/nope"]


@pytest.mark.parametrize("target", JSON_ENDPOINTS)
def test_cors_for_allowed_origins_only(lab, target):
    """JSON endpoints have CORS headers for `allowed_origins`, and none while that is empty."""
    backend = "ws://127.0.0.1:9/"
    gateway = lab.gateway({"server": {"allowed_origins": ["https://app.example", "*.vtuber.example"]}}, backend=backend)
    for origin in ("https://app.example", "https://a.vtuber.example"):
        head = gateway.get(target, headers=[("Origin", origin)]).head
        assert head["Access-Control-Allow-Origin"] == origin
        assert "origin" in head.tokens("Vary")
    for headers in ([("Origin", "https://other.example")], []):
        assert "Access-Control-Allow-Origin" not in gateway.get(target, headers=headers).head

    # Without a list, any page may read what is for everyone, as any page may open a WebSocket.
    anyone = lab.gateway(backend=backend)
    head = anyone.get(target, headers=[("Origin", "https://app.example")]).head
    if target in ("/health", "/ready"):
        assert head["Access-Control-Allow-Origin"] == "*"
    else:
        assert "Access-Control-Allow-Origin" not in head
