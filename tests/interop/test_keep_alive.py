"""Keep-alive pings, idle connections and message limits (`[proxy]`; docs/protocol.md section 1 and 4).

Intervals are short here, and what they lead to is waited for: no test asserts how long anything took.
"""

import time

import pytest

from gatewaylab import SOON
from gatewaylab.wire import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, eventually, frame

PINGING = {"proxy": {"ping_interval": "150ms", "ping_timeout": "15s"}}
DYING = {"proxy": {"ping_interval": "150ms", "ping_timeout": "400ms"}}

OWN_CODES = {1000, 1001, 1008, 1009, 1011, 1012, 1013}


@pytest.mark.parametrize("upwards", [True, False], ids=["client", "backend"])
def test_silent_side_is_pinged_and_its_pong_is_not_relayed(way, lab, upwards):
    """`ping_interval`: a side that was silent for this long is pinged; its answer is not relayed."""
    backend = lab.backend()
    client, peer = lab.pair(way.to(backend, config=PINGING), backend)
    one, other = (client, peer) if upwards else (peer, client)

    for number in range(3):
        ping = one.read_frame()
        assert ping.opcode == PING
        assert (ping.mask is None) == (one is client), "masked to the backend, not to the client"
        one.frame(PONG, ping.payload)
        sent = one.say(f"right behind pong {number}")
        while (got := other.read_frame()).opcode == PING:
            other.frame(PONG, got.payload)
        assert got.raw == sent, f"the answer to the gateway's ping was relayed: {got}"


def test_pings_and_pongs_of_both_ends_are_still_relayed(way, lab):
    """Pings and pongs of the two ends pass unchanged while pings of the gateway are under way."""
    backend = lab.backend()
    client, peer = lab.pair(way.to(backend, config=PINGING), backend)

    ours = client.read_frame()
    assert ours.opcode == PING
    client.frame(PING, b"from the client")
    client.frame(PONG, b"nobody asked")
    client.frame(PONG, ours.payload)

    while (got := peer.read_frame()).payload != b"from the client":
        assert got.opcode == PING, f"only pings may come before: {got}"
    got = peer.read_message_frame()
    assert (got.opcode, got.payload) == (PONG, b"nobody asked")
    peer.frame(PONG, b"from the client")
    got = client.read_message_frame()
    assert (got.opcode, got.payload) == (PONG, b"from the client")


def test_gateway_ping_waits_for_a_frame_boundary(way, lab):
    """`ping_interval`: a ping to the client is due while a frame to it is unfinished. The ping waits, for no frame goes inside
    another."""
    backend = lab.backend()
    client, peer = lab.pair(way.to(backend, config=PINGING), backend)
    whole = frame(BINARY, b"a frame that takes its time" * 4)
    # The client has been silent since the upgrade, the backend only since it stopped in this frame: each ping that the
    # backend gets says that the client's is overdue.
    peer.send(whole[:10])
    at = 10
    for _ in range(3):
        assert peer.read_frame().opcode == PING
        peer.send(whole[at : at + 10])
        at += 10
    peer.send(whole[at:])
    assert client.read(len(whole)) == whole
    assert client.read_frame().opcode == PING


def test_ping_may_come_between_fragments(way, lab):
    """`ping_interval`: between two fragments is a frame boundary, so a silent client is pinged there."""
    backend = lab.backend()
    client, peer = lab.pair(way.to(backend, config=PINGING), backend)
    peer.frame(TEXT, "first ", fin=False)
    assert client.read_frame().text == "first "
    assert client.read_frame().opcode == PING
    peer.frame(CONTINUATION, "second")
    assert client.read_message_frame().text == "second"


def test_dead_client_is_closed(way, lab):
    """`ping_timeout`: no byte since the ping, so the client is gone, and the backend gets 1001."""
    backend = lab.backend()
    client, peer = lab.pair(way.to(backend, config=DYING), backend)
    while (got := peer.read_frame()).opcode == PING:
        peer.frame(PONG, got.payload)
    assert (got.opcode, got.code) == (CLOSE, 1001)
    peer.half_close()
    peer.expect_end()
    client.read_to_end()


def test_dead_backend_is_closed(way, lab):
    """`ping_timeout`: the backend is gone, and the client gets 1011."""
    backend = lab.backend()
    client, peer = lab.pair(way.to(backend, config=DYING), backend)
    while (got := client.read_frame()).opcode == PING:
        client.frame(PONG, got.payload)
    assert (got.opcode, got.code, got.reason) == (CLOSE, 1011, "backend connection lost")
    client.half_close()
    client.expect_end()


def test_data_without_pongs_keeps_a_side_alive(way, lab):
    """`ping_timeout`: a client that sends data but no pongs is alive."""
    backend = lab.backend()
    config = {"proxy": {"ping_interval": "150ms", "ping_timeout": "1s"}}
    client, peer = lab.pair(way.to(backend, config=config), backend)
    # Each ping comes after 150 ms of silence: the tenth is well past the time-out of the first.
    for number in range(10):
        assert client.read_frame().opcode == PING
        client.say(f"busy {number}")
        while (got := peer.read_frame()).opcode == PING:
            peer.frame(PONG, got.payload)
        assert got.text == f"busy {number}"


