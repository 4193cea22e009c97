"""Many clients, large files, slow readers, floods (docs/protocol.md section 2): everyone is served, and memory stays bounded."""

import json

import pytest


from gatewaylab.crowd import Crowd
from gatewaylab.gateway import route
from gatewaylab.peers import pattern
from gatewaylab.results import PREFIX, is_up, new_task, status
from gatewaylab.wire import PING, eventually

MIB = 1 << 20
QUIET = {"log": {"level": "info"}}


@pytest.fixture
def server(results):
    return results.redis()


def publish_all(server, tasks, result):
    """One result for each task, all published at once."""
    with server.client() as worker, worker.pipeline(transaction=False) as pipeline:
        for task in tasks:
            pipeline.publish(PREFIX + task, json.dumps(result(task)))
        assert pipeline.execute() == [1] * len(tasks)


@pytest.mark.parametrize("subscribe", ["pattern", "task"])
def test_five_thousand_tasks_at_once(results, server, subscribe):
    """Five thousand clients with a task each, and all results at one moment: each client gets its own, once."""
    results.write("a", pattern(100_000))
    gateway = results.gateway(server, link={"subscribe": subscribe}, config=QUIET)
    tasks = [new_task() for _ in range(5000)]
    with Crowd(gateway.port) as crowd:
        members = [crowd.join(task) for task in tasks]
        crowd.run(crowd.all_open, "all are connected")
        if subscribe == "task":
            with server.client() as client:
                eventually(lambda: len(client.pubsub_channels()) == 5000, "all tasks are subscribed to")
        publish_all(server, tasks, lambda task: {"text": task, "audio_file": "a"})
        crowd.run(lambda: not crowd.members, "all have left", patience=30)
        for member in members:
            assert (member.code, member.contents, member.audio) == (1000, [member.task], 100_000)
    assert gateway.metrics().samples[("aivtuber_gateway_results_delivered_total", ())] == 5000
    assert len(server.gateways()) == 2
    eventually(lambda: gateway.descriptors() < 40, "no descriptor is left")


def test_thousand_clients_on_one_task(results, server):
    """More deliveries than the gateway takes on at once: each client gets everything."""
    gateway = results.gateway(server, config=QUIET)
    task = new_task()
    with Crowd(gateway.port) as crowd:
        members = [crowd.join(task) for _ in range(1000)]
        crowd.run(crowd.all_open, "all are connected")
        with server.client() as worker, worker.pipeline(transaction=False) as pipeline:
            for number in range(20):
                pipeline.publish(PREFIX + task, json.dumps({"text": str(number), "final": number == 19}))
            pipeline.execute()
        crowd.run(lambda: not crowd.members, "all have left")
        expected = [str(number) for number in range(20)]
        assert all(member.contents == expected and member.code == 1000 for member in members)


def test_client_that_never_reads(results, server):
    """A client that takes nothing costs no more than its socket, whether a large file or result after result waits for it."""
    results.write("large", bytes(200 * MIB))
    gateway = results.gateway(server, config={**QUIET, "proxy": {"ping_interval": "1s", "ping_timeout": "2s"}})
    deaf, task = [], new_task()
    before = gateway.resident_bytes()
    for _ in range(20):
        waiter = results.connect(gateway, receive_buffer=4096)
        waiter.upgrade(f"/ws/output/{task}")
        deaf.append(waiter)
    server.publish(task, text="t", audio_file="large")
    eventually(lambda: status(gateway, task)["status"] == "sending", "it is being sent")
    for _ in range(100):
        for waiter in deaf:
            waiter.frame(PING, bytes(125))
    gateway.get("/health")
    assert gateway.resident_bytes() - before < MIB
    eventually(lambda: not status(gateway, task)["connected"], "they are given up")
    assert gateway.process.is_running()


def test_results_for_a_client_that_never_reads_are_limited(results, server):
    """A client that does not read, with more than `max_retained` waiting for it, is closed with 1013 and may come again."""
    gateway = results.gateway(server, output={"max_retained": "1MiB"})
    task, other = new_task(), new_task()
    deaf = results.wait(gateway, task, receive_buffer=4096)
    before = gateway.resident_bytes()
    with server.client() as worker:
        for number in range(100):
            worker.publish(PREFIX + task, json.dumps({"text": "x" * MIB, "final": False}))
    gateway.process.wait_for_line(r"output_\d+ > close code=1013 reason=\"client too slow\"")
    assert gateway.resident_bytes() - before < 40 * MIB
    server.publish(other, text="others are served")
    waiter = results.wait(gateway, other)
    assert waiter.result().content == "others are served"
    waiter.done()
    deaf.read_to_end()
    deaf.half_close()
    gateway.process.wait_for_line(f"closed reason=client_too_slow code=1013 .*{task}")


