"""`format = "json"`: every line is described by `docs/log.schema.json`, and says what the text says, field by field."""

import json
import pathlib
import subprocess

from gatewaylab import PATIENCE
from gatewaylab.gateway import route
from gatewaylab.results import is_waiting, new_task
from gatewaylab.wire import closed_port

SCHEMA = pathlib.Path(__file__).parents[2] / "docs" / "log.schema.json"

# Debian's Python has the package.
VALIDATE = """
import json, jsonschema, sys
schema = json.load(open(sys.argv[1]))
validator = jsonschema.Draft202012Validator(schema) if hasattr(jsonschema, "Draft202012Validator") else jsonschema.Draft7Validator(schema)
for line in sys.stdin:
    for fault in validator.iter_errors(json.loads(line)):
        print(fault.message, line)
"""


def no_key_twice(pairs):
    keys = [key for key, _ in pairs]
    assert len(set(keys)) == len(keys), keys
    return dict(pairs)


def lines(gateway):
    """The lines so far, each checked against the schema."""
    texts = [line for line in gateway.process.lines if line.startswith("{")]
    python = ["/usr/bin/python3", "-c", VALIDATE, str(SCHEMA)]
    done = subprocess.run(python, input="\n".join(texts), capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), done
    return [json.loads(text, object_pairs_hook=no_key_twice) for text in texts]


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


def test_what_is_forgotten_has_its_task(results):
    """Kept, delivered, let go: a result that nobody asks for any more has a line with its task, too."""
    gateway, inbox = results.embedded(config={"log": {"format": "json", "level": "debug"}}, output={"retain": "300ms"})
    inbox.publish(task := new_task(), text="nobody comes")
    gateway.process.wait_for_line(f'"event":"result_forgotten".*"task":"{task}"')
    told = [(line["event"], line["task"]) for line in lines(gateway) if line["event"].startswith("result_")]
    assert told == [(event, task) for event in ("result_heard", "result_kept", "result_forgotten")]


def test_learn_task_finds_the_task_in_a_message_of_the_backend(lab):
    """`learn_task`: the task's id, which only a message has, is in the log and the ledger; what passes stays as it is."""
    backend = lab.backend()
    for level in ["info", "debug"]:
        routes = [route(backend=backend.url(), learn_task="task_id")]
        gateway = lab.gateway({"route": routes, "log": {"level": level}})
        client, peer = lab.pair(gateway, backend)
        client.say("first")
        peer.read_frame()
        task = new_task()
        texts = ["no JSON", json.dumps({"type": "hello"}), json.dumps({"task_id": task}), json.dumps({"task_id": "another"})]
        for text in texts:
            peer.say(text)
        for text in texts:
            assert client.read_frame().text == text
        gateway.process.wait_for_line(rf'input_\d+ = task learned task="{task}"')
        client.say("second")
        peer.read_frame()
        peer.vanish()
        client.read_close()
        client.half_close()
        gateway.process.wait_for_line(rf'input_\d+ closed reason=backend_vanished .*task="{task}"')
        closed = gateway.get("/connections/closed").json()["closed"]
        assert closed[0]["task_id"] == task
        if level == "info":
            gateway.process.wait_for_line(rf'input_\d+ ~ before_end=\S+ client>backend text len=6 fin=true task="{task}"')


def test_without_learn_task_no_message_is_looked_into(lab):
    backend = lab.backend()
    gateway = lab.gateway(backend=backend.url())
    client, peer = lab.pair(gateway, backend)
    peer.say(json.dumps({"task_id": new_task()}))
    client.read_frame()
    peer.vanish()
    client.read_close()
    client.half_close()
    line = gateway.process.wait_for_line(r"input_\d+ closed .*").group(0)
    assert "task=" not in line
