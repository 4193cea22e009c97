"""`aivtuber-gateway doctor`: everything is tried for real, each failure has a row that says what to do, and the exit status."""

import http.server
import json
import os
import signal
import socket
import subprocess
import threading

import pytest

from gatewaylab.certificates import Authority, openssl
from gatewaylab.gateway import BINARY, clean_env, low_descriptor_limit, route, run, toml
from gatewaylab.redis_server import RedisServer
from gatewaylab.wire import closed_port

OUTPUT = route("output", "/ws/output/{task_id}", serve="output")


class Doctor:
    """Runs the command with a configuration, which lacks nothing but what the test takes away."""

    def __init__(self, folder):
        self.folder = folder

    def run(self, config, **options):
        server = {"listen": ["127.0.0.1:0"], **config.pop("server", {})}
        file = self.folder / "config.toml"
        text = toml({"server": server, **config})
        file.write_text(text if config.get("route") else "route = []\n" + text)
        command = [str(BINARY), "doctor", "--config", str(file), "--json"]
        done = subprocess.run(command, env=clean_env(), capture_output=True, text=True, cwd=self.folder, timeout=60, **options)
        assert not done.stderr, done.stderr
        report = json.loads(done.stdout)
        assert done.returncode == (1 if report["state"] == "fail" else 0)
        for row in report["rows"]:
            assert list(row) == ["name", "state", "detail", "advice"]
            assert (row["state"] == "ok") == (row["advice"] == ""), row
        return report["rows"]

    def row(self, name, config, **options):
        """The one row with this name."""
        rows = self.run(config, **options)
        found = [row for row in rows if row["name"] == name]
        assert len(found) == 1, rows
        return found[0]


@pytest.fixture
def doctor(tmp_path):
    return Doctor(tmp_path)


@pytest.fixture
def redis_server(tmp_path):
    server = RedisServer(tmp_path)
    yield server
    server.stop()


def expect(row, state, *words):
    assert row["state"] == state, row
    for word in words:
        assert word in row["detail"] + " → " + row["advice"], row


def relay(url, **keys):
    return {"route": [route(backend=url, **keys)]}


# ---- all is well


def test_everything_works(doctor, redis_server, library_backend, tmp_path):
    """Backend, Redis, audio folder, log, port, descriptors and clock are fine: exit status 0, and nothing is left behind."""
    audio = tmp_path / "audio"
    audio.mkdir()
    (audio / "old.wav").write_bytes(b"RIFF")
    (audio / "new.wav").write_bytes(b"RIFF")
    os.utime(audio / "old.wav", (1, 1))
    config = {
        "route": [route(backend=library_backend.url()), OUTPUT],
        "output": {"audio_root": str(audio)},
        "redis": {"url": redis_server.url},
        "log": {"file": str(tmp_path / "gateway.log")},
        "server": {"max_connections": 10},
    }
    rows = doctor.run(config)
    assert {row["state"] for row in rows} == {"ok"}, rows
    found = {row["name"]: row["detail"] for row in rows}
    assert "has upgraded" in found["backend input"]
    assert "came through" in found["redis"]
    assert "new.wav was read, the newest of 2 files" in found["audio folder"]
    assert redis_server.client().keys("*") == []
    assert not (tmp_path / "gateway.log").exists()
    assert sorted(file.name for file in tmp_path.iterdir() if file.name.startswith(".doctor")) == []


def test_table_for_people(tmp_path, library_backend):
    """Without `--json`: a table with what to do below each failure, and a sum."""
    port = closed_port()
    (tmp_path / "config.toml").write_text(
        toml(
            {
                "server": {"listen": ["127.0.0.1:0"], "max_connections": 10},
                "route": [route(backend=[library_backend.url(), f"ws://127.0.0.1:{port}/"])],
            }
        )
    )
    done = run("doctor", cwd=tmp_path)
    assert done.returncode == 1
    assert "ok    backend input" in done.stdout
    assert f"FAIL  backend input  ws://127.0.0.1:{port}/: connection refused (127.0.0.1:{port})" in done.stdout
    assert "→ start the backend" in done.stdout
    assert done.stdout.endswith("\n1 failure.\n")


