"""Endings that must arrive: slow readers, peers that never read, and a gateway that did not run for a while (docs/protocol.md
section 2; `write_timeout`)."""

import signal
import threading
import time

import pytest

from gatewaylab.peers import pattern
from gatewaylab.results import is_waiting, new_task, status
from gatewaylab.wire import BINARY, CLOSE, PING, TEXT, eventually, frame

MIB = 1 << 20

# Audio that the kernel takes at once for a client that reads nothing, and more than that client's
# receive buffer holds.
KERNEL_TAKES = 14 * 1024


def trickle(client, rate, chatter):
    """Reads to the end at `rate` bytes a second, and sends something now and then. Returns what came."""
    received = bytearray()
    while True:
        if chatter:
            try:
                client.say("still here")
            except OSError:
                pass  # the other end is gone; what it sent can still be read
        data = client.sock.recv(rate // 10)
        if not data:
            return bytes(received)
        received += data
        time.sleep(0.1)


@pytest.mark.timeout(120)
def test_slow_reader_that_talks_gets_the_whole_delivery(results):
    """A client reads at 240 KB/s at most and sends something after the Close frame: an RST would destroy what it has not read."""
    gateway, inbox = results.embedded()
    audio = pattern(2 * MIB)
    results.write("long.wav", audio)
    task = new_task()
    waiter = results.wait(gateway, task, receive_buffer=64 * 1024)
    inbox.publish(task, text="long", audio_file="long.wav")
    stream = trickle(waiter, 240_000, chatter=True)
    assert stream.endswith(frame(CLOSE, b"\x03\xe8done")), f"{len(stream)} bytes, without the Close frame"
    assert len(stream) > len(audio)
    waiter.sock.close()
    gateway.process.wait_for_line(f"closed reason=delivered code=1000 .*{task}")
    assert status(gateway, task)["status"] == "completed"


def test_delivery_that_is_not_read_is_not_logged_as_delivered(results):
    """The last bytes are in the kernel, and the client resets the connection before it has read them."""
    gateway, inbox = results.embedded()
    results.write("short.wav", pattern(KERNEL_TAKES))
    task = new_task()
    waiter = results.wait(gateway, task, receive_buffer=4 * 1024)
    inbox.publish(task, text="short", audio_file="short.wav")
    eventually(lambda: gateway.connections()["details"][0]["state"] == "closing", "everything is written")
    waiter.reset()
    gateway.process.wait_for_line(f"closed reason=client_vanished code=none .*{task}")
    assert status(gateway, task)["status"] != "completed"


def test_reset_behind_a_fin_ends_the_session_at_once(results):
    """A client that does not read sends FIN and then RST: once a FIN was read, the kernel reports no error to reads."""
    gateway, inbox = results.embedded()
    results.write("short.wav", pattern(KERNEL_TAKES))
    task = new_task()
    waiter = results.wait(gateway, task, receive_buffer=4 * 1024)
    inbox.publish(task, text="short", audio_file="short.wav")
    eventually(lambda: gateway.connections()["details"][0]["state"] == "closing", "everything is written")
    waiter.half_close()
    waiter.reset()
    gateway.process.wait_for_line(f"closed reason=client_vanished code=none .*{task}")
    assert status(gateway, task)["status"] != "completed"


def test_client_that_ignores_the_close_and_streams_on_is_ended(results):
    """`write_timeout` ends a client that has everything, never closes, and keeps sending."""
    gateway, inbox = results.embedded(config={"server": {"write_timeout": "1s"}})
    task = new_task()
    waiter = results.wait(gateway, task)
    inbox.publish(task, text="done")
    assert waiter.message()["content"] == "done"
    assert waiter.read_message_frame().code == 1000
    with pytest.raises(OSError):
        while True:
            waiter.say("on and on")
            time.sleep(0.05)
    gateway.process.wait_for_line(f"closed reason=client_stalled code=none .*{task}")


@pytest.mark.parametrize("upwards", [True, False], ids=["backend", "client"])
def test_side_that_reads_nothing_is_ended_though_it_talks(lab, upwards):
    """`write_timeout` also ends a side that sends something now and then but takes nothing."""
    backend = lab.backend()
    gateway = lab.gateway({"server": {"write_timeout": "1s"}}, backend=backend.url())
    client, peer = lab.pair(gateway, backend)
    sender, reader = (client, peer) if upwards else (peer, client)
    whole = frame(BINARY, bytes(MIB), mask=b"\x01\x02\x03\x04" if upwards else None)

    def flood():
        try:
            while True:
                sender.sock.sendall(whole)
        except OSError:
            pass

    threading.Thread(target=flood, daemon=True).start()
    word = "backend_stalled" if upwards else "client_stalled"
    deadline = time.monotonic() + 30
    while word not in gateway.log:
        assert time.monotonic() < deadline, gateway.log
        try:
            reader.say("I talk and do not read")
        except OSError:
            pass
        time.sleep(0.1)


def test_standstill_longer_than_ping_timeout_closes_nobody(lab):
    """After SIGSTOP and SIGCONT, pongs and messages that waited in the sockets are read before any deadline is judged."""
    backend = lab.backend()
    gateway = lab.gateway({"proxy": {"ping_interval": "1s", "ping_timeout": "4s"}}, backend=backend.url())
    pairs = [lab.pair(gateway, backend) for _ in range(20)]
    for client, peer in pairs:
        for one in (client, peer):
            ping = one.read_frame()
            assert ping.opcode == PING
            one.ping = ping.payload
    gateway.signal(signal.SIGSTOP)
    try:
        for client, peer in pairs:
            client.frame(0xA, client.ping)
            peer.frame(0xA, peer.ping)
        time.sleep(7)
    finally:
        gateway.signal(signal.SIGCONT)
    for number, (client, peer) in enumerate(pairs):
        client.say(f"still here {number}")
        while (got := peer.read_frame()).opcode == PING:
            peer.frame(0xA, got.payload)
        assert (got.opcode, got.text) == (TEXT, f"still here {number}")
    gateway.process.wait_for_line("every deadline moves")
    assert "_silent" not in gateway.log


def test_result_published_in_time_is_delivered_after_a_standstill(results):
    """A result that waited in the socket of Redis while the gateway was stopped is not late."""
    server = results.redis()
    gateway = results.gateway(server, output={"timeout": "2s"})
    task = new_task()
    waiter = results.wait(gateway, task)
    is_waiting(gateway, task)
    gateway.signal(signal.SIGSTOP)
    try:
        server.publish(task, text="in time")
        time.sleep(4)
    finally:
        gateway.signal(signal.SIGCONT)
    assert waiter.message()["content"] == "in time"
    waiter.done()
