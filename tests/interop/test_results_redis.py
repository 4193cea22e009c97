"""Redis as it is and as it fails (docs/protocol.md section 2, "Nothing is lost"; `[redis]`): restarts, freezes, killed clients,
passwords, lists of servers, several gateways, gateways that die, and what is heard before, during and after.

Each test starts its own `redis-server`. Outages are made by its signals and commands; every wait is for something that happened.
"""

import json
import os
import signal
import threading

import pytest

from gatewaylab import wire
from gatewaylab.peers import pattern
from gatewaylab.results import PREFIX, is_up, is_waiting, new_task, proportional_bytes, status
from gatewaylab.wire import eventually, closed_port


@pytest.fixture
def server(results):
    return results.redis()


def is_away(gateway):
    eventually(lambda: gateway.get("/ready").status == 503, "the gateway knows that Redis is away")


def delivered(waiter, content, code=1000):
    assert waiter.result().content == content
    waiter.done(code)


# ---- before, with and after the client


def test_result_published_before_the_client_connects(results, server):
    """A result that is published before its client connects is kept, and delivered on connect."""
    gateway = results.gateway(server)
    task = new_task()
    assert server.publish(task, text="early") == 1
    eventually(lambda: status(gateway, task) == {"task_id": task, "status": "ready", "connected": False}, "it is kept")
    delivered(results.wait(gateway, task), "early")
    assert status(gateway, task) == {"task_id": task, "status": "completed", "connected": False}


def test_publish_and_connect_at_the_same_time(results, server):
    """Publishing and connecting race each other a thousand times; each client gets its result, once."""
    gateway = results.gateway(server, config={"log": {"level": "info"}})
    with server.client() as worker:
        for number in range(1000):
            task = new_task()
            waiter = results.connect(gateway)
            publishing = threading.Thread(target=worker.publish, args=(PREFIX + task, json.dumps({"text": str(number)})))
            if number % 2:
                publishing.start()
                waiter.wait(task)
            else:
                waiter.upgrade(f"/ws/output/{task}")
                publishing.start()
                waiter.read_switch()
            delivered(waiter, str(number))
            publishing.join()


def test_returning_client_gets_what_it_missed(results, server):
    """A client that lost its connection comes back and gets what it missed and what came meanwhile."""
    gateway = results.gateway(server)
    task = new_task()
    waiter = results.wait(gateway, task)
    server.publish(task, text="one", final=False)
    assert waiter.result().content == "one"
    waiter.reset()
    eventually(lambda: not status(gateway, task)["connected"], "it is gone")
    server.publish(task, text="two", final=False)
    waiter = results.wait(gateway, task)
    assert [waiter.result().content for _ in range(2)] == ["one", "two"]
    server.publish(task, text="three")
    delivered(waiter, "three")


def test_audio_is_downloaded_from_a_gateway_that_never_heard_of_it(results, server):
    """`GET /audio/{task_id}` on a gateway that started after the publication, without any WebSocket; 503 once Redis is away."""
    heard = results.gateway(server)
    audio, task = pattern(100_001), new_task()
    results.write("a.wav", audio)
    server.publish(task, text="t", audio_file="a.wav", final=False)
    eventually(lambda: server.kept() == 1, "Redis keeps it")
    heard.may_end = True
    heard.process.kill()
    fresh = results.gateway(server)
    client = fresh.connect()
    head = client.get(f"/audio/{task}", method="HEAD")
    assert (head.status, head.head["Content-Length"], head.body) == (200, str(len(audio)), b"")
    for target in (f"/audio/{task}", f"/audio/{task.upper()}/0"):
        reply = client.get(target)
        assert (reply.status, reply.head["Content-Type"], reply.body) == (200, "audio/wav", audio)
    assert client.get(f"/audio/{task}/1").status == 404
    assert client.get(f"/audio/{new_task()}").status == 404
    server.kill()
    is_away(fresh)
    assert client.get(f"/audio/{task}").body == audio, "it is kept here by now"
    reply = client.get(f"/audio/{new_task()}")
    assert (reply.status, reply.json()["error"]) == (503, "Redis is away, and this gateway keeps no audio of this task")


