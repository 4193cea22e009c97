"""`/metrics` as Prometheus and Grafana see it: promtool's opinion, the alerts and the dashboard of `contrib/`, what moves what."""

import json
import pathlib
import re
import signal
import subprocess

from gatewaylab import PATIENCE, TARGET
from gatewaylab.gateway import route
from gatewaylab.results import is_waiting, new_task, status_with_timeline
from gatewaylab.wire import closed_port, eventually

CONTRIB = pathlib.Path(__file__).parents[2] / "contrib"
PREFIX = "aivtuber_gateway_"


def promtool(*args, stdin=None):
    done = subprocess.run(["promtool", *map(str, args)], input=stdin, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0 and not done.stderr, done.stdout + done.stderr
    return done.stdout


def sample(gateway, name, **labels):
    return gateway.metrics().samples.get((PREFIX + name, tuple(sorted(labels.items()))))


def busy(lab, results):
    """A gateway that has relayed, delivered, refused and failed."""
    backend = lab.backend()
    routes = [route(backend=backend.url()), route("sick", "/ws/sick", backend=f"ws://127.0.0.1:{closed_port()}/")]
    gateway, inbox = results.embedded(routes=routes)
    client, peer = lab.pair(gateway, backend)
    client.say("hello")
    assert peer.read_frame().text == "hello"
    client.close_frame(1000)
    peer.read_close()
    peer.close_frame(1000)
    client.read_close()
    peer.half_close()
    client.half_close()
    client = lab.client(gateway)
    client.upgrade("/ws/sick")
    client.read_switch()
    assert client.read_close().code == 1011
    client.half_close()
    results.write("a.wav", bytes(1000))
    task = new_task()
    waiter = results.wait(gateway, task)
    is_waiting(gateway, task)
    inbox.publish(task, text="hi", audio_file="a.wav")
    waiter.result()
    waiter.done()
    gateway.process.wait_for_line(f"closed reason=delivered .*task={task}")
    return gateway, task


def test_promtool_finds_nothing_to_complain_about(lab, results):
    gateway, _ = busy(lab, results)
    promtool("check", "metrics", stdin=gateway.get("/metrics").body.decode())
    idle = lab.gateway(backend=f"ws://127.0.0.1:{closed_port()}/")
    promtool("check", "metrics", stdin=idle.get("/metrics").body.decode())


def test_what_happens_moves_its_metric(lab, results):
    gateway, _ = busy(lab, results)
    of_tasks = ["publish_to_text_seconds", "publish_to_first_audio_seconds", "connect_to_result_seconds"]
    for name in ["dial_seconds", "handshake_seconds", *of_tasks]:
        assert sample(gateway, f"{name}_count") == 1, name
        assert sample(gateway, f"{name}_bucket", le="+Inf") == 1, name
        assert 0 <= sample(gateway, f"{name}_sum") < PATIENCE, name
    assert sample(gateway, "messages_total", route="input", direction="from_client", opcode="text") == 1
    assert sample(gateway, "messages_total", route="input", direction="to_client", opcode="close") == 1
    assert sample(gateway, "messages_total", route="output", direction="to_client", opcode="binary") == 1
    assert sample(gateway, "messages_total", route="output", direction="to_client", opcode="text") == 3
    assert sample(gateway, "results_without_audio_total") == 0
    sick = [labels for (name, labels), value in gateway.metrics().samples.items() if name == f"{PREFIX}backend_state" and value == 1]
    assert sorted(dict(labels)["state"] for labels in sick) == ["failed", "ok"]
    # The connection that asked may have been closed since.
    assert gateway.metrics().samples[("process_open_fds", ())] - gateway.descriptors() in (0, 1)
    assert gateway.metrics().samples[("process_resident_memory_bytes", ())] > 1_000_000
    eventually(lambda: sample(gateway, "turn_seconds_count") > 0 or gateway.get("/health"), "turns are sampled")


def test_lag_of_the_loop_and_turns_are_measured(lab):
    backend = lab.backend()
    gateway = lab.gateway({"proxy": {"ping_interval": "100ms", "ping_timeout": "0s"}}, backend=backend.url())
    lab.pair(gateway, backend)
    eventually(lambda: sample(gateway, "loop_lag_seconds_count") > 0, "a deadline is late by something")
    eventually(lambda: sample(gateway, "turn_seconds_count") > 0, "one turn in 64 is measured")


def test_last_reload_is_a_metric(lab):
    config = {"route": [route(backend=f"ws://127.0.0.1:{closed_port()}/")]}
    gateway = lab.gateway(config)
    assert sample(gateway, "config_last_reload_successful") == 1
    gateway.configure("nonsense = 1")
    gateway.signal(signal.SIGHUP)
    eventually(lambda: sample(gateway, "config_last_reload_successful") == 0, "the bad one is noticed")
    gateway.configure(config)
    gateway.signal(signal.SIGHUP)
    eventually(lambda: sample(gateway, "config_last_reload_successful") == 1, "the good one is in use")
    assert (sample(gateway, "config_reloads_total", result="ok"), sample(gateway, "config_reloads_total", result="failed")) == (1, 1)


def test_missing_audio_is_counted_by_result(results):
    gateway, inbox = results.embedded(output={"audio_wait": "0s"})
    task = new_task()
    inbox.publish(task, text="hi", audio_file="missing.wav")
    waiter = results.wait(gateway, task)
    waiter.message()
    waiter.message()
    waiter.done()
    assert sample(gateway, "results_without_audio_total") == 1


def test_alerts_fire_when_they_should_and_only_then():
    promtool("check", "rules", CONTRIB / "prometheus" / "alerts.yml")
    promtool("test", "rules", CONTRIB / "prometheus" / "alerts_test.yml")


def test_dashboard_is_what_grafana_takes(tmp_path):
    """By the types that Grafana publishes (`@grafana/schema`), without a field that they do not know."""
    file = CONTRIB / "grafana" / "dashboard.json"

    def check(dashboard):
        command = ["node", TARGET / "interop" / "grafana" / "check.mjs", dashboard]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    done = check(file)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    wrong = tmp_path / "wrong.json"
    wrong.write_text(file.read_text().replace('"gridPos"', '"gridPosition"', 1))
    done = check(wrong)
    assert done.returncode == 1 and "gridPosition" in done.stdout, done.stdout + done.stderr


def test_alerts_and_dashboard_use_metrics_that_exist(lab, results):
    gateway, _ = busy(lab, results)
    types = gateway.metrics().types
    known = set(types) | {f"{name}_{part}" for name, kind in types.items() if kind == "histogram" for part in ("bucket", "sum", "count")}
    dashboard = json.loads((CONTRIB / "grafana" / "dashboard.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert len(expressions) > 20
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    text = "\n".join(expressions) + (CONTRIB / "prometheus" / "alerts.yml").read_text()
    used = set(re.findall(rf"\b(?:{PREFIX}|process_)\w+", text))
    assert len(used) > 25 and used <= known, used - known


def test_timeline_of_a_task(lab, results):
    """`timeline` in `/status`: milliseconds since the task was first known."""
    gateway, task = busy(lab, results)
    timeline = status_with_timeline(gateway, task)["timeline"]
    assert list(timeline) == ["connected", "published", "text_sent", "first_audio", "last_audio", "completed"]
    assert timeline["connected"] == 0
    assert list(timeline.values()) == sorted(timeline.values())
    again = results.wait(gateway, task)
    again.result()
    again.done()
    eventually(lambda: "resumed" in status_with_timeline(gateway, task)["timeline"], "the return is in it")
    assert "timeline" not in status_with_timeline(gateway, new_task())
    waiter = results.wait(gateway, other := new_task())
    is_waiting(gateway, other)
    waiter.say('{"type":"control","action":"STOP"}')
    assert waiter.message()["action"] == "STOP_ACK"
    waiter.done(1000, "stopped")
    assert list(status_with_timeline(gateway, other)["timeline"]) == ["connected", "stopped"]


def test_timeline_of_a_task_without_a_result(results):
    gateway, _ = results.embedded(output={"timeout": "200ms"})
    waiter = results.wait(gateway, task := new_task())
    waiter.message()
    waiter.done(4008, "processing timeout")
    found = eventually(lambda: status_with_timeline(gateway, task).get("timeline", {}).get("timeout"), "the timeout is in it")
    assert found >= 200
