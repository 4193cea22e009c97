"""Flags, the configuration file, the environment and exit statuses."""

import json
import re
import threading
import tomllib

import pytest

from gatewaylab import ROOT
from gatewaylab.gateway import route, run, toml
from gatewaylab.wire import Backend, closed_port

VERSION = tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]["version"]

FLAGS = ["--config", "--listen", "--redis", "--log-level", "--log-file", "--check", "--print-config"]


def written(tmp_path, text):
    file = tmp_path / "config.toml"
    file.write_text(text if isinstance(text, str) else toml(text))
    return file


def printed(tmp_path, *args, env=None):
    """The effective configuration, parsed."""
    done = run("--print-config", *args, env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    return tomllib.loads(done.stdout)


@pytest.mark.parametrize("flag", ["-V", "--version"])
def test_version(flag):
    """`-V` prints name and version; exit status 0."""
    done = run(flag)
    assert (done.returncode, done.stdout) == (0, f"aivtuber-gateway {VERSION}\n")


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_names_every_flag_and_command(flag):
    """`-h` prints the flags; exit status 0."""
    done = run(flag)
    assert done.returncode == 0
    for word in [*FLAGS, "demo", "healthcheck"]:
        assert word in done.stdout


@pytest.mark.parametrize("args", [["--nonsense"], ["nonsense"], ["--listen"], ["--log-level", "loud"], ["--check=yes"]])
def test_bad_usage_exits_with_2(tmp_path, args):
    """Bad usage or configuration: exit status 2, the error on standard error, nothing on standard output."""
    done = run(*args, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.strip() and not done.stdout


def test_mistyped_flag_gets_a_suggestion(tmp_path):
    """Errors name what is wrong and what is allowed."""
    done = run("--lisen", "127.0.0.1:0", cwd=tmp_path)
    assert done.returncode == 2
    assert "--listen" in done.stderr


def test_good_configuration_passes_check(tmp_path):
    """`--check`: exit status 0, and nothing is started."""
    file = written(tmp_path, {"server": {"listen": ["127.0.0.1:0"]}, "route": [route(backend="ws://127.0.0.1:9/")]})
    assert run("--check", "--config", file).returncode == 0
    assert run("--check", "-c", file).returncode == 0


def test_project_config_passes_check_and_has_the_defaults(tmp_path):
    """Every key is optional, and `config.toml` shows the defaults."""
    done = run("--check", "--config", ROOT / "config.toml")
    assert done.returncode == 0, done.stderr
    assert printed(tmp_path, "--config", ROOT / "config.toml") == printed(tmp_path)


BAD = {
    "an unknown key": ("[server]\n\nlissten = ['127.0.0.1:0']\n", 3, "lissten", "listen"),
    "an unknown section": ("[log]\n[proxi]\nping_interval = '1s'\n", 2, "proxi", "proxy"),
    "a wrong type": ("[server]\nmax_connections = 'many'\n", 2, "max_connections", "number"),
    "out of range": ("[server]\nmax_connections = -1\n", 2, "max_connections", "-1"),
    "a bad duration": ("[proxy]\nconnect_timeout = '5 bananas'\n", 2, "connect_timeout", "5 bananas"),
    "a bad size": ("[proxy]\nmax_message = '1 XiB'\n", 2, "max_message", "1 XiB"),
    "a bad word": ("[proxy]\non_backend_failure = 'htpp'\n", 2, "on_backend_failure", "http"),
    "a bad address": ("[server]\nlisten = ['nowhere']\n", 2, "listen", "nowhere"),
    "a bad level": ("[log]\nlevel = 'warning'\n", 2, "level", "warn"),
    "a bad URL": ("[[route]]\nname='a'\npath='/a'\nbackend='ftp://x/'\n", 4, "backend", "ws://"),
    "a name that is not in the path": ("[[route]]\nname='a'\npath='/a'\nbackend='ws://x/{task}'\n", 1, "backend", "task"),
    "a route twice": (
        "[[route]]\nname='a'\npath='/a'\nbackend='ws://x/'\n[[route]]\nname='a'\npath='/b'\nbackend='ws://x/'\n",
        5,
        "name",
        "a",
    ),
    "no TOML": ("[server\nlisten = 1\n", 1, "", ""),
}


@pytest.mark.parametrize("text, line, key, hint", BAD.values(), ids=BAD.keys())
@pytest.mark.parametrize("how", [["--check"], []], ids=["check", "start"])
def test_configuration_error_names_file_line_key_and_nearest_name(tmp_path, text, line, key, hint, how):
    """An unknown key, a wrong type or a value out of range is an error that names file, line, key and the nearest right name.
    Nothing is started; exit status 2."""
    file = written(tmp_path, text)
    done = run(*how, "--config", file, cwd=tmp_path)
    assert done.returncode == 2
    assert re.search(rf"config\.toml\D{{1,7}}{line}\b", done.stderr), done.stderr
    assert key in done.stderr
    assert hint in done.stderr


def test_all_configuration_errors_are_reported_at_once(tmp_path):
    """Two mistakes are both reported."""
    file = written(tmp_path, "[server]\nlissten = []\n[log]\nlevel = 'loud'\n")
    done = run("--check", "--config", file)
    assert "lissten" in done.stderr and "loud" in done.stderr


def test_missing_configuration_file_exits_with_2(tmp_path):
    """`--config FILE`: the named file must exist."""
    done = run("--check", "--config", tmp_path / "absent.toml")
    assert done.returncode == 2
    assert "absent.toml" in done.stderr


def test_print_config_round_trips(tmp_path):
    """What `--print-config` prints is a configuration with the same meaning."""
    file = written(
        tmp_path,
        {
            "server": {"listen": ["127.0.0.1:8123"], "max_connections": 77, "allowed_origins": ["https://a.example"]},
            "proxy": {"connect_timeout": "1500ms", "max_message": "3MiB", "on_backend_failure": "http"},
            "route": [
                route(backend=["ws://one.example:8001/in", "ws://two.example/in"], host="h.example"),
                route("output", "/o/{task_id}", backend="ws://three.example/{task_id}"),
            ],
            "log": {"level": "warn", "format": "json", "keep": 3},
        },
    )
    first = run("--print-config", "--config", file, cwd=tmp_path)
    assert first.returncode == 0
    again = tmp_path / "again.toml"
    again.write_text(first.stdout)
    second = run("--print-config", "--config", again, cwd=tmp_path)
    assert second.stdout == first.stdout
    config = tomllib.loads(first.stdout)
    assert config["server"]["max_connections"] == 77
    assert config["log"]["format"] == "json"
    assert [one["name"] for one in config["route"]] == ["input", "output"]
    assert config["route"][0]["host"] == "h.example"


def test_defaults_are_those_of_the_contract(tmp_path):
    """Every default that has only one spelling."""
    config = printed(tmp_path)
    assert config["server"]["listen"] == ["0.0.0.0:8000"]
    assert config["server"]["max_connections"] == 10000
    assert config["server"]["max_connections_per_ip"] == 0
    assert config["server"]["allowed_origins"] == []
    assert config["proxy"]["on_backend_failure"] == "close"
    assert config["log"]["level"] == "info"
    assert config["log"]["format"] == "text"
    assert config["log"]["keep"] == 5
    routes = {one["name"]: one for one in config["route"]}
    assert routes["input"]["path"] == "/ws/input"
    assert "ws://localhost:8001/ws/input" in routes["input"]["backend"]
    assert routes["output"]["path"] == "/ws/output/{task_id}"


def test_file_is_looked_for_in_the_working_folder(tmp_path):
    """Without `--config`: `./config.toml`, then `/etc/aivtuber-gateway/config.toml`, then the defaults."""
    assert printed(tmp_path)["server"]["max_connections"] == 10000
    written(tmp_path, "[server]\nmax_connections = 5\n")
    assert printed(tmp_path)["server"]["max_connections"] == 5


def test_flags_win_over_the_environment_and_that_over_the_file(tmp_path):
    """Precedence: flag, environment, file, default."""
    file = written(tmp_path, "[log]\nlevel = 'error'\n[redis]\nurl = 'redis://file:1'\n[server]\nlisten = ['127.0.0.1:1']\n")
    env = {"AIVTUBER_GATEWAY_LOG": "warn", "REDIS_URL": "redis://environment:2"}

    assert printed(tmp_path, "-c", file)["log"]["level"] == "error"
    from_env = printed(tmp_path, "-c", file, env=env)
    assert from_env["log"]["level"] == "warn"
    assert "environment:2" in str(from_env["redis"]["url"])
    flags = ["--log-level", "debug", "--redis", "redis://flag:3", "-l", "127.0.0.1:4", "--log-file", "x.log"]
    from_flags = printed(tmp_path, "-c", file, *flags, env=env)
    assert from_flags["log"]["level"] == "debug"
    assert "flag:3" in str(from_flags["redis"]["url"])
    assert from_flags["server"]["listen"] == ["127.0.0.1:4"]
    assert from_flags["log"]["file"].endswith("x.log")


def test_environment_of_the_old_installation(tmp_path):
    """`INPUT_HANDLER_URL`; `OUTPUT_HANDLER_URL`, which relays that route; `REDIS_HOST` with `REDIS_PORT`."""
    env = {
        "INPUT_HANDLER_URL": "ws://in.example:1/ws/input",
        "OUTPUT_HANDLER_URL": "ws://out.example:2/ws/output/{task_id}",
        "REDIS_HOST": "cache.example",
        "REDIS_PORT": "6390",
    }
    config = printed(tmp_path, env=env)
    routes = {one["name"]: one for one in config["route"]}
    assert "ws://in.example:1/ws/input" in json.dumps(routes["input"]["backend"])
    assert "ws://out.example:2/" in json.dumps(routes["output"]["backend"])
    assert "serve" not in routes["output"]
    assert "cache.example:6390" in str(config["redis"]["url"])


def test_bad_environment_exits_with_2_and_names_the_variable(tmp_path):
    """Bad configuration in any file or flag: exit status 2."""
    done = run("--check", env={"INPUT_HANDLER_URL": "nonsense"}, cwd=tmp_path)
    assert done.returncode == 2
    assert "INPUT_HANDLER_URL" in done.stderr


def test_relays_to_input_handler_url(lab):
    """The settings are not only printed: they are used."""
    backend = lab.backend()
    gateway = lab.gateway(backend="ws://127.0.0.1:9/", env={"INPUT_HANDLER_URL": backend.url()})
    client, peer = lab.pair(gateway, backend)
    client.say("came here")
    assert peer.read_frame().text == "came here"


def test_several_listeners(lab):
    """`listen` with several addresses: each has its line in the log, and serves."""
    gateway = lab.gateway({"server": {"listen": ["127.0.0.1:0", "[::1]:0"]}, "route": [route(backend="ws://127.0.0.1:9/")]})
    other = int(gateway.process.wait_for_line(r"listening\b.*\[::1\]:(\d+)").group(1))
    first = int(gateway.process.wait_for_line(r"listening\b.*127\.0\.0\.1:(\d+)").group(1))
    assert lab.client(first).get("/ready").status == 200
    assert lab.client(other, host="::1").get("/ready").status == 200
    gateway.port = first


def test_listen_flags_replace_those_in_the_file(lab):
    """`--listen` overrides the file."""
    taken = Backend()
    config = {"server": {"listen": [f"127.0.0.1:{taken.port}"]}, "route": [route(backend="ws://127.0.0.1:9/")]}
    gateway = lab.gateway(config, args=["--listen", "127.0.0.1:0"])
    taken.stop()
    assert gateway.get("/ready").status == 200


def test_port_in_use_exits_with_1_and_is_named(tmp_path):
    """Any other failure: exit status 1. One about a port that is taken names the port."""
    taken = Backend()
    file = written(tmp_path, {"server": {"listen": [f"127.0.0.1:{taken.port}"]}, "route": [route(backend="ws://127.0.0.1:9/")]})
    done = run("--config", file)
    taken.stop()
    assert done.returncode == 1
    assert str(taken.port) in done.stderr


def test_healthcheck_asks_a_running_gateway(lab, tmp_path):
    """`healthcheck` asks a running gateway's `/health`; exit status 0 or 1."""
    gateway = lab.gateway(backend="ws://127.0.0.1:9/")
    assert run("healthcheck", "--listen", f"127.0.0.1:{gateway.port}", cwd=tmp_path).returncode == 0
    assert run("healthcheck", "--listen", f"127.0.0.1:{closed_port()}", cwd=tmp_path).returncode == 1

    # As in a container: the address comes from the same file that the gateway reads.
    file = written(tmp_path, {"server": {"listen": [f"0.0.0.0:{gateway.port}"]}, "route": [route(backend="ws://127.0.0.1:9/")]})
    assert run("healthcheck", "--config", file).returncode == 0


def test_healthcheck_fails_for_another_server(lab, tmp_path):
    """`healthcheck`: a port that answers, but not as a gateway, is not healthy."""
    backend = lab.backend()
    def other():
        peer = backend.accept()
        peer.read_head()
        peer.send(b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n")
        peer.half_close()

    threading.Thread(target=other, daemon=True).start()
    assert run("healthcheck", "--listen", f"127.0.0.1:{backend.port}", cwd=tmp_path).returncode == 1