def test_kept_results_expire_after_retain(results, server):
    """Results are kept for `retain`, in the gateway and in Redis, and the task is forgotten with them."""
    gateway = results.gateway(server, output={"retain": "500ms", "timeout": "500ms"})
    task = new_task()
    server.publish(task, text="old")
    eventually(lambda: status(gateway, task)["status"] == "ready", "it is kept")
    eventually(lambda: status(gateway, task)["status"] == "not_found", "it is let go")
    eventually(lambda: server.kept() == 0, "Redis lets it go")
    assert results.wait(gateway, task).message()["error"] == "Processing timeout"


def test_kept_results_are_limited_by_max_retained(results, server):
    """Results are kept within `max_retained`; the oldest are evicted first, counted and logged."""
    gateway = results.gateway(server, output={"max_retained": "64KiB"})
    tasks = [new_task() for _ in range(100)]
    for task in tasks:
        server.publish(task, text="x" * 1000)
    gateway.process.wait_for_line(r"WARN.*kept results evicted for lack of room")
    assert gateway.metrics().total("evicted") > 0
    states = [status(gateway, task)["status"] for task in tasks]
    first = states.index("ready")
    assert 30 < first < 70, states
    assert states == ["not_found"] * first + ["ready"] * (100 - first)
    delivered(results.wait(gateway, tasks[-1]), "x" * 1000)
    # Redis lets go as well, so that both ends say the same.
    eventually(lambda: server.kept() == 100 - first, "Redis lets go of as many")


def test_nothing_is_kept_with_retain_0s(results, server):
    """`retain = "0s"` switches keeping off; a waiting client still gets its result."""
    gateway = results.gateway(server, output={"retain": "0s"})
    task = new_task()
    waiter = results.wait(gateway, task)
    is_waiting(gateway, task)
    server.publish(task, text="live")
    delivered(waiter, "live")
    assert status(gateway, task)["status"] == "not_found"
    assert server.kept() == 0


# ---- the worker's own SET


def set_result(server, task, **fields):
    with server.client() as worker:
        worker.set(PREFIX + task, json.dumps(fields), ex=300)


def test_result_that_was_set_while_no_gateway_ran(results, server):
    """A worker that runs `SET task_response:{task_id} <JSON> EX 300` before its `PUBLISH`: the gateway reads that key too when a
    client connects."""
    task = new_task()
    set_result(server, task, text="set")
    assert server.publish(task, text="set") == 0
    delivered(results.wait(results.gateway(server), task), "set")


@pytest.mark.parametrize("spelled", ["{0}", "urn:uuid:{0}"])
def test_result_that_was_set_under_another_spelling(results, server, spelled):
    """The key may have the worker's spelling of the id, or the client's."""
    task = spelled.format(new_task().upper())
    set_result(server, task, text="set")
    delivered(results.wait(results.gateway(server), task), "set")


def test_set_and_published_is_one_result(results, server):
    """Set, then published, in every order with the client's connect: the client gets the result once."""
    gateway = results.gateway(server)
    for order in ["set publish connect", "set connect publish", "connect set publish"]:
        task = new_task()
        for step in order.split():
            if step == "set":
                set_result(server, task, text="once", final=False)
            elif step == "publish":
                server.publish(task, text="once", final=False)
            else:
                waiter = results.wait(gateway, task)
                eventually(lambda: status(gateway, task)["status"] in ("waiting", "sending"), "it is subscribed to")
        server.publish(task, text="end")
        assert [waiter.result().content for _ in range(2)] == ["once", "end"], order
        waiter.done()


ON_DISK = ["--appendonly", "yes", "--appendfsync", "always"]
"""Such a Redis has its data after a restart, so a worker need not be faster than the gateway's reconnect."""


def test_set_result_is_found_after_a_reconnect(results):
    """A result that was set, and whose publication no gateway received, is found after the reconnect to Redis."""
    server = results.redis(options=ON_DISK)
    gateway = results.gateway(server, link={"grace": "60s"})
    task = new_task()
    waiter = results.wait(gateway, task)
    is_waiting(gateway, task)
    set_result(server, task, text="meanwhile")
    server.restart()
    delivered(waiter, "meanwhile")


