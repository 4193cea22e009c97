"""Control channels as workers hear them: LEFT, BACK and STOP, at a Redis and at the inbox, through other people's clients."""

import json
import signal
import time

import pytest

from gatewaylab import PEERS
from gatewaylab.peers import node_env
from gatewaylab.process import Process
from gatewaylab.results import Ear, is_waiting, new_task
from gatewaylab.wire import eventually

STOP = json.dumps({"type": "control", "action": "STOP"})


@pytest.fixture
def redis(results):
    return results.redis()


class Listener:
    """A worker in another language, or a person at a terminal, that listens to all control channels."""

    def __init__(self, lab, client, port):
        commands = {
            "ioredis": ["node", PEERS / "ioredis_subscribe.js", port, "task_control:*"],
            "redis-cli": ["redis-cli", "-p", port, "--csv", "psubscribe", "task_control:*"],
            "redis-cli-resp3": ["redis-cli", "-3", "-p", port, "--csv", "psubscribe", "task_control:*"],
        }
        ready = {"ioredis": r"^listens to 1$"}.get(client, r'^"psubscribe","task_control:\*",1$')
        self.process = Process(commands[client], env=node_env())
        lab.backends.append(self)
        self.process.wait_for_line(ready)
        self.heard = 0

    def hears(self, task, action):
        """The next message is this one."""
        lines = lambda: [line for line in self.process.text.splitlines() if f"task_control:{task}" in line]
        eventually(lambda: len(lines()) > self.heard, f"{action} is heard")
        line = lines()[self.heard].replace('\\"', '"')
        assert f'{{"action":"{action}"}}' in line, line
        self.heard += 1

    def stop(self):
        self.process.kill()


def leave(waiter):
    """As a tab that is closed."""
    waiter.close_frame(1001)
    assert waiter.read_close().code == 1001
    waiter.half_close()
    waiter.expect_end()


@pytest.mark.parametrize("client", ["ioredis", "redis-cli", "redis-cli-resp3"])
@pytest.mark.parametrize("where", ["redis", "inbox"])
def test_clients_of_redis_hear_left_back_and_stop(results, lab, client, where):
    if where == "redis":
        server = results.redis()
        gateway = results.gateway(server)
    else:
        gateway, server = results.embedded()
    listener, task = Listener(lab, client, server.port), new_task()
    waiter = results.wait(gateway, task)
    is_waiting(gateway, task)
    leave(waiter)
    listener.hears(task, "LEFT")
    gateway.process.wait_for_line(f"output clients left task={task}")
    waiter = results.wait(gateway, task)
    listener.hears(task, "BACK")
    gateway.process.wait_for_line(f"output client is back task={task}")
    waiter.say(STOP.encode())
    listener.hears(task, "STOP")


def test_left_comes_a_second_after_the_last_client(results, redis):
    gateway, ear, task = results.gateway(redis), Ear(redis), new_task()
    first, second = results.wait(gateway, task), results.wait(gateway, task)
    is_waiting(gateway, task)
    redis.publish(task, text="a", final=False)
    assert first.message()["content"] == second.message()["content"] == "a"
    leave(first)
    ear.hears_nothing()
    left_at = time.monotonic()
    leave(second)
    ear.hears(task, "LEFT")
    assert time.monotonic() - left_at > 0.9
    ear.hears_nothing()


def test_client_that_resumes_at_once_is_not_reported(results, redis):
    gateway, ear, task = results.gateway(redis), Ear(redis), new_task()
    for number in range(3):
        waiter = results.wait(gateway, task, f"?from_result={number}")
        is_waiting(gateway, task)
        redis.publish(task, text=str(number), final=number == 2)
        assert waiter.message()["content"] == str(number)
        if number < 2:
            waiter.vanish()
    waiter.done()
    ear.hears_nothing(for_seconds=1.5)


def test_gateway_with_a_client_contradicts_another_ones_left(results, redis):
    one, other = results.gateway(redis), results.gateway(redis)
    ear, task = Ear(redis), new_task()
    waiters = [results.wait(gateway, task) for gateway in (one, other)]
    for gateway in (one, other):
        is_waiting(gateway, task)
    leave(waiters[0])
    ear.hears(task, "LEFT")
    ear.hears(task, "BACK")
    leave(waiters[1])
    ear.hears(task, "LEFT")
    ear.hears_nothing()
    one.process.wait_for_line(f"output clients left task={task}")
    other.process.wait_for_line(f"output client is back task={task}")


