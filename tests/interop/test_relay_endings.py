"""How relays end (docs/protocol.md section 1): a Close with its code and reason, an end that vanishes, and what the other end
gets."""

import pytest

from gatewaylab import SOON
from gatewaylab.gateway import route
from gatewaylab.wire import BINARY, CLOSE, CONTINUATION, TEXT, close_payload, eventually, frame, read_frames

transparent = pytest.mark.transparent

CODES = [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4999]

LOST = (1011, "backend connection lost")


@transparent
@pytest.mark.parametrize("code", CODES)
def test_close_and_its_answer_are_relayed_with_code_and_reason(way, lab, code):
    """A close by either end reaches the other with its code and reason, and the answering Close comes back."""
    backend = lab.backend()
    gateway = way.to(backend)
    for client_first in (True, False):
        ends = lab.pair(gateway, backend)
        one, other = ends if client_first else reversed(ends)
        sent = one.close_frame(code, "grund: ö")
        got = other.read_close()
        assert got.raw == sent
        answer = other.close_frame(code, "")
        assert one.read_close().raw == answer
        one.half_close()
        other.half_close()
        one.expect_end(SOON)
        other.expect_end(SOON)


@transparent
def test_close_without_a_code_is_relayed_without_one(way, lab):
    """Codes 1005, 1006 and 1015 are never sent: an empty Close frame stays empty."""
    backend = lab.backend()
    gateway = way.to(backend)
    for client_first in (True, False):
        ends = lab.pair(gateway, backend)
        one, other = ends if client_first else reversed(ends)
        sent = one.close_frame()
        got = other.read_close()
        assert (got.raw, got.code) == (sent, None)


@transparent
def test_longest_close_reason_is_relayed(way, lab):
    """A close reason of 123 bytes, the longest that the protocol allows."""
    backend = lab.backend()
    client, peer = lab.pair(way.to(backend), backend)
    peer.close_frame(4000, "r" * 123)
    assert client.read_close().reason == "r" * 123


@transparent
def test_what_was_sent_before_a_close_still_arrives(way, lab):
    """A megabyte, a Close and FIN arrive in this order."""
    backend = lab.backend()
    client, peer = lab.pair(way.to(backend), backend)
    sent = frame(BINARY, bytes(1 << 20)) + frame(CLOSE, close_payload(1000, "done"))
    peer.send(sent)
    peer.half_close()
    assert client.read_to_end() == sent


@transparent
def test_data_still_arrives_after_a_close_and_fin_the_other_way(way, lab):
    """A Close and FIN in one direction leave the other open: what the backend still sends arrives."""
    backend = lab.backend()
    client, peer = lab.pair(way.to(backend), backend)
    client.close_frame(1000, "I only listen now")
    client.half_close()
    assert peer.read_close().code == 1000
    peer.expect_end(SOON)
    sent = frame(BINARY, bytes(300_000)) + frame(TEXT, "last words") + frame(CLOSE, close_payload(1000))
    peer.send(sent)
    peer.half_close()
    assert client.read_to_end() == sent


@transparent
def test_fin_follows_a_close_at_once(way, lab):
    """A side that was passed a Close frame gets nothing more, but FIN, and that without delay."""
    backend = lab.backend()
    gateway = way.to(backend)
    for client_first in (True, False):
        ends = lab.pair(gateway, backend)
        one, other = ends if client_first else reversed(ends)
        one.close_frame(4002, "and gone")
        one.vanish()
        assert other.read_close().code == 4002
        other.expect_end(SOON)


def test_client_that_vanishes_is_reported_to_the_backend(way, lab):
    """The client vanished (FIN): the backend gets 1001."""
    backend = lab.backend()
    client, peer = lab.pair(way.to(backend), backend)
    client.say("last")
    client.vanish()
    assert peer.read_frame().text == "last"
    closed = peer.read_close()
    assert closed.code == 1001
    assert closed.mask is not None, "frames to a backend are masked"
    peer.expect_end(SOON)


def test_client_that_resets_is_reported_to_the_backend(way, lab):
    """The client vanished (RST): the backend gets 1001."""
    backend = lab.backend()
    client, peer = lab.pair(way.to(backend), backend)
    client.reset()
    assert peer.read_close().code == 1001
    peer.expect_end(SOON)


def test_backend_that_vanishes_is_reported_to_the_client(way, lab):
    """The backend vanished (FIN): the client gets 1011, `backend connection lost`."""
    backend = lab.backend()
    client, peer = lab.pair(way.to(backend), backend)
    peer.say("last")
    peer.vanish()
    assert client.read_frame().text == "last"
    closed = client.read_close()
    assert (closed.code, closed.reason) == LOST
    assert closed.mask is None, "frames to a client are not masked"
    client.expect_end(SOON)


def test_backend_that_resets_is_reported_to_the_client(way, lab):
    """The backend vanished (RST): the client gets 1011, `backend connection lost`."""
    backend = lab.backend()
    client, peer = lab.pair(way.to(backend), backend)
    client.say("hello?")
    assert peer.read_frame().text == "hello?"
    peer.reset()
    closed = client.read_close()
    assert (closed.code, closed.reason) == LOST
    client.expect_end(SOON)


def test_end_that_vanishes_between_fragments_is_at_a_frame_boundary(way, lab):
    """The other end gets its Close at a frame boundary: inside a message, if need be, but never inside a frame."""
    backend = lab.backend()
    client, peer = lab.pair(way.to(backend), backend)
    peer.frame(TEXT, "the beginning of", fin=False)
    peer.vanish()
    assert client.read_frame().fin is False
    closed = client.read_close()
    assert (closed.code, closed.reason) == LOST