def test_a_running_gateway_of_the_same_configuration_is_fine(lab, doctor, library_backend):
    """A port that the running gateway of the same configuration holds is fine, and what it says about itself is a row."""
    gateway = lab.gateway(backend=library_backend.url())
    config = {**relay(library_backend.url()), "server": {"listen": [f"127.0.0.1:{gateway.port}"]}}
    rows = doctor.run(config)
    found = {row["name"]: row for row in rows}
    expect(found[f"port {gateway.port}"], "ok", "held by the running gateway")
    expect(found["gateway"], "ok", "is running, 0 WebSockets are open")


def test_a_degraded_gateway_is_a_warning(lab, doctor):
    gateway = lab.gateway(backend=f"ws://127.0.0.1:{closed_port()}/")
    client = lab.client(gateway)
    client.upgrade()
    client.read_switch()
    client.read_close()
    row = doctor.row("gateway", {**relay("ws://127.0.0.1:9/"), "server": {"listen": [f"127.0.0.1:{gateway.port}"]}})
    expect(row, "warn", "degraded: input: ws://127.0.0.1", "connection refused")


def test_a_gateway_that_takes_doctor_for_a_stranger_names_the_cure(lab, doctor):
    gateway = lab.gateway({"server": {"admin_from": ["192.0.2.1"]}}, backend="ws://127.0.0.1:9/")
    row = doctor.row("gateway", {**relay("ws://127.0.0.1:9/"), "server": {"listen": [f"127.0.0.1:{gateway.port}"]}})
    expect(row, "warn", "stranger", "admin_listen")


# ---- ports


def test_port_that_another_program_holds(doctor, lab):
    backend = lab.backend()
    row = doctor.row(f"port {backend.port}", {"server": {"listen": [f"127.0.0.1:{backend.port}"]}})
    expect(row, "fail", "held by another program", f"sport = :{backend.port}")


def test_port_that_a_gateway_with_other_routes_holds(doctor, lab):
    gateway = lab.gateway({"route": [route("other", backend="ws://127.0.0.1:9/")]})
    row = doctor.row(f"port {gateway.port}", {**relay("ws://127.0.0.1:9/"), "server": {"listen": [f"127.0.0.1:{gateway.port}"]}})
    expect(row, "fail", "a gateway with other routes")


def test_address_of_another_machine(doctor):
    row = doctor.row("port 8123", {"server": {"listen": ["192.0.2.1:8123"]}})
    expect(row, "fail", "Cannot assign requested address", "an address of this machine")


def test_inbox_of_the_running_gateway_takes_a_message(results, doctor):
    gateway, inbox = results.embedded()
    row = doctor.row(f"inbox {inbox.port}", {"route": [OUTPUT], "redis": {"url": f"embedded://127.0.0.1:{inbox.port}"}})
    expect(row, "ok", "took a message")
    assert gateway.get("/health").json()["status"] == "ok"


def test_port_of_the_inbox_that_another_program_holds(doctor):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        threading.Thread(target=lambda: server.accept()[0].sendall(b"hello\r\n"), daemon=True).start()
        row = doctor.row(f"inbox {port}", {"route": [OUTPUT], "redis": {"url": f"embedded://127.0.0.1:{port}"}})
    expect(row, "fail", "is not the gateway's inbox", "redis.url")


# ---- backends


def test_backend_that_is_away(doctor):
    expect(doctor.row("backend input", relay(f"ws://127.0.0.1:{closed_port()}/")), "fail", "connection refused", "start the backend")


def test_backend_whose_name_is_not_found(doctor):
    row = doctor.row("backend input", relay("ws://no-such-host.invalid/"))
    expect(row, "fail", "the name no-such-host.invalid is not found", "correct the name")


def test_backend_that_does_not_answer(doctor):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        config = {**relay(f"ws://127.0.0.1:{silent.getsockname()[1]}/"), "proxy": {"handshake_timeout": "200ms"}}
        expect(doctor.row("backend input", config), "fail", "not answered in time", "hangs")


class Answering(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(self.server.status)
        if self.server.date:
            self._headers_buffer = [line for line in self._headers_buffer if not line.startswith(b"Date:")]
            self.send_header("Date", self.server.date)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def answering():
    """Starts an HTTP server that answers each request with this status."""
    started = []

    def start(status, date=None):
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answering)
        server.status, server.date = status, date
        threading.Thread(target=server.serve_forever, daemon=True).start()
        started.append(server)
        return f"ws://127.0.0.1:{server.server_port}"

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    "status, state, words",
    [
        (404, "fail", "check the path"),
        (200, "fail", "check the path"),
        (503, "fail", "cannot serve at the moment"),
        (401, "warn", "credentials"),
        (403, "warn", "credentials"),
    ],
)
def test_backend_that_refuses(doctor, answering, status, state, words):
    expect(doctor.row("backend input", relay(answering(status) + "/x")), state, f"with {status} ", words)