def test_pong_keeps_a_side_alive(way, lab):
    """`ping_timeout`: two ends that only answer pings stay connected."""
    backend = lab.backend()
    config = {"proxy": {"ping_interval": "150ms", "ping_timeout": "1s"}}
    client, peer = lab.pair(way.to(backend, config=config), backend)
    for _ in range(10):
        for one in (client, peer):
            ping = one.read_frame()
            assert ping.opcode == PING
            one.frame(PONG, ping.payload)
    client.say("still here")
    assert peer.read_message_frame().text == "still here"


def test_pings_can_be_switched_off(lab):
    """`"0s"` switches pings off: none comes while another gateway, with pings, sends several."""
    backend, pinged = lab.backend(), lab.backend()
    quiet = lab.gateway({"proxy": {"ping_interval": "0s"}}, backend=backend.url())
    client, peer = lab.pair(quiet, backend)
    measure, _ = lab.pair(lab.gateway(PINGING, backend=pinged.url()), pinged)
    for _ in range(4):
        ping = measure.read_frame()
        measure.frame(PONG, ping.payload)
    client.say("first")
    peer.say("first")
    assert peer.read_frame().text == "first"
    assert client.read_frame().text == "first"


def test_idle_connection_is_closed_despite_pings(lab):
    """`idle_timeout`: no message in either direction (pings and pongs do not count): both ends get a Close frame."""
    backend = lab.backend()
    config = {"proxy": {"idle_timeout": "500ms", "ping_interval": "100ms"}}
    client, peer = lab.pair(lab.gateway(config, backend=backend.url()), backend)
    closed = {}
    for one in (client, peer):
        while (got := one.read_frame()).opcode != CLOSE:
            assert got.opcode == PING
            try:
                one.frame(PONG, got.payload)
                one.frame(PING, b"me too")
            except OSError:
                pass  # It was closed meanwhile; the Close is still to be read.
        closed[one] = got.code
    assert set(closed.values()) <= OWN_CODES


def test_messages_keep_a_connection_from_being_idle(lab):
    """`idle_timeout`: each message restarts the wait, so the connection outlives several timeouts."""
    backend = lab.backend()
    config = {"proxy": {"idle_timeout": "1s", "ping_interval": "150ms"}}
    client, peer = lab.pair(lab.gateway(config, backend=backend.url()), backend)
    until = time.monotonic() + 2.5
    number = 0
    while time.monotonic() < until:
        ping = client.read_frame()
        assert ping.opcode == PING
        client.frame(PONG, ping.payload)
        peer.say(f"{number}")
        assert client.read_message_frame().text == f"{number}"
        number += 1


LIMIT = {"proxy": {"max_message": "1KiB"}}


@pytest.mark.parametrize("upwards", [True, False], ids=["up", "down"])
def test_message_at_the_limit_passes_and_one_byte_more_is_1009(lab, upwards):
    """`max_message`: a larger message ends the connection with 1009 to its sender."""
    backend = lab.backend()
    ends = lab.pair(lab.gateway(LIMIT, backend=backend.url()), backend)
    one, other = ends if upwards else reversed(ends)
    sent = one.frame(BINARY, bytes(1024))
    assert other.read_frame().raw == sent
    one.frame(BINARY, bytes(1025))
    assert one.read_close().code == 1009
    assert other.read_close().code in OWN_CODES


def test_fragments_add_up_to_the_limit(lab):
    """`max_message`: all fragments of a message count together; control frames between them do not, and the next message starts
    at 0."""
    backend = lab.backend()
    client, peer = lab.pair(lab.gateway(LIMIT, backend=backend.url()), backend)
    for _ in range(3):
        sent = [
            client.frame(BINARY, bytes(600), fin=False),
            client.frame(PING, bytes(125)),
            client.frame(CONTINUATION, bytes(424)),
        ]
        assert [peer.read_frame().raw for _ in sent] == sent
    sent = client.frame(BINARY, bytes(600), fin=False)
    assert peer.read_frame().raw == sent
    client.frame(CONTINUATION, bytes(425))
    assert client.read_close().code == 1009
    assert peer.read_close().code in OWN_CODES


def test_announced_length_over_the_limit_is_refused_at_once(lab):
    """`max_message`: the frame's head gives its length, so the gateway does not wait for 2 GiB to arrive."""
    backend = lab.backend()
    client, peer = lab.pair(lab.gateway(LIMIT, backend=backend.url()), backend)
    client.send(frame(BINARY, b"", mask=b"mask")[:1] + b"\xff" + (2 << 30).to_bytes(8, "big") + b"mask" + b"begin")
    assert client.read_close().code == 1009
    assert peer.read_close().code in OWN_CODES


def test_missing_answer_to_a_close_does_not_hold_the_connection(lab):
    """After a Close frame of its own, the gateway waits only briefly for the answer."""
    backend = lab.backend()
    gateway = lab.gateway(LIMIT, backend=backend.url())
    client, peer = lab.pair(gateway, backend)
    client.frame(BINARY, bytes(2000))
    assert client.read_close().code == 1009
    eventually(lambda: gateway.connections()["total_connections"] == 0, "the session is gone while the client holds on")
    client.read_to_end(SOON)