# ---- Redis goes away and comes back


def test_redis_is_killed_and_restarted_while_clients_wait(results, server):
    """Redis restarts: waiting clients get results that are published afterwards."""
    gateway = results.gateway(server)
    tasks = [new_task() for _ in range(20)]
    waiters = [results.wait(gateway, task) for task in tasks]
    for round in range(3):
        server.kill()
        is_away(gateway)
        assert gateway.get("/health").json()["redis"] == "disconnected"
        assert gateway.get("/health").json()["status"] == "degraded"
        assert status(gateway, tasks[0]) == {"task_id": tasks[0], "status": "connected", "connected": True}
        server.start()
        is_up(gateway)
        assert gateway.get("/health").json()["redis"] == "connected"
        for task, waiter in zip(tasks, waiters):
            server.publish(task, text=f"round {round}", final=round == 2)
            assert waiter.result().content == f"round {round}"
    for waiter in waiters:
        waiter.done()


def test_what_was_retained_survives_a_restart_of_redis(results, server):
    """Redis restarts empty: the gateway still has the results in its memory."""
    gateway = results.gateway(server)
    task = new_task()
    server.publish(task, text="one", final=False)
    eventually(lambda: status(gateway, task)["status"] == "ready", "it is kept")
    server.restart()
    server_is_back(gateway)
    server.publish(task, text="two")
    waiter = results.wait(gateway, task)
    assert [waiter.result().content for _ in range(2)] == ["one", "two"]
    waiter.done()


def server_is_back(gateway, count=2):
    """It has noticed the loss and connected again."""
    eventually(lambda: gateway.metrics().total("redis_connects") >= count, "it has connected again")
    is_up(gateway)


def test_kept_results_are_delivered_while_redis_is_away(results, server):
    """Short outages are invisible: a client that comes during one gets what is kept."""
    gateway = results.gateway(server)
    task = new_task()
    server.publish(task, text="kept")
    eventually(lambda: status(gateway, task)["status"] == "ready", "it is kept")
    server.kill()
    is_away(gateway)
    delivered(results.wait(gateway, task), "kept")


def test_clients_of_redis_are_killed(results, server):
    """`CLIENT KILL` on one connection or both, again and again: nothing is lost."""
    gateway = results.gateway(server)
    task = new_task()
    waiter = results.wait(gateway, task)
    is_waiting(gateway, task)
    for number, kind in enumerate(["pubsub", "normal", "pubsub", "normal"]):
        ups = gateway.metrics().total("redis_connects")
        with server.client() as client:
            killed = [one for one in server.gateways() if ("P" in one["flags"]) == (kind == "pubsub")]
            assert len(killed) == 1
            client.client_kill(killed[0]["addr"])
        server_is_back(gateway, ups + 1)
        server.publish(task, text=str(number), final=number == 3)
        assert waiter.result().content == str(number)
    waiter.done()


def test_number_of_redis_connections_does_not_depend_on_clients(results, server):
    """One connection subscribes for the whole process, and one stores: never one per client."""
    gateway = results.gateway(server)
    for _ in range(100):
        results.wait(gateway, new_task())
    assert len(server.gateways()) == 2


@pytest.mark.parametrize("how", ["SIGSTOP", "CLIENT PAUSE"])
def test_redis_freezes(results, server, how):
    """A server that is frozen briefly is not given up: what is published once it runs again arrives."""
    gateway = results.gateway(server)
    task = new_task()
    waiter = results.wait(gateway, task)
    is_waiting(gateway, task)
    late = new_task()
    if how == "SIGSTOP":
        server.freeze()
    else:
        with server.client() as worker:
            worker.client_pause(1000, all=True)
    late_waiter = results.wait(gateway, late)
    assert status(gateway, late) == {"task_id": late, "status": "connected", "connected": True}
    if how == "SIGSTOP":
        server.thaw()
    is_waiting(gateway, late)
    for one, client in [(task, waiter), (late, late_waiter)]:
        server.publish(one, text="thawed")
        delivered(client, "thawed")
    assert gateway.metrics().total("redis_connects") == 1