def test_backend_that_knows_no_such_task(doctor, answering):
    routes = [route("output", "/ws/output/{task_id}", backend=answering(404) + "/{task_id}")]
    expect(doctor.row("backend output", {"route": routes}), "warn", "with 404", "nil UUID")


def test_backend_that_speaks_something_else(doctor):
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=lambda: server.accept()[0].sendall(b"220 mail.example\r\n\r\n"), daemon=True).start()
        row = doctor.row("backend input", relay(f"ws://127.0.0.1:{server.getsockname()[1]}/"))
    expect(row, "fail", "not HTTP/1", "a WebSocket server at all")


def test_backend_that_closes_without_an_answer(doctor):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up():
            peer, _ = server.accept()
            peer.recv(65536)
            peer.close()

        threading.Thread(target=hang_up, daemon=True).start()
        row = doctor.row("backend input", relay(f"ws://127.0.0.1:{server.getsockname()[1]}/"))
    expect(row, "fail", "without an answer", "own log")


def test_backend_whose_certificate_is_not_trusted(doctor, lab, tmp_path):
    import ssl

    authority = Authority(tmp_path / "ca")
    pem, key = authority.certify("localhost")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pem, key)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            for _ in range(2):
                try:
                    context.wrap_socket(server.accept()[0], server_side=True).recv(1)
                except OSError:
                    pass

        threading.Thread(target=serve, daemon=True).start()
        config = relay(f"wss://127.0.0.1:{server.getsockname()[1]}/")
        expect(doctor.row("backend input", config), "fail", "not trusted", "[tls] ca")


def test_backend_without_tls_behind_wss(doctor, answering):
    url = answering(200).replace("ws://", "wss://") + "/"
    expect(doctor.row("backend input", relay(url)), "fail", "`ws://` in place of `wss://`")


# ---- Redis


def results_from(url, **redis):
    return {"route": [OUTPUT], "redis": {"url": url, **redis}}


def test_redis_that_is_away(doctor):
    row = doctor.row("redis", results_from(f"redis://127.0.0.1:{closed_port()}"))
    expect(row, "fail", "Connection refused", "start Redis")


def test_redis_with_a_password(doctor, redis_server):
    redis_server.client().config_set("requirepass", "secret")
    port = redis_server.port
    expect(doctor.row("redis", results_from(redis_server.url)), "fail", "NOAUTH", "redis.password_file")
    expect(doctor.row("redis", results_from(f"redis://:wrong@127.0.0.1:{port}")), "fail", "WRONGPASS", "redis.password_file")
    row = doctor.row("redis", results_from(f"redis://:secret@127.0.0.1:{port}"))
    expect(row, "ok", "came through")
    assert "secret" not in str(row)


RIGHTS = (
    "resetchannels &task_response:* &task_control:* ~task_response* -@all +psubscribe +subscribe +unsubscribe +publish +exists "
    "+evalsha +script|load +hget +hset +hmget +hdel +hstrlen +mget +pexpire +unlink +time +ping +role +auth +hello +select "
    "+client|setname"
)


def test_rights_that_the_manual_lists_are_enough(doctor, redis_server):
    """docs/operations.md lists what a Redis user needs: doctor needs no more."""
    redis_server.client().execute_command(f"ACL SETUSER gateway on >secret {RIGHTS}")
    rows = doctor.run(results_from(f"redis://gateway:secret@127.0.0.1:{redis_server.port}"))
    states = {row["name"]: row["state"] for row in rows if row["name"].startswith("redis")}
    assert states == {"redis": "ok", "redis keeps": "ok", "redis control": "ok"}, rows


