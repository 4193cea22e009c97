"""STOP by a client, by `POST /control/stop` and by a publication: what it drops, and who is notified."""

import json

import pytest
from redis.exceptions import ResponseError

from gatewaylab.peers import pattern
from gatewaylab.results import Ear, is_waiting, new_task, status
from gatewaylab.wire import CLOSE, TEXT, close_payload, eventually, frame

STOP = json.dumps({"type": "control", "action": "STOP"})


@pytest.fixture
def redis(results):
    return results.redis()


@pytest.fixture
def gateway(results, redis):
    return results.gateway(redis)


def stop(gateway, body, **headers):
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    return gateway.get("/control/stop", method="POST", body=body, headers=list(headers.items()))


def acknowledged(waiter, task):
    assert waiter.message() == {"type": "control", "action": "STOP_ACK", "task_id": task}
    waiter.done(1000, "stopped")


def test_client_stops_its_task(results, redis, gateway):
    ear, task = Ear(redis), new_task()
    waiter, other = results.wait(gateway, task), results.wait(gateway, task)
    is_waiting(gateway, task)
    redis.publish(task, text="a", final=False)
    assert waiter.message()["content"] == other.message()["content"] == "a"
    waiter.say(STOP.encode())
    acknowledged(waiter, task)
    acknowledged(other, task)
    ear.hears(task, "STOP")
    assert status(gateway, task) == {"task_id": task, "status": "stopped", "connected": False}
    gateway.process.wait_for_line(rf"closed reason=task_stopped code=1000 .*task={task}")
    gateway.process.wait_for_line(f"output task stopped by=client clients=2 results_dropped=1 task={task}")
    ear.hears_nothing()


def test_stop_counts_when_the_client_closes_at_once(results, redis, gateway):
    """STOP and a Close frame in one write: the task is stopped, and the Close is answered."""
    ear, task = Ear(redis), new_task()
    client = results.connect(gateway)
    client.upgrade(f"/ws/output/{task}")
    client.read_switch()
    is_waiting(gateway, task)
    client.send(frame(TEXT, STOP, mask=b"mask") + frame(CLOSE, close_payload(1000), mask=b"mask"))
    assert client.read_close().code == 1000
    ear.hears(task, "STOP")
    assert status(gateway, task)["status"] == "stopped"


def test_stop_is_the_reason_also_if_the_client_resets_before_it_has_read_everything(results, redis, gateway):
    task = new_task()
    deaf = results.wait(gateway, task, receive_buffer=4096)
    is_waiting(gateway, task)
    redis.publish(task, text="x" * 3_000_000, final=False)
    eventually(lambda: status(gateway, task)["status"] == "sending", "the text is on its way")
    assert stop(gateway, {"task_id": task}).json() == {"ok": True}
    deaf.reset()
    gateway.process.wait_for_line(rf"closed reason=task_stopped .*task={task}")


@pytest.mark.parametrize("field", ["sessionId", "task_id"])
def test_request_stops_a_task(results, redis, gateway, field):
    ear, task = Ear(redis), new_task()
    waiter = results.wait(gateway, task)
    is_waiting(gateway, task)
    for _ in range(2):
        answer = stop(gateway, {field: task.upper()})
        assert (answer.status, answer.json()) == (200, {"ok": True})
    acknowledged(waiter, task)
    ear.hears(task, "STOP")
    ear.hears_nothing()


def test_publication_stops_a_task_on_every_gateway(results, redis, gateway):
    second, task = results.gateway(redis), new_task()
    waiters = [results.wait(one, task) for one in (gateway, second)]
    for one in (gateway, second):
        is_waiting(one, task)
    with redis.client() as worker:
        worker.publish(f"task_control:{task}", json.dumps({"action": "STOP", "by": "worker"}))
    for waiter in waiters:
        acknowledged(waiter, task)


def test_stop_reaches_clients_of_other_gateways(results, redis, gateway):
    second, task = results.gateway(redis), new_task()
    waiter = results.wait(second, task)
    is_waiting(second, task)
    # This gateway has never heard of the task, and Redis has nothing of it.
    assert stop(gateway, {"task_id": task}).status == 404
    acknowledged(waiter, task)