def test_redis_stays_frozen(results, server):
    """A server that does not answer for 5 s is given up. Clients are closed after the grace, and served once it runs again."""
    gateway = results.gateway(server, link={"grace": "100ms"})
    server.freeze()
    task = new_task()
    waiter = results.wait(gateway, task)  # looks something up
    waiter.refused("Redis connection not available", 1013, "Redis connection not available", task_id=task)
    gateway.process.wait_for_line(r"WARN.*redis lost .*silent for 5 s")
    server.thaw()
    is_up(gateway)
    server.publish(task, text="thawed")
    delivered(results.wait(gateway, task), "thawed")


def test_grace(results, server):
    """Redis is away for longer than `redis.grace`: `Redis connection not available` and close 1013, for clients that wait and
    those that come, but not for those that are being served."""
    results.write("large", bytes(8_000_000))
    gateway = results.gateway(server, link={"grace": "300ms"})
    waiting = new_task()
    waiter = results.wait(gateway, waiting)
    sending = new_task()
    server.publish(sending, text="t", audio_file="large", final=False)
    reader = results.wait(gateway, sending, receive_buffer=16 * 1024)
    assert reader.message()["audio_present"]
    server.kill()
    reason = "Redis connection not available"
    waiter.refused(reason, 1013, reason, task_id=waiting)
    late = new_task()
    results.wait(gateway, late).refused(reason, 1013, reason, task_id=late)
    gateway.process.wait_for_line(f"closed reason=redis_away code=1013 .*{waiting}")
    while reader.message()["type"] == "audio_chunk":
        reader.read_frame()
    # The next result would never come.
    reader.refused(reason, 1013, reason, task_id=sending)
    assert gateway.process.is_running()
    server.start()
    is_up(gateway)
    server.publish(late, text="again")
    delivered(results.wait(gateway, late), "again")


def test_redis_may_be_away_at_the_start(results, server):
    """Redis is down at the start: the gateway starts, clients wait, and it connects once Redis is up."""
    server.kill()
    gateway = results.gateway(server, ready=False)
    assert gateway.get("/ready").status == 503
    task = new_task()
    waiter = results.wait(gateway, task)
    assert status(gateway, task) == {"task_id": task, "status": "connected", "connected": True}
    server.start()
    is_waiting(gateway, task)
    server.publish(task, text="there")
    delivered(waiter, "there")


def test_published_while_the_gateway_reconnects(results, server):
    """Workers publish through an outage. Every result that had a subscriber when it was published arrives, once and in order."""
    gateway = results.gateway(server, config={"log": {"level": "info"}})
    task = new_task()
    waiter = results.wait(gateway, task)
    is_waiting(gateway, task)
    heard, number = [], 0
    with server.client() as worker:
        for round in range(8):
            worker.client_kill_filter(_type="normal" if round % 4 == 3 else "pubsub", skipme=True)
            enough = len(heard) + 50
            while len(heard) < enough:
                number += 1
                if worker.publish(PREFIX + task, json.dumps({"text": str(number), "final": False})):
                    heard.append(str(number))
        is_up(gateway)
        worker.publish(PREFIX + task, json.dumps({"text": "end"}))
    got = []
    while (content := waiter.result().content) != "end":
        got.append(content)
    waiter.done()
    assert got == heard


# ---- who we are to Redis


def test_wrong_password_is_logged_without_the_password(results):
    """A wrong password in `redis.url` is logged once in plain words, and tried again; once it fits, results arrive."""
    server = results.redis(password="right-word")
    gateway = results.gateway(f"redis://:wrong-word@127.0.0.1:{server.port}", ready=False)
    gateway.process.wait_for_line(r"WARN.*redis trouble .*WRONGPASS")
    assert gateway.get("/health").json()["redis"] == "disconnected"
    task = new_task()
    waiter = results.wait(gateway, task)
    with server.client() as client:
        client.config_set("requirepass", "wrong-word")
    server.password = "wrong-word"
    is_up(gateway)
    server.publish(task, text="in")
    delivered(waiter, "in")
    assert "wrong-word" not in gateway.log and "right-word" not in gateway.log