@pytest.mark.parametrize(
    "missing, name, state, words",
    [
        ("&task_response:*", "redis", "fail", "NOPERM"),
        ("+psubscribe", "redis", "fail", "NOPERM"),
        ("+hset", "redis keeps", "fail", "NOPERM"),
        ("~task_response*", "redis keeps", "fail", "NOPERM"),
        ("&task_control:*", "redis control", "warn", "STOP, LEFT and BACK stay within one gateway"),
    ],
)
def test_right_that_is_missing(doctor, redis_server, missing, name, state, words):
    rights = " ".join(word for word in RIGHTS.split() if word != missing)
    redis_server.client().execute_command(f"ACL SETUSER gateway on >secret {rights}")
    expect(doctor.row(name, results_from(f"redis://gateway:secret@127.0.0.1:{redis_server.port}")), state, words)


def test_redis_with_tls(doctor, tmp_path):
    """`rediss://`: verified with `[tls] ca`, by its name."""
    authority = Authority(tmp_path / "authority")
    pem, key = authority.certify("localhost")
    port = closed_port()
    options = ["--tls-port", port, "--tls-cert-file", pem, "--tls-key-file", key, "--tls-ca-cert-file", authority.pem]
    server = RedisServer(tmp_path, [*options, "--tls-auth-clients", "no"])
    try:
        known = {"tls": {"ca": str(authority.pem)}}
        rows = {row["name"]: row for row in doctor.run({**known, **results_from(f"rediss://localhost:{port}")})}
        assert [rows[name]["state"] for name in ("redis", "redis keeps", "redis control")] == ["ok"] * 3, rows
        assert server.client().keys("*") == []
        row = doctor.row("redis", results_from(f"rediss://localhost:{port}"))
        expect(row, "fail", "certificate", "ca")
        row = doctor.row("redis", {**known, **results_from(f"rediss://127.0.0.1:{port}")})
        expect(row, "fail", "certificate")
        row = doctor.row("redis", {**known, **results_from(f"rediss://localhost:{server.port}")})
        expect(row, "fail", "")
    finally:
        server.stop()


def test_redis_that_is_full(doctor, redis_server):
    redis_server.client().config_set("maxmemory", "1")
    expect(doctor.row("redis keeps", results_from(redis_server.url)), "fail", "OOM", "maxmemory")


def test_redis_that_is_a_replica(doctor, redis_server):
    redis_server.client().replicaof("127.0.0.1", closed_port())
    row = doctor.row("redis keeps", results_from(redis_server.url))
    expect(row, "fail", "replica")


def test_redis_that_hangs(doctor, redis_server):
    redis_server.process.signal(signal.SIGSTOP)
    try:
        expect(doctor.row("redis", results_from(redis_server.url)), "fail", "no answer in time")
    finally:
        redis_server.process.signal(signal.SIGCONT)


def test_port_of_redis_with_another_server(doctor, answering):
    url = answering(200).replace("ws://", "redis://")
    expect(doctor.row("redis", results_from(url)), "fail", "redis.url")


# ---- files


def with_audio(folder):
    return {"route": [OUTPUT], "output": {"audio_root": str(folder)}, "redis": {"url": "embedded://127.0.0.1:0"}}


def test_audio_folder_that_is_missing(doctor, tmp_path):
    expect(doctor.row("audio folder", with_audio(tmp_path / "nowhere")), "fail", "No such file or directory", "output.audio_root")


def test_audio_folder_that_is_a_file(doctor, tmp_path):
    (tmp_path / "file").write_text("")
    expect(doctor.row("audio folder", with_audio(tmp_path / "file")), "fail", "Not a directory", "output.audio_root")


def unprivileged():
    """For `preexec_fn`: a user that is nobody's."""
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)


@pytest.fixture
def stranger_sees(tmp_path):
    """The test's folders are open to other users, so that only what the test closes is closed."""
    for folder in [tmp_path, *tmp_path.parents]:
        if folder.owner() == "root" and str(folder).startswith("/tmp/"):
            folder.chmod(0o755)


def test_audio_folder_that_is_closed_to_the_user(doctor, tmp_path, stranger_sees):
    folder = tmp_path / "audio"
    folder.mkdir(mode=0o700)
    row = doctor.row("audio folder", with_audio(folder), preexec_fn=unprivileged)
    expect(row, "fail", "Permission denied", "let the gateway's user into it")


def test_audio_file_that_is_closed_to_the_user(doctor, tmp_path, stranger_sees):
    folder = tmp_path / "audio"
    folder.mkdir()
    (folder / "a.wav").write_bytes(b"RIFF")
    (folder / "a.wav").chmod(0o600)
    row = doctor.row("audio folder", with_audio(folder), preexec_fn=unprivileged)
    expect(row, "fail", "a.wav, the newest file, cannot be read", "umask")


