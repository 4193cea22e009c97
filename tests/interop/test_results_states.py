"""What the gateway says about tasks and results (docs/protocol.md section 3), and how it stops: `/status` in every state,
`/health`, `/ready`, `/connections`, drain with waiting and with sending clients."""

import signal

import pytest

from gatewaylab.peers import pattern
from gatewaylab.results import is_waiting, new_task, status
from gatewaylab.wire import closed_port, eventually


@pytest.fixture
def server(results):
    return results.redis()


def is_(gateway, task, state, connected):
    expected = {"task_id": task, "status": state, "connected": connected}
    eventually(lambda: status(gateway, task) == expected, f"its status is {state}")


def test_status_in_every_state(results, server):
    """`/status` in each state, at its time: `not_found`, `connected`, `waiting`, `sending`, `completed`, `ready`, `failed`,
    `timeout`."""
    results.write("large", bytes(8_000_000))
    gateway = results.gateway(server, output={"timeout": "1s"})
    task = new_task()
    is_(gateway, task, "not_found", False)
    late = results.wait(gateway, task)
    is_(gateway, task, "waiting", True)
    late.refused("Processing timeout", 4008, "processing timeout", task_id=task)
    is_(gateway, task, "timeout", False)
    server.publish(task, text="t", audio_file="large")
    is_(gateway, task, "ready", False)
    reader = results.wait(gateway, task, receive_buffer=16 * 1024)
    is_(gateway, task, "sending", True)
    assert reader.message()["audio_present"]
    while reader.message()["type"] == "audio_chunk":
        reader.read_frame()
    reader.done()
    is_(gateway, task, "completed", False)
    failed = new_task()
    server.publish(failed, error="no voice")
    results.wait(gateway, failed).refused("no voice", 1000, "done", task_id=failed)
    is_(gateway, failed, "failed", False)
    other = new_task()
    server.kill()
    eventually(lambda: gateway.get("/ready").status == 503, "Redis is away")
    waiter = results.wait(gateway, other)
    is_(gateway, other, "connected", True)
    server.start()
    is_(gateway, other, "waiting", True)
    waiter.reset()
    is_(gateway, other, "not_found", False)


def test_client_that_left_in_the_middle_may_come_again(results, server):
    """`ready`: a result is kept and no client is there, also after a client left with half of it."""
    results.write("large", bytes(8_000_000))
    gateway = results.gateway(server)
    task = new_task()
    server.publish(task, text="t", audio_file="large")
    reader = results.wait(gateway, task, receive_buffer=16 * 1024)
    assert reader.message()["audio_present"]
    is_(gateway, task, "sending", True)
    reader.reset()
    is_(gateway, task, "ready", False)


def test_text_that_is_under_way_is_sending(results, server):
    """`sending` lasts until the last byte has left, of a text or of a file, and `/connections` agrees."""
    gateway = results.gateway(server)
    task = new_task()
    waiter = results.wait(gateway, task, receive_buffer=16 * 1024)
    server.publish(task, text="x" * 8_000_000, final=False)
    is_(gateway, task, "sending", True)
    assert gateway.connections()["details"][0]["state"] == "sending"
    assert len(waiter.result().content) == 8_000_000
    is_(gateway, task, "waiting", True)
    assert gateway.connections()["details"][0]["state"] == "waiting"


def test_status_over_several_clients(results, server):
    """A client that is being sent a result counts before those that wait; the last client's end is the task's."""
    results.write("large", bytes(8_000_000))
    gateway = results.gateway(server)
    task = new_task()
    quick, slow = results.wait(gateway, task), results.wait(gateway, task, receive_buffer=16 * 1024)
    server.publish(task, text="t", audio_file="large")
    quick.result()
    quick.done()
    is_(gateway, task, "sending", True)
    slow.result()
    slow.done()
    is_(gateway, task, "completed", False)


def test_end_of_a_task_is_known_for_retain(results, server):
    """States of tasks are kept for `retain` after their end."""
    gateway = results.gateway(server, output={"retain": "1s"})
    task = new_task()
    waiter = results.wait(gateway, task)
    is_waiting(gateway, task)
    server.publish(task, text="t")
    waiter.result()
    waiter.done()
    is_(gateway, task, "completed", False)
    is_(gateway, task, "not_found", False)


