"""One gateway for everything, over HTTPS: a page that Vite has built, its API, its WebSockets. docs/one-port.md."""

import hashlib
import shutil
import subprocess

import pytest

from gatewaylab import PEERS, ROOT
from gatewaylab.gateway import route
from gatewaylab.peers import node_env, pattern
from gatewaylab.results import new_task
from test_forward import SERVERS, Server
from test_https import NAME, made, phone  # noqa: F401
from test_snippets import snippet
from test_tls import TLS_LISTENING

GUIDE = "docs/one-port.md"
PROJECT = PEERS / "one_process"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder that `vite build` wrote."""
    folder = tmp_path_factory.mktemp("page") / "project"
    shutil.copytree(PROJECT, folder)
    for command in (["npm", "ci", "--no-audit", "--no-fund"], ["npm", "run", "build"]):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=node_env())
        assert done.returncode == 0, done.stdout + done.stderr
    return folder / "dist"


@pytest.mark.timeout(300)  # it installs packages
def test_a_page_on_a_phone_has_all_it_needs_from_one_process(built, results, lab, shared_backends, phone, tmp_path):  # noqa: F811
    """Opened by a name that is not `localhost`, with the CA of `cert` trusted."""
    made(tmp_path, tmp_path / "tls", NAME)
    tls = {end: str(tmp_path / f"tls/{NAME}.{file}") for end, file in [("certificate", "pem"), ("key", "key")]}
    api = Server(SERVERS["uvicorn"])
    lab.backends.append(api)
    gateway, inbox = results.embedded(
        routes=[
            route("input", "/ws/input", backend=shared_backends("ws").url()),
            route("api", "/api/{rest...}", backend=f"http://127.0.0.1:{api.port}/{{rest}}"),
            route("app", "/{file...}", files=str(built), fallback="index.html"),
        ],
        config={"server": {"listen": ["127.0.0.1:0", "tls://127.0.0.1:0"]}, "tls": tls},
    )
    origin = f"https://{NAME}:{gateway.process.wait_for_line(TLS_LISTENING).group(1)}"
    task, audio = new_task(), pattern(300_007)
    results.write("a.wav", audio)
    inbox.publish(task, text="All from one.", audio_file="a.wav")

    browser = phone(tmp_path / "data/aivtuber-gateway/ca.pem")
    assert browser.goto(f"{origin}/talk/{task}")["status"] == 200
    report = browser.evaluate("window.report")
    assert report["answered"].pop("sha256") == hashlib.sha256(audio).hexdigest()
    assert report == {
        "isSecureContext": True,
        "origin": origin,
        "uploaded": {"method": "POST", "target": "/echo?from=page", "length": 2 * 1024 * 1024, "isSame": True},
        "streamed": ["1", "2"],
        "refused": {"status": 401, "scheme": "Basic", "body": "no"},
        "heard": "hello",
        "answered": {"text": "All from one.", "bytes": len(audio), "state": "done"},
    }
    assert browser.complaints() == []
    # The browser itself reports each response like this one.
    assert [error for error in browser.console_errors() if "status of 401" not in error] == []
    api.process.wait_for_line(r"^stream closed$")
    gateway.process.wait_for_line(r"client>gateway GET /assets/index-\S+\.js ")


def test_the_project_has_the_documented_configuration():
    assert (PROJECT / "vite.config.js").read_text() == snippet("js", 'import { defineConfig } from "vite"', GUIDE)