def test_folder_for_speech_that_is_missing(doctor, tmp_path):
    config = {"route": [route("ingest", "/ws/ingest", serve="ingest")], "output": {"spool": str(tmp_path / "nowhere")}}
    expect(doctor.row("speech folder", config), "fail", "no file can be written", "output.spool")
    config["output"]["spool"] = str(tmp_path)
    expect(doctor.row("speech folder", config), "ok", "a file was")


def test_log_whose_folder_is_missing(doctor, tmp_path):
    """The gateway makes it, unless a file is in its place."""
    expect(doctor.row("log", {"log": {"file": str(tmp_path / "nowhere" / "x.log")}}), "ok", "can be written")
    assert not (tmp_path / "nowhere").exists()
    (tmp_path / "plain").write_text("")
    expect(doctor.row("log", {"log": {"file": str(tmp_path / "plain" / "x.log")}}), "fail", "Not a directory", "change `[log] file`")


def test_log_that_is_closed_to_the_user(doctor, tmp_path, stranger_sees):
    log = tmp_path / "x.log"
    log.write_text("")
    log.chmod(0o600)
    row = doctor.row("log", {"log": {"file": str(log)}}, preexec_fn=unprivileged)
    expect(row, "fail", "Permission denied", "let the gateway's user write there")


def test_log_on_a_full_disk(doctor, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("this user may not mount a small file system")
    try:
        expect(doctor.row("log", {"log": {"file": str(disk / "x.log")}}), "fail", "No space left", "make room")
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# ---- limits, certificates, clock


def test_too_few_descriptors(doctor):
    config = {"server": {"max_connections": 1000}}
    row = doctor.row("descriptors", config, preexec_fn=low_descriptor_limit(512))
    expect(row, "warn", "512 are allowed", "LimitNOFILE=")


def test_certificates(doctor, tmp_path):
    authority = Authority(tmp_path / "ca")
    pem, key = authority.certify("localhost")

    def row(certificate, own_key):
        server = {"listen": ["tls://127.0.0.1:0"]}
        return doctor.row("certificates", {"server": server, "tls": {"certificate": str(certificate), "key": str(own_key)}})

    expect(row(pem, key), "ok", "is valid for 29 more days")
    expect(row(tmp_path / "nowhere.pem", key), "fail", "cannot be read", "does not start")
    short = tmp_path / "short.pem"
    openssl("req", "-x509", "-key", key, "-subj", "/CN=localhost", "-days", 3, "-out", short)
    expect(row(short, key), "warn", "ends in 2 days", "renew it")
    ended = tmp_path / "ended.pem"
    (tmp_path / "index").write_text("")
    (tmp_path / "serial").write_text("01")
    section = f"database={tmp_path}/index\nserial={tmp_path}/serial\nnew_certs_dir={tmp_path}\ndefault_md=sha256\npolicy=p\nx509_extensions=e\n"
    (tmp_path / "ca.cnf").write_text(f"[ca]\ndefault_ca=a\n[a]\n{section}[p]\ncommonName=supplied\n[e]\nbasicConstraints=CA:FALSE\n")
    openssl("req", "-new", "-key", key, "-subj", "/CN=localhost", "-out", tmp_path / "csr")
    times = ["-startdate", "20250101000000Z", "-enddate", "20250201000000Z"]
    sign = ["ca", "-batch", "-selfsign", "-config", tmp_path / "ca.cnf", "-notext"]
    openssl(*sign, "-keyfile", key, "-in", tmp_path / "csr", *times, "-out", ended)
    expect(row(ended, key), "fail", "ended at", "HUP")


def test_clock_that_differs(doctor, answering):
    """The backend's `Date` tells that one of the two clocks is wrong."""
    config = relay(answering(401, "Thu, 01 Jan 2026 00:00:00 GMT") + "/")
    expect(doctor.row("clock", config), "warn", "differs by", "NTP")


def test_bad_configuration_exits_with_2(tmp_path):
    (tmp_path / "config.toml").write_text("[server]\nlisten = 1\n")
    done = run("doctor", "--json", cwd=tmp_path)
    assert done.returncode == 2 and "listen" in done.stderr and not done.stdout