@pytest.mark.parametrize("left_out", [1, 500])
@pytest.mark.parametrize("rude", [False, True], ids=["fin", "rst"])
def test_backend_lost_inside_a_frame_ends_the_connection_without_a_close(way, lab, left_out, rude):
    """A backend that vanishes in the middle of a frame: the client's TCP connection just ends, with nothing inside the frame."""
    backend = lab.backend()
    client, peer = lab.pair(way.to(backend), backend)
    part = frame(BINARY, bytes(1000))[:-left_out]
    peer.send(part)
    assert client.read(len(part)) == part
    peer.reset() if rude else peer.vanish()
    client.expect_gone()


@pytest.mark.parametrize("left_out", [1, 500])
@pytest.mark.parametrize("rude", [False, True], ids=["fin", "rst"])
def test_client_lost_inside_a_frame_ends_the_connection_without_a_close(way, lab, left_out, rude):
    """A client that vanishes in the middle of a frame: the backend's TCP connection just ends."""
    backend = lab.backend()
    client, peer = lab.pair(way.to(backend), backend)
    part = frame(BINARY, bytes(1000), mask=b"mask")[:-left_out]
    client.send(part)
    assert peer.read(len(part)) == part
    client.reset() if rude else client.vanish()
    peer.expect_gone()


@pytest.mark.parametrize("length", [1, 2, 3])
def test_nothing_follows_a_partial_frame_head(way, lab, length):
    """The source vanishes inside a frame head. Either that piece was kept back, so the Close comes at a boundary, or it was
    passed on, and then nothing follows it."""
    backend = lab.backend()
    client, peer = lab.pair(way.to(backend), backend)
    piece = frame(BINARY, bytes(1000))[:length]
    peer.send(piece)
    peer.vanish()
    frames, rest = read_frames(client.read_to_end())
    if rest:
        assert (frames, rest) == ([], piece)
    else:
        assert [(one.opcode, one.code, one.reason) for one in frames] == [(CLOSE, *LOST)]


def test_open_frame_of_the_backend_is_finished_after_the_client_is_lost(way, lab):
    """The client vanishes while the backend is inside a frame: each direction has its own boundaries."""
    backend = lab.backend()
    client, peer = lab.pair(way.to(backend), backend)
    half = frame(BINARY, bytes(1000))[:500]
    peer.send(half)
    assert client.read(500) == half
    client.vanish()
    assert peer.read_close().code == 1001


def test_client_that_leaves_before_the_101_ends_the_dial(way, lab):
    """A client that vanishes before the 101 leaves nothing behind: the connection to the backend ends."""
    backend = lab.backend()
    client = lab.client(way.to(backend))
    client.upgrade()
    peer = backend.accept()
    peer.read_upgrade()
    client.vanish()
    peer.expect_gone()


@pytest.mark.parametrize("library", ["websockets", "ws"])
def test_killed_backend_under_traffic(way, lab, library, shared_backends):
    """A backend is killed (SIGKILL) under traffic: each of its clients gets 1011 at a frame boundary, and others notice
    nothing."""
    doomed = lab.library_backend(library)
    well = shared_backends(library)
    gateway = two_routes(way, doomed, well)

    def join(target):
        client = lab.client(gateway)
        client.upgrade(target)
        client.read_switch()
        client.say("hello")
        assert client.read_frame().text == "hello"
        return client

    victims = [join("/ws/doomed") for _ in range(10)]
    others = [join("/ws/well") for _ in range(5)]
    for number in range(20):
        for client in [*victims, *others]:
            client.frame(BINARY, bytes(1000 + number))
    doomed.process.kill()

    for client in victims:
        echoes = 0
        while (got := client.read_frame()).opcode == BINARY:
            assert got.payload == bytes(1000 + echoes)
            echoes += 1
        assert (got.opcode, got.code, got.reason) == (CLOSE, *LOST)
        client.half_close()
        client.expect_end()
    for client in others:
        for number in range(20):
            assert client.read_frame().payload == bytes(1000 + number)
        client.say("still here")
        assert client.read_frame().text == "still here"


def two_routes(way, doomed, well):
    urls = {"doomed": doomed.url("/ws/doomed"), "well": well.url("/ws/well")}
    for _ in range(way.hops):
        routes = [route(name, f"/ws/{name}", backend=url) for name, url in urls.items()]
        gateway = way.lab.gateway({"route": routes})
        urls = {name: f"ws://127.0.0.1:{gateway.port}/ws/{name}" for name in urls}
    return gateway


def test_many_ended_connections_leave_nothing(way, lab):
    """200 connections that end in four different ways leave no session and no descriptor behind."""
    backend = lab.backend(backlog=512)
    gateway = way.to(backend)
    gateway.get("/health")
    before = gateway.descriptors()
    pairs = [lab.pair(gateway, backend) for _ in range(200)]
    assert gateway.connections()["total_connections"] == 200
    for number, (client, peer) in enumerate(pairs):
        if number % 4 == 0:
            client.close_frame(1000)
        elif number % 4 == 1:
            client.vanish()
        elif number % 4 == 2:
            peer.reset()
        else:
            peer.send(frame(CONTINUATION, bytes(100))[:50])
        client.vanish()
        peer.vanish()
    eventually(lambda: gateway.connections()["total_connections"] == 0, "all are gone")
    eventually(lambda: gateway.descriptors() <= before, "no descriptor is left")