def test_no_password_where_one_is_needed(results):
    """A missing password: Redis' own words are in the log."""
    server = results.redis(password="word")
    gateway = results.gateway(f"redis://127.0.0.1:{server.port}", ready=False)
    gateway.process.wait_for_line(r"WARN.*redis .*NOAUTH")
    assert gateway.get("/ready").status == 503


LOGINS = {
    "password": "redis://:word@127.0.0.1:{port}",
    "user": "redis://gateway:its-word@127.0.0.1:{port}",
    "user and db": "redis://gateway:its-word@127.0.0.1:{port}/3",
    "RESP3": "redis://gateway:its-word@127.0.0.1:{port}/0?protocol=resp3",
    "name": "redis://:word@localhost:{port}",
    "unix": "unix://{socket}?pass=word",
    "unix with user and db": "unix://{socket}?user=gateway&pass=its-word&db=2",
}


@pytest.mark.parametrize("login", LOGINS)
def test_redis_urls_with_user_password_database_and_unix_socket(results, login):
    """`redis://user:password@host:port/db` and `unix:///path`: results arrive, and are kept in the named database."""
    server = results.redis(password="word")
    with server.client() as client:
        client.acl_setuser("gateway", enabled=True, passwords=["+its-word"], keys=["*"], channels=["*"], categories=["+@all"])
    gateway = results.gateway(LOGINS[login].format(port=server.port, socket=server.socket))
    task = new_task()
    server.publish(task, text="in")
    delivered(results.wait(gateway, task), "in")
    number = {"user and db": 3, "unix with user and db": 2}.get(login, 0)
    with server.client(db=number) as client:
        eventually(lambda: client.keys() == [b"task_response_kept:" + task.encode()], "it is kept in this database")
        other = new_task()
        client.set(PREFIX + other, json.dumps({"text": "set here"}))
    delivered(results.wait(gateway, other), "set here")


def test_user_with_few_rights(results, server):
    """A Redis user that may only subscribe: results arrive, nothing is kept in Redis, and the log says so."""
    with server.client() as client:
        client.acl_setuser("ear", enabled=True, passwords=["+word"], channels=["task_response:*"], commands=["+psubscribe", "+ping"])
    gateway = results.gateway(f"redis://ear:word@127.0.0.1:{server.port}")
    task = new_task()
    server.publish(task, text="heard")
    delivered(results.wait(gateway, task), "heard")
    gateway.process.wait_for_line(r"WARN.*redis trouble .*NOPERM")
    assert server.kept() == 0


def test_servers_are_tried_in_turn(results):
    """Several URLs are tried in turn: the first that answers serves; when it dies, the other does."""
    one, two = results.redis(), results.redis()
    gateway = results.gateway([f"redis://127.0.0.1:{closed_port()}", one, two])
    task = new_task()
    waiter = results.wait(gateway, task)
    is_waiting(gateway, task)
    assert (len(one.gateways()), len(two.gateways())) == (2, 0)
    one.kill()
    server_is_back(gateway)
    is_waiting(gateway, task)
    assert len(two.gateways()) == 2
    two.publish(task, text="from the second")
    delivered(waiter, "from the second")


def test_another_prefix(results, server):
    """`channel_prefix`: only these channels are subscribed to; results are kept under the same prefix."""
    prefix = "studio 2/results"
    gateway = results.gateway(server, link={"channel_prefix": prefix})
    task = new_task()
    with server.client() as worker:
        assert worker.publish("studio 2/result" + task, b"{}") == 0
        assert worker.publish(PREFIX + task, b"{}") == 0
        assert worker.publish(prefix + task, json.dumps({"text": "special"})) == 1
    delivered(results.wait(gateway, task), "special")
    with server.client() as client:
        eventually(lambda: client.keys() == [b"studio 2/results_kept:" + task.encode()], "it is kept")


# ---- one subscription a task