def test_what_is_kept_and_set_is_dropped_and_later_results_are(results, redis, gateway):
    task = new_task()
    with redis.client() as worker:
        worker.set(f"task_response:{task}", json.dumps({"text": "set", "final": False}))
        redis.publish(task, text="kept", final=False)
        eventually(lambda: worker.exists(f"task_response_kept:{task}"), "it is kept in Redis")
        assert stop(gateway, {"task_id": task}).status == 200
        keys = [f"task_response:{task}", f"task_response_kept:{task}"]
        eventually(lambda: worker.exists(*keys) == 0, "nothing is left in Redis")
        redis.publish(task, text="late", final=False)
        eventually(
            lambda: "aivtuber_gateway_results_after_stop_total 1" in gateway.get("/metrics").body.decode(),
            "the late result is counted",
        )
        worker.set(f"task_response:{task}", json.dumps({"text": "set before the client returned"}))
        waiter = results.wait(gateway, task)
        is_waiting(gateway, task)
        assert worker.exists(*keys) == 0
    redis.publish(task, text="new")
    assert waiter.message()["content"] == "new"
    waiter.done()


def test_completed_task_stays_completed(results, redis, gateway):
    ear, task = Ear(redis), new_task()
    redis.publish(task, text="a")
    waiter = results.wait(gateway, task)
    assert waiter.message()["content"] == "a"
    waiter.done()
    eventually(lambda: status(gateway, task)["status"] == "completed", "it has completed")
    assert stop(gateway, {"task_id": task}).status == 200
    assert status(gateway, task)["status"] == "completed"
    ear.hears_nothing()


def test_audio_that_has_not_left_is_dropped_at_a_frame_boundary(results, redis, gateway):
    audio = pattern(60_000_000)
    results.write("a.wav", audio)
    task = new_task()
    waiter = results.wait(gateway, task)
    is_waiting(gateway, task)
    redis.publish(task, text="a", audio_file="a.wav")
    assert waiter.message()["audio_present"]
    waiter.say(STOP.encode())
    got, announced = b"", None
    while (message := waiter.message())["type"] == "audio_chunk":
        frame = waiter.read_message_frame()
        if frame.opcode == 1:
            message = json.loads(frame.text)
            break
        got += frame.payload
    assert message == {"type": "control", "action": "STOP_ACK", "task_id": task}
    assert audio.startswith(got) and len(got) < len(audio)
    waiter.done(1000, "stopped")


def test_requests_that_stop_nothing(results, redis, gateway):
    task = new_task()
    waiter = results.wait(gateway, task)
    is_waiting(gateway, task)
    for body in [b"", b"{}", b"[]", b"nonsense", b'{"task_id":"7"}', b'{"task_id":7}']:
        assert stop(gateway, body).status == 400, body
    assert stop(gateway, {"task_id": new_task()}).status == 404
    assert stop(gateway, b"x" * (64 * 1024 + 1)).status == 413
    assert gateway.get("/control/stop").status == 405
    redis.publish(task, text="a")
    assert waiter.message()["content"] == "a"
    waiter.done()


@pytest.mark.parametrize("body", [b'{"task_id":"TASK"}', b"{}", b"x" * (64 * 1024 + 1)])
def test_request_with_expect(results, redis, gateway, body):
    """As curl sends it: the body follows the interim response, if it is wanted."""
    task = new_task()
    results.wait(gateway, task)
    is_waiting(gateway, task)
    body = body.replace(b"TASK", task.encode())
    client = results.connect(gateway)
    head = f"POST /control/stop HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\nExpect: 100-continue\r\n\r\n"
    client.send(head.encode())
    if len(body) > 64 * 1024:
        # It is not asked for.
        assert client.read_head().status == 413
        return
    assert client.read_head().status == 100
    client.send(body)
    assert client.read_head().status == (200 if task.encode() in body else 400)


def test_task_is_unknown_while_redis_is_away(results, redis, gateway):
    task = new_task()
    waiter = results.wait(gateway, task)
    is_waiting(gateway, task)
    redis.stop()
    gateway.process.wait_for_line("redis lost")
    assert stop(gateway, {"task_id": new_task()}).status == 503
    assert stop(gateway, {"task_id": task}).status == 200, "it is known here"
    acknowledged(waiter, task)