def test_client_that_returns_to_another_gateway_is_back(results, redis):
    one, other = results.gateway(redis), results.gateway(redis)
    ear, task = Ear(redis), new_task()
    waiter = results.wait(one, task)
    is_waiting(one, task)
    leave(waiter)
    ear.hears(task, "LEFT")
    returned = results.wait(other, task)
    ear.hears(task, "BACK")
    # The worker has gone on.
    redis.publish(task, text="a")
    assert returned.message()["content"] == "a"
    returned.done()
    ear.hears_nothing(for_seconds=1.5)


def test_worker_that_is_still_speaking_hears_that_its_client_has_left(results):
    """The result is final, and its audio grows: the task is unfinished until `audio_end`."""
    gateway, inbox = results.embedded()
    ear, task = Ear(inbox), new_task()
    path = results.write("a.wav", b"first")
    inbox.publish(task, text="t", audio_file="a.wav", audio_growing=True)
    waiter = results.wait(gateway, task)
    assert waiter.message()["audio_present"]
    assert waiter.message()["type"] == "audio_chunk"
    assert waiter.read_message_frame().payload == b"first"
    leave(waiter)
    ear.hears(task, "LEFT")
    waiter = results.wait(gateway, task, "?from_byte=5")
    ear.hears(task, "BACK")
    with open(path, "ab") as file:
        file.write(b"second")
    inbox.publish(task, audio_end="a.wav")
    assert waiter.message()["audio_present"]
    assert waiter.message()["offset"] == 5
    assert waiter.read_message_frame().payload == b"second"
    assert waiter.message()["type"] == "audio_complete"
    waiter.done()
    ear.hears_nothing(for_seconds=1.5)


def test_a_drain_is_no_departure(results, redis):
    gateway, ear, task = results.gateway(redis), Ear(redis), new_task()
    waiter = results.wait(gateway, task)
    is_waiting(gateway, task)
    gateway.may_end = True
    gateway.signal(signal.SIGTERM)
    waiter.done(1012, "gateway restarting")
    assert gateway.process.wait() == 0
    ear.hears_nothing(for_seconds=1.5)
    # The client returns to the next process, and the worker has not noticed anything.
    gateway = results.gateway(redis)
    waiter = results.wait(gateway, task)
    redis.publish(task, text="a")
    assert waiter.message()["content"] == "a"
    waiter.done()


def test_departures_during_an_outage_of_redis_are_reported_afterwards(results, redis):
    gateway = results.gateway(redis)
    gone, returns = new_task(), new_task()
    waiters = [results.wait(gateway, task) for task in (gone, returns)]
    for task in (gone, returns):
        is_waiting(gateway, task)
    redis.kill()
    gateway.process.wait_for_line("redis lost")
    for waiter in waiters:
        leave(waiter)
    time.sleep(1.2)
    waiter = results.wait(gateway, returns)
    redis.start()
    gateway.process.wait_for_line(f"output clients left task={gone}")
    redis.publish(returns, text="a")
    assert waiter.message()["content"] == "a"
    assert f"clients left task={returns}" not in gateway.process.text


@pytest.mark.parametrize("right", ["+publish", "&task_control:*", "+psubscribe"])
def test_one_warning_names_the_missing_right(results, redis, right):
    """All rights of docs/operations.md but one: results still arrive, and STOP works for the gateway's own clients."""
    rights = ["+@all", "&task_response:*", "&task_control:*"]
    if right.startswith("&"):
        rights.remove(right)
        link = {}
    else:
        rights.append("-" + right[1:])
        # Subscriptions to single tasks need no pattern.
        link = {"subscribe": "task"}
    with redis.client() as admin:
        admin.execute_command("ACL", "SETUSER", "gw", "on", ">pw", "~*", "resetchannels", *rights)
    gateway = results.gateway(redis.url.replace("redis://", "redis://gw:pw@"), link=link)
    for _ in range(2):
        task = new_task()
        waiter = results.wait(gateway, task)
        is_waiting(gateway, task)
        redis.publish(task, text="a", final=False)
        assert waiter.message()["content"] == "a"
        waiter.say(STOP.encode())
        assert waiter.message()["action"] == "STOP_ACK"
        waiter.done(1000, "stopped")
    gateway.process.wait_for_line(r"redis trouble why=.*\+psubscribe \+publish &task_control:\*")
    assert gateway.process.text.count("redis trouble") == 1