def test_large_file_to_slow_clients(results, server):
    """A slow client costs its socket buffer and no more: the process does not grow with the file, and every byte is right."""
    data = pattern(50 * MIB)
    results.write("large", data)
    gateway = results.gateway(server, config=QUIET)
    task = new_task()
    waiters = [results.wait(gateway, task, receive_buffer=32 * 1024) for _ in range(10)]
    before = gateway.resident_bytes()
    server.publish(task, text="t", audio_file="large")
    for waiter in waiters:
        assert waiter.message()["audio_present"]
    had = [0] * 10
    most = 0
    for number in range(0, 800, 50):
        for place, waiter in enumerate(waiters):
            for chunk in range(number, number + 50):
                assert waiter.message()["chunk_id"] == chunk
                frame = waiter.read_message_frame()
                assert frame.payload == data[had[place] : had[place] + len(frame.payload)]
                had[place] += len(frame.payload)
        most = max(most, gateway.resident_bytes() - before)
    for place, waiter in enumerate(waiters):
        assert waiter.message()["type"] == "audio_complete"
        waiter.done()
        assert had[place] == len(data)
    assert most < MIB, f"it grew by {most} bytes"


def test_memory_of_a_delivery_is_released(results, server):
    """A client's memory shrinks again after its audio."""
    results.write("a", bytes(MIB))
    gateway = results.gateway(server, config=QUIET)
    with Crowd(gateway.port) as crowd:
        members = [crowd.join(new_task()) for _ in range(200)]
        crowd.run(crowd.all_open, "all are connected")
        publish_all(server, [member.task for member in members], lambda _: {"text": "warm", "final": False})
        crowd.run(lambda: all(member.texts for member in members), "all have heard")
        before = gateway.resident_bytes()
        publish_all(server, [member.task for member in members], lambda _: {"audio_file": "a", "final": False})
        crowd.run(lambda: all(member.texts[-1].get("type") == "audio_complete" for member in members), "all have it all")
        assert gateway.resident_bytes() - before < 2 * MIB
        assert gateway.descriptors() < 240, "no file is left open"


def test_flood_on_the_channel_while_a_relay_goes_on(results, server):
    """A flood of results is read with a budget: a relay is served in between, and what lies behind the flood is delivered."""
    backend = results.lab.backend()
    relay = route(backend=backend.url())
    gateway = results.gateway(server, routes=[relay], config=QUIET)
    client, peer = results.lab.pair(gateway, backend)
    task = new_task()
    waiter = results.wait(gateway, task)
    strangers = [json.dumps({"text": "x" * 200, "n": number}) for number in range(100)]
    trips = 0
    with server.client() as worker, worker.pipeline(transaction=False) as pipeline:
        before = gateway.resident_bytes()
        for round in range(20):
            for number in range(1000):
                pipeline.publish(f"{PREFIX}{round:08x}-0000-4000-8000-{number:012x}", strangers[number % 100])
            pipeline.publish(PREFIX + task, json.dumps({"text": str(round), "final": round == 19}))
            pipeline.execute()
            # Redis has sent it all; the gateway is in the middle of it.
            client.say(f"ping {round}")
            assert peer.read_frame().text == f"ping {round}"
            peer.say(f"pong {round}")
            assert client.read_frame().text == f"pong {round}"
            trips += 1
        assert [waiter.result().content for _ in range(20)] == [str(round) for round in range(20)]
        waiter.done()
    assert trips == 20
    # 20,000 results of about 650 bytes each, the ones retained and their tables; not more than is allowed.
    assert gateway.resident_bytes() - before < 32 * MIB


def test_flood_for_a_slow_client(results, server):
    """Result after result for one task, faster than its client reads: all arrive, in order."""
    gateway = results.gateway(server, config=QUIET)
    task = new_task()
    waiter = results.wait(gateway, task, receive_buffer=8 * 1024)
    with server.client() as worker, worker.pipeline(transaction=False) as pipeline:
        for number in range(3000):
            pipeline.publish(PREFIX + task, json.dumps({"text": f"{number} " + "x" * 1000, "final": number == 2999}))
        pipeline.execute()
    for number in range(3000):
        assert waiter.result().content.startswith(f"{number} ")
    waiter.done()


def test_thousands_of_clients_that_leave_leave_nothing(results, server):
    """Clients that connect and vanish before any result leave no task, no descriptor and no subscription."""
    gateway = results.gateway(server, link={"subscribe": "task"}, config=QUIET)
    before = gateway.descriptors()
    with Crowd(gateway.port) as crowd:
        for round in range(4):
            members = [crowd.join(new_task()) for _ in range(500)]
            if round % 2:
                crowd.run(crowd.all_open, "all are connected")
            for number, member in enumerate(members):
                crowd.drop(member, rudely=number % 2)
    eventually(gateway.is_empty, "all have left")
    eventually(lambda: gateway.descriptors() <= before, "no descriptor is left")
    with server.client() as client:
        eventually(lambda: client.pubsub_channels() == [], "no subscription is left")
    assert status(gateway, members[0].task)["status"] == "not_found"
    is_up(gateway)
