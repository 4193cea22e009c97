"""`format = "json"`: every line is described by `docs/log.schema.json`, and says what the text says, field by field."""

import json
import pathlib

import jsonschema
from gatewaylab.gateway import route
from gatewaylab.results import is_waiting, new_task
from gatewaylab.wire import closed_port

SCHEMA = json.loads((pathlib.Path(__file__).parents[2] / "docs" / "log.schema.json").read_text())


def no_key_twice(pairs):
    keys = [key for key, _ in pairs]
    assert len(set(keys)) == len(keys), keys
    return dict(pairs)


def lines(gateway):
    """The lines so far, each checked against the schema."""
    found = [json.loads(line, object_pairs_hook=no_key_twice) for line in gateway.process.lines if line.startswith("{")]
    for line in found:
        jsonschema.validate(line, SCHEMA)
    return found


def busy(lab, results, **log):
    backend = lab.backend()
    routes = [route(backend=backend.url()), route("sick", "/ws/sick", backend=f"ws://127.0.0.1:{closed_port()}/")]
    gateway, inbox = results.embedded(routes=routes, config={"log": {"format": "json", **log}})
    headers = [("User-Agent", 'curl/8 "x" task=forged'), ("Origin", "https://app.example")]
    client, peer = lab.pair(gateway, backend, headers=headers)
    client.say("hello")
    assert peer.read_frame().text == "hello"
    peer.vanish()
    client.read_close()
    client.half_close()
    client = lab.client(gateway)
    client.upgrade("/ws/sick")
    client.read_switch()
    client.read_close()
    client.half_close()
    results.write("a.wav", bytes(1000))
    task = new_task()
    waiter = results.wait(gateway, task)
    is_waiting(gateway, task)
    inbox.publish(task, text="hi", audio_file="a.wav")
    waiter.result()
    waiter.done()
    gateway.process.wait_for_line("The final result was delivered")
    return gateway, task


def test_lines_in_json_have_typed_fields(lab, results):
    gateway, task = busy(lab, results, level="debug")
    found = lines(gateway)
    unknown = [line["message"] for line in found if line["event"] == "message" and line["target"] != "demo"]
    assert not unknown, "every line of a running gateway has an event"
    opened = next(line for line in found if line["event"] == "opened" and line["id"].startswith("input_"))
    assert (opened["user_agent"], opened["origin"]) == ('curl/8 "x" task=forged', "https://app.example")
    assert "task" not in opened
    closed = next(line for line in found if line["event"] == "closed" and line["id"] == opened["id"])
    assert (closed["reason"], closed["code"], closed["ended_by"], closed["phase"]) == ("backend_vanished", 1011, "backend", "relay")
    assert closed["from_client_frames"] == 1 and closed["sentence"].startswith("The backend closed the TCP connection")
    assert isinstance(closed["duration_seconds"], float)
    frame = next(line for line in found if line["event"] == "frame" and line["id"] == opened["id"])
    assert (frame["direction"], frame["opcode"], frame["length"], frame["fin"]) == ("from_client", "text", 5, True)
    told = [line["event"] for line in found if line.get("task") == task]
    for event in ["opened", "published", "result_heard", "result_kept", "delivered", "frame", "close_sent", "closed"]:
        assert event in told, event


def test_task_is_in_every_line_of_its_connection(lab, results):
    """One grep for the task's id finds the whole story of its output connection."""
    gateway, task = busy(lab, results, level="debug")
    output = next(line["id"] for line in lines(gateway) if line["event"] == "opened" and line.get("task") == task)
    of_it = [line for line in lines(gateway) if line.get("id") == output]
    assert len(of_it) > 8
    assert all(line.get("task") == task or task in line["message"] for line in of_it), of_it