@pytest.mark.parametrize("method", ["HEAD", "POST"])
def test_status_by_other_methods(results, server, method):
    """`HEAD` works wherever `GET` does; other methods are 405."""
    gateway = results.gateway(server)
    reply = gateway.get(f"/status/{new_task()}", method=method)
    assert reply.status == {"HEAD": 200, "POST": 405}[method]


def test_health_and_ready(results, server):
    """`redis` is `connected` or `disconnected`; without a Redis that is wanted, `/health` is `degraded` and `/ready` is 503."""
    gateway = results.gateway(server)
    health = gateway.get("/health").json()
    assert (health["status"], health["redis"]) == ("ok", "connected")
    assert (gateway.get("/ready").status, gateway.get("/ready").json()) == (200, {"status": "ready"})
    assert "output" in health["backend_services"]
    server.kill()
    eventually(lambda: gateway.get("/ready").status == 503, "Redis is away")
    health = gateway.get("/health")
    assert health.status == 200
    assert (health.json()["status"], health.json()["redis"]) == ("degraded", "disconnected")


def test_gateway_that_only_relays_wants_no_redis(lab, server):
    """Redis is connected to only if a route serves output; otherwise `/health` says `disabled`."""
    gateway = lab.gateway({"redis": {"url": server.url}}, backend="ws://127.0.0.1:9/")
    assert gateway.get("/health").json()["redis"] == "disabled"
    assert gateway.get("/ready").status == 200
    assert server.gateways() == []


def test_connections_tell_of_waiting_clients(results, server):
    """`/connections`: `waiting`, then `sending`, with live counts of frames and bytes."""
    results.write("large", bytes(8_000_000))
    gateway = results.gateway(server)
    task = new_task()
    waiter = results.wait(gateway, task, receive_buffer=16 * 1024)
    (before,) = gateway.connections()["details"]
    assert (before["state"], before["task_id"], before["route"]) == ("waiting", task, "output")
    assert gateway.connections()["connections"] == [before["id"]]
    server.publish(task, text="t", audio_file="large")
    is_(gateway, task, "sending", True)
    (during,) = gateway.connections()["details"]
    assert during["state"] == "sending"
    assert 0 < during["to_client"]["bytes"] < 8_000_000
    waiter.result()
    waiter.done()
    eventually(lambda: gateway.connections()["total_connections"] == 0, "it has left")
    metrics = gateway.metrics()
    frames = [value for (name, labels), value in metrics.samples.items() if "frame_bytes" in name and ("direction", "to_client") in labels]
    assert not frames or sum(frames) > 8_000_000
    assert metrics.total("audio_bytes") == 8_000_000


def test_story_in_the_log(results, server):
    """`info` logs that Redis was lost and came back, and each delivery, with the connection's id in each line, and never a text
    or a password."""
    gateway = results.gateway(server, config={"log": {"level": "debug"}})
    results.write("a", b"x" * 100)
    task = new_task()
    waiter = results.wait(gateway, task)
    server.publish(task, text="very private", audio_file="a")
    waiter.result()
    waiter.done()
    server.restart()
    gateway.process.wait_for_line(r"WARN  redis .*lost")
    gateway.process.wait_for_line(r"INFO  output output_\d+ opened .*" + task)
    gateway.process.wait_for_line(r"INFO  output output_\d+ delivers .*audio=100B")
    gateway.process.wait_for_line(r"INFO  output output_\d+ closed reason=delivered code=1000 .*" + task)
    assert "very private" not in gateway.log


# ---- stopping


def test_waiting_client_is_closed_at_a_stop(results, server):
    """Drain: waiting clients are closed with 1012, and come back to the next gateway."""
    gateway = results.gateway(server)
    task = new_task()
    waiter = results.wait(gateway, task)
    is_waiting(gateway, task)
    gateway.may_end = True
    gateway.signal(signal.SIGTERM)
    waiter.done(1012, "gateway restarting")
    assert gateway.process.wait() == 0
    following = results.gateway(server)
    server.publish(task, text="after the restart")
    waiter = results.wait(following, task)
    assert waiter.result().content == "after the restart"
    waiter.done()