def test_pages_that_are_not_allowed_stop_nothing(results, redis):
    gateway = results.gateway(redis, config={"server": {"allowed_origins": ["https://app.example"]}})
    task = new_task()
    waiter = results.wait(gateway, task)
    is_waiting(gateway, task)
    assert stop(gateway, {"task_id": task}, Origin="https://evil.example").status == 403
    preflight = gateway.get("/control/stop", method="OPTIONS", headers=[("Origin", "https://app.example")])
    assert preflight.status == 200
    assert preflight.head["Access-Control-Allow-Origin"] == "https://app.example"
    assert "POST" in preflight.head["Access-Control-Allow-Methods"]
    assert preflight.head["Access-Control-Allow-Headers"].lower() == "content-type"
    assert status(gateway, task)["status"] == "waiting"
    answer = stop(gateway, {"task_id": task}, Origin="https://app.example")
    assert answer.status == 200
    assert answer.head["Access-Control-Allow-Origin"] == "https://app.example"
    acknowledged(waiter, task)


def test_libraries_get_the_acknowledgement(results, redis, gateway, open_client):
    task = new_task()
    client = open_client(f"ws://127.0.0.1:{gateway.port}/ws/output/{task}")
    is_waiting(gateway, task)
    client.send(STOP)
    assert json.loads(client.receive().text) == {"type": "control", "action": "STOP_ACK", "task_id": task}
    closed = client.receive()
    assert (closed.code, closed.reason) == (1000, "stopped")


def test_embedded_inbox_stops_too(results):
    gateway, inbox = results.embedded()
    task = new_task()
    waiter = results.wait(gateway, task)
    is_waiting(gateway, task)
    inbox.publish(task, text="a", final=False)
    assert waiter.message()["content"] == "a"
    waiter.say(STOP.encode())
    acknowledged(waiter, task)
    inbox.publish(task, text="late", final=False)
    assert status(gateway, task)["status"] == "stopped"
    assert stop(gateway, {"task_id": new_task()}).status == 404


def test_control_channels_have_the_prefix_of_the_configuration(results, redis):
    gateway, task = results.gateway(redis, link={"control_prefix": "say:"}), new_task()
    waiter = results.wait(gateway, task)
    is_waiting(gateway, task)
    with redis.client() as worker:
        worker.publish(f"task_control:{task}", json.dumps({"action": "STOP"}))
        worker.publish(f"say:{task}", json.dumps({"action": "LEFT"}))
        redis.publish(task, text="a", final=False)
        assert waiter.message()["content"] == "a"
        worker.publish(f"say:{task}", json.dumps({"action": "STOP"}))
    acknowledged(waiter, task)


@pytest.mark.parametrize("protocol", [2, 3])
def test_workers_hear_stop_in_the_embedded_inbox(results, protocol):
    """redis-py's `pubsub`, used as with a Redis: patterns and channels, a health check, STOP by a client and by a worker."""
    gateway, inbox = results.embedded()
    ear, task = Ear(inbox, protocol=protocol, health_check_interval=1), new_task()
    exact = inbox.client(protocol=protocol).pubsub()
    exact.subscribe(f"task_control:{task}")
    hear = lambda: eventually(lambda: exact.get_message(timeout=0.05), "a message for the task")
    assert hear()["type"] == "subscribe"
    waiter = results.wait(gateway, task)
    is_waiting(gateway, task)
    waiter.say(STOP.encode())
    acknowledged(waiter, task)
    ear.hears(task, "STOP")
    assert json.loads(hear()["data"]) == {"action": "STOP"}
    ear.pubsub.ping()
    assert ear.next_message()["type"] == "pong"
    # A worker stops the task of a client that has returned.
    waiter = results.wait(gateway, task)
    is_waiting(gateway, task)
    with inbox.client() as worker:
        assert worker.publish(f"task_control:{task}", json.dumps({"action": "STOP"})) == 3
    acknowledged(waiter, task)
    ear.hears(task, "STOP")
    assert hear()["type"] == "message"
    ear.pubsub.punsubscribe()
    assert ear.next_message()["type"] == "punsubscribe"
    with inbox.client() as worker:
        assert worker.publish(f"task_control:{task}", "{}") == 2
    assert json.loads(hear()["data"]) == {}
    ear.hears_nothing()
    exact.close()
    ear.pubsub.close()


@pytest.mark.parametrize("protocol", [2, 3])
def test_inbox_has_no_other_channels(results, protocol):
    _, inbox = results.embedded()
    for pattern in ["*", "task_response:*"]:
        with pytest.raises(ResponseError, match="only channels and patterns that begin with task_control:"):
            Ear(inbox, pattern, protocol=protocol)