def test_tasks_are_subscribed_to_one_by_one(results, server):
    """`subscribe = "task"`: one `SUBSCRIBE` per task that a client waits for, and none for others."""
    gateway = results.gateway(server, link={"subscribe": "task"})
    task = new_task()
    assert server.publish(task, text="nobody hears it") == 0
    one = results.wait(gateway, task)
    two = results.wait(gateway, task.upper())
    three = results.wait(gateway, task)
    is_waiting(gateway, task)
    with server.client() as client:
        channels = {(PREFIX + task).encode(), (PREFIX + task.upper()).encode()}
        eventually(lambda: set(client.pubsub_channels()) == channels, "both spellings are subscribed to")
        # The pattern of the control channels.
        assert client.pubsub_numpat() == 1
        assert server.publish(task, text="a", final=False) == 1
        for waiter in (one, two, three):
            assert waiter.result().content == "a"
        assert server.publish(task.upper(), text="b") == 1
        for waiter in (one, two, three):
            delivered(waiter, "b")
        eventually(lambda: client.pubsub_channels() == [], "nothing is subscribed to any more")
    assert len(server.gateways()) == 2


def test_subscribe_per_task_recovers_after_an_outage(results):
    """`subscribe = "task"`: after a reconnect, every awaited task is subscribed to and looked up again."""
    server = results.redis(options=ON_DISK)
    gateway = results.gateway(server, link={"subscribe": "task"})
    tasks = [new_task() for _ in range(50)]
    waiters = [results.wait(gateway, task) for task in tasks]
    for task in tasks:
        is_waiting(gateway, task)
    for task in tasks[::2]:
        set_result(server, task, text="set")
    server.restart()
    server_is_back(gateway)
    for task in tasks[1::2]:
        is_waiting(gateway, task)
        assert server.publish(task, text="published") == 1
    for number, waiter in enumerate(waiters):
        delivered(waiter, "published" if number % 2 else "set")


def test_subscribe_per_task_finds_results_that_another_gateway_kept(results, server):
    """`subscribe = "task"`: a gateway that was not subscribed delivers what one with a pattern has kept."""
    keeper = results.gateway(server)
    gateway = results.gateway(server, link={"subscribe": "task"})
    task = new_task()
    for number in range(5):
        server.publish(task, text=str(number), final=number == 4)
    eventually(lambda: server.kept() == 1 and status(keeper, task)["status"] == "ready", "it is kept")
    waiter = results.wait(gateway, task)
    assert [waiter.result().content for _ in range(5)] == list("01234")
    waiter.done()


# ---- gateways come and go


def is_kept(server, task, count):
    with server.client() as client:
        eventually(lambda: client.hlen(f"task_response_kept:{task}") == count + 1, f"{count} results are kept in Redis")


def test_gateway_is_killed_between_publish_and_connect(results, server):
    """With Redis, results survive a SIGKILL of the gateway, in order and once each."""
    first = results.gateway(server)
    task = new_task()
    for number in range(10):
        server.publish(task, text=str(number), final=False)
    is_kept(server, task, 10)
    first.may_end = True
    first.process.kill()
    second = results.gateway(server)
    waiter = results.wait(second, task)
    server.publish(task, text="end")
    assert [waiter.result().content for _ in range(11)] == [*"0123456789", "end"]
    waiter.done()


def test_stop_after_a_burst_keeps_everything(results, server):
    """A TERM directly behind a burst of results: before it stops, the gateway stores everything in Redis."""
    first = results.gateway(server, config={"log": {"level": "info"}})
    tasks = [new_task() for _ in range(2000)]
    with server.client() as worker, worker.pipeline(transaction=False) as pipeline:
        for task in tasks:
            pipeline.publish(PREFIX + task, json.dumps({"text": task, "more": "x" * 4000}))
        assert pipeline.execute() == [1] * len(tasks)
    first.may_end = True
    first.signal(signal.SIGTERM)
    assert first.process.wait() == 0
    assert server.kept() == len(tasks)
    second = results.gateway(server, config={"log": {"level": "info"}})
    for task in tasks[::100]:
        delivered(results.wait(second, task), task)


def test_memory_of_a_large_result_is_given_back(results, server):
    """The memory for reading, parsing and sending a result of 12 MiB is given back."""
    gateway = results.gateway(server)
    task = new_task()
    waiter = results.wait(gateway, task)
    is_waiting(gateway, task)
    before = proportional_bytes(gateway.pid)
    # It is larger than what one task may keep.
    server.publish(task, text="x" * (12 << 20))
    assert len(waiter.result().content) == 12 << 20
    waiter.done()
    eventually(lambda: proportional_bytes(gateway.pid) < before + (4 << 20), "the memory is free")