@pytest.mark.parametrize("final", [True, False], ids=["final", "more would follow"])
def test_delivery_is_finished(results, server, final):
    """Drain: deliveries finish with the whole file, then 1000, or 1012 if more results would have come."""
    data = pattern(8_000_000)
    results.write("large", data)
    gateway = results.gateway(server)
    task = new_task()
    server.publish(task, text="t", audio_file="large", final=final)
    waiter = results.wait(gateway, task, receive_buffer=16 * 1024)
    assert waiter.message()["audio_present"]
    is_(gateway, task, "sending", True)
    gateway.may_end = True
    gateway.signal(signal.SIGTERM)
    gateway.process.wait_for_line(r"\bdraining\b")
    audio = b""
    while waiter.message()["type"] == "audio_chunk":
        audio += waiter.read_frame().payload
    assert audio == data
    waiter.done(*((1000, "done") if final else (1012, "gateway restarting")))
    assert gateway.process.wait() == 0


def test_slow_client_does_not_hold_a_stop_for_ever(results, server):
    """Drain takes at most `drain_timeout`."""
    results.write("large", bytes(50_000_000))
    gateway = results.gateway(server, config={"server": {"drain_timeout": "500ms"}})
    task = new_task()
    server.publish(task, text="t", audio_file="large")
    results.wait(gateway, task, receive_buffer=16 * 1024)
    is_(gateway, task, "sending", True)
    gateway.may_end = True
    gateway.signal(signal.SIGTERM)
    assert gateway.process.wait() == 0


@pytest.mark.parametrize("redis", ["away", "frozen"])
def test_stop_without_redis(results, server, redis):
    """A gateway whose Redis does not answer stops all the same."""
    gateway = results.gateway(server)
    server.publish(new_task(), text="t")
    if redis == "away":
        server.kill()
    else:
        server.freeze()
    waiter = results.wait(gateway, new_task())
    gateway.may_end = True
    gateway.signal(signal.SIGTERM)
    waiter.done(1012, "gateway restarting")
    assert gateway.process.wait() == 0


def test_workers_may_publish_while_the_embedded_gateway_drains(results):
    """A worker that comes during a drain is accepted: clients may be waiting for the rest of what they are sent."""
    data = bytes(8_000_000)
    results.write("large", data)
    gateway, inbox = results.embedded()
    task = new_task()
    inbox.publish(task, text="one", audio_file="large", final=False)
    waiter = results.wait(gateway, task, receive_buffer=16 * 1024)
    assert waiter.message()["audio_present"]
    is_(gateway, task, "sending", True)
    gateway.may_end = True
    gateway.signal(signal.SIGTERM)
    gateway.process.wait_for_line(r"\bdraining\b")
    assert inbox.publish(task, text="two") == 1
    while waiter.message()["type"] == "audio_chunk":
        waiter.read_frame()
    assert waiter.result().content == "two"
    waiter.done()
    assert gateway.process.wait() == 0


def test_reload_keeps_waiting_clients(results, server):
    """HUP: open connections stay, and new limits apply."""
    gateway = results.gateway(server)
    task = new_task()
    waiter = results.wait(gateway, task)
    is_waiting(gateway, task)
    text = gateway.file.read_text()
    gateway.file.write_text(text.replace("[output]", '[output]\nmax_audio = "10"'))
    gateway.signal(signal.SIGHUP)
    results.write("a", bytes(11))

    def is_too_large():
        other = new_task()
        server.publish(other, audio_file="a")
        return results.wait(gateway, other).result().message["audio_present"] is False

    eventually(is_too_large, "the new limit holds")
    server.publish(task, text="still here")
    assert waiter.result().content == "still here"
    waiter.done()


def test_nobody_listens_where_redis_should_be(results):
    """A Redis port where nothing listens is tried again with a pause, logged once, and costs hardly any processor time."""
    gateway = results.gateway(f"redis://127.0.0.1:{closed_port()}", ready=False)
    gateway.process.wait_for_line(r"WARN  redis .*refused")
    assert gateway.log.count("refused") <= 2
    task = new_task()
    waiter = results.wait(gateway, task)
    is_(gateway, task, "connected", True)
    waiter.reset()
    assert gateway.get("/health").json()["status"] == "degraded"