def test_two_gateways_on_one_redis(results, server):
    """Any gateway on the same Redis delivers a result once, however many received it: live, kept, and after a restart."""
    gateways = [results.gateway(server) for _ in range(2)]
    task = new_task()
    live = [results.wait(gateway, task) for gateway in gateways]
    assert server.publish(task, text="same", final=False) == 2
    assert server.publish(task, text="same", final=False) == 2
    assert server.publish(task, text="other", final=False) == 2
    for waiter in live:
        assert [waiter.result().content for _ in range(3)] == ["same", "same", "other"]
    is_kept(server, task, 3)
    third = results.gateway(server)
    late = [results.wait(gateway, task) for gateway in [*gateways, third]]
    server.publish(task, text="end")
    for waiter in late:
        assert [waiter.result().content for _ in range(4)] == ["same", "same", "other", "end"]
        waiter.done()
    for waiter in live:
        delivered(waiter, "end")


def test_gateway_that_was_cut_off_catches_up(results, server):
    """One gateway received results while the other was cut off; the other one's waiting client still gets everything, in
    order."""
    here, away = [results.gateway(server, link={"grace": "60s"}) for _ in range(2)]
    task = new_task()
    waiter = results.wait(away, task)
    is_waiting(away, task)
    os.kill(away.pid, signal.SIGSTOP)
    with server.client() as client:
        killed = 0
        for number in range(4):
            server.publish(task, text=str(number), final=False)
            if number == 1:
                # The stopped one loses both connections, and with them whatever was on its way to it.
                for one in server.gateways():
                    if pid_of_port(int(one["addr"].split(":")[1])) == away.pid:
                        killed += client.client_kill_filter(_id=one["id"])
        assert killed == 2
        is_kept(server, task, 4)
    os.kill(away.pid, signal.SIGCONT)
    is_waiting(away, task)
    server.publish(task, text="end")
    assert [waiter.result().content for _ in range(5)] == ["0", "1", "2", "3", "end"]
    waiter.done()
    told_again = results.wait(here, task)
    assert [told_again.result().content for _ in range(5)] == ["0", "1", "2", "3", "end"]


def pid_of_port(port):
    """Which process has that end of a loopback connection."""
    inode = None
    for line in open("/proc/net/tcp").read().splitlines()[1:]:
        fields = line.split()
        if int(fields[1].split(":")[1], 16) == port and fields[3] == "01":
            inode = fields[9]
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            for entry in os.scandir(f"/proc/{pid}/fd"):
                if os.readlink(entry.path) == f"socket:[{inode}]":
                    return int(pid)
        except OSError:
            continue
    return None


# ---- behind the gateway, or alone


def test_as_a_separate_output_handler(results, server):
    """The output handler alone serves only `/ws/output/{task_id}`, and a gateway relays to it."""
    handler = results.gateway(server)
    front = results.lab.gateway(
        {"route": [{"name": "output", "path": "/ws/output/{task_id}", "backend": f"ws://127.0.0.1:{handler.port}/ws/output/{{task_id}}"}]}
    )
    assert front.get("/health").json()["redis"] == "disabled"
    results.write("a", bytes(range(256)) * 1000)
    task = new_task()
    waiter = results.wait(front, task)
    server.publish(task, text="through two", audio_file="a")
    result = waiter.result()
    assert (result.content, result.audio) == ("through two", bytes(range(256)) * 1000)
    waiter.done()
    results.wait(front, "nonsense").refused("Invalid task_id format", 4004, "bad task id")


def test_redis_cli_publishes(results, server):
    """`redis-cli PUBLISH` as a person types it."""
    import subprocess

    gateway = results.gateway(server)
    task = new_task()
    waiter = results.wait(gateway, task)
    done = subprocess.run(
        ["redis-cli", "-p", str(server.port), "PUBLISH", PREFIX + task, '{"text":"by hand"}'], capture_output=True, text=True, timeout=wire.PATIENCE
    )
    assert done.stdout.strip() == "1"
    delivered(waiter, "by hand")
