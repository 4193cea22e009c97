"""`docs/frontend.md`, step by step: what it says to type is typed, what it says to save is saved.

Only ports and the place of this repository differ from the guide.
"""

import json
import shutil
import subprocess
import sys

import pytest

from gatewaylab import ROOT
from gatewaylab.process import Process
from gatewaylab.results import is_waiting, new_task
from test_browser import origin  # noqa: F401
from test_ingest import gateway, worker  # noqa: F401
from test_snippets import RUN, snippet

GUIDE = "docs/frontend.md"

# Counts the pieces of sound that the page schedules: without a loudspeaker that is what can be heard.
LISTEN = """
(() => {
  window.pieces = 0;
  const start = AudioBufferSourceNode.prototype.start;
  AudioBufferSourceNode.prototype.start = function (...when) {
    window.pieces += 1;
    return start.apply(this, when);
  };
})()
"""

# The paragraph's text and the number of pieces, once there are both.
ANSWERED = """
new Promise((done) => {
  const look = () => {
    const text = document.querySelector("p").textContent;
    if (!text || !window.pieces) return;
    clearInterval(timer);
    done({ text, pieces: window.pieces });
  };
  const timer = setInterval(look, 20);
})
"""


@pytest.fixture
def serve():
    """Serves a folder as the guide does; returns the port."""
    servers = []

    def start(folder):
        command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1"]
        server = Process(command, cwd=folder)
        servers.append(server)
        return int(server.wait_for_line(r"port (\d+)").group(1))

    yield start
    for server in servers:
        server.kill()


def ask(browser, port):
    """Opens the page and presses its first button; returns what the page shows and plays."""
    assert browser.goto(f"http://localhost:{port}/")["status"] == 200
    browser.evaluate(LISTEN)
    browser.press("Tab")
    browser.press("Enter")
    try:
        return browser.evaluate(ANSWERED)
    finally:
        assert browser.complaints() == []
        browser.leave()


def test_page_without_tools_shows_and_speaks_the_answer(demo, browser, serve, tmp_path):
    folder = tmp_path / "page"
    folder.mkdir()
    page = snippet("html", "<!DOCTYPE html>", GUIDE, **{"localhost:8000": f"localhost:{demo.port}"})
    (folder / "index.html").write_text(page)
    script = page.split('<script type="module">')[1].split("</script>")[0].strip().splitlines()
    assert len(script) <= 10, script
    assert snippet("sh", "python3 -m http.server 3000", GUIDE)
    answer = ask(browser, serve(folder))
    assert "Hello!" in answer["text"]


# A bundle that shows which gateway it speaks to if nothing is said.
HOST = """
import { Gateway } from "aivtuber-gateway-client";
document.title = new Gateway().url.href;
"""


def run_build(project):
    built = subprocess.run(["npm", "run", "build"], cwd=project, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr


@pytest.mark.timeout(480)  # it installs packages
def test_vite_react_typescript_project_builds_and_speaks(demo, browser, serve, tmp_path):
    def run(first_line, cwd, **replaced):
        command = snippet("sh", first_line, GUIDE, **replaced)
        done = subprocess.run(["bash", "-ec", command], cwd=cwd, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"

    # Not inside the checkout: `npm ci` and the build write there.
    library = tmp_path / "library"
    ignored = shutil.ignore_patterns("node_modules", "dist")
    shutil.copytree(ROOT / "clients", library / "clients", ignore=ignored)
    (library / "assets").mkdir()
    run("npx --yes create-vite", tmp_path)
    project = tmp_path / "talk"
    replaced = {
        "../aivtuber-gateway": library,
        "--pack-destination /tmp": f"--pack-destination {tmp_path}",
        "install /tmp": f"install {tmp_path}",
    }
    run("(cd ../aivtuber-gateway/clients/js", project, **replaced)
    shutil.copy(ROOT / "examples/frontend/useAnswer.react.ts", project / "src/useAnswer.ts")
    app = snippet("tsx", "import { useState }", GUIDE, **{"localhost:8000": f"localhost:{demo.port}"})
    (project / "src/App.tsx").write_text(app)
    # Type-checks, too.
    run_build(project)
    answer = ask(browser, serve(project / "dist"))
    assert "Hello!" in answer["text"]
    # The host of the page, whatever the bundle is called.
    for name in ("assets/index.js", "assets/client.js"):
        (project / "src/main.tsx").write_text(HOST)
        output = {"entryFileNames": name}
        (project / "vite.config.ts").write_text(f"export default {json.dumps({'build': {'rollupOptions': {'output': output}}})};")
        run_build(project)
        assert (project / "dist" / name).exists()
        port = serve(project / "dist")
        browser.goto(f"http://localhost:{port}/")
        assert browser.evaluate("document.title") == f"http://localhost:{port}/"
        browser.leave()


# A page that listens to a task, with what the guide says about mouths; it notes each shape that it had.
MOUTH = """
import {{ Gateway }} from "http://localhost:{port}/client.js";
const answer = new Gateway().listen("{task}");
answer.play();
window.seen = [];
const timer = setInterval(() => {{
  const now = JSON.stringify(shape());
  if (now && now !== window.seen.at(-1)) window.seen.push(now);
}}, 5);
answer.playback.ended.finally(() => {{
  clearInterval(timer);
  console.log("heard");
}});
{shape}
{collect}
"""

HEARD = """
new Promise((done, fail) => {
  const timer = setInterval(() => {
    if (window.broken) fail(new Error(window.broken));
    if (!window.said.includes("heard")) return;
    clearInterval(timer);
    done(window.seen.map(JSON.parse));
  }, 10);
})
"""


def test_mouth_has_the_shape_that_came_with_the_sound(gateway, worker, browser, origin):  # noqa: F811
    """Visemes: the fields that a worker pushes with its chunks are there when their sound is heard, in order."""
    task = new_task()
    collect, shape = snippet("js", "const BYTES_PER_SECOND", GUIDE), snippet("js", "const shape =", GUIDE)
    page = MOUTH.format(port=gateway.port, task=task, collect=collect, shape=shape)
    browser.goto(origin)
    browser.press("Tab")
    browser.evaluate(f"({RUN})({json.dumps(page)})")
    is_waiting(gateway, task)
    visemes = [{"open": 0.2}, {"open": 0.9}, {"open": 0.4}, {"open": 0}]
    for number, viseme in enumerate(visemes):
        # A fifth of a second of 24 kHz, 16 bits.
        worker.binary(task, number, bytes(9600), viseme=viseme, audio_type="audio/pcm")
    worker.end(task, final=True)
    assert browser.evaluate(HEARD) == visemes
    assert browser.complaints() == []
    browser.leave()


TSCONFIG = """
{
  "compilerOptions": {
    "strict": true, "noEmit": true, "target": "ES2022", "module": "ESNext", "moduleResolution": "bundler",
    "lib": ["ES2022", "DOM", "DOM.Iterable"], "noUnusedLocals": true, "noUnusedParameters": true
  },
  "include": ["*.ts"]
}
"""

# Uses all of what the composable returns.
USER = """
import { useAnswer } from "./useAnswer";
const { ask, stop, text, state, error, level } = useAnswer("http://localhost:8000");
const said: string = text.value + state.value + (error.value ?? "") + level().toFixed(1);
ask(said).then(stop);
"""


@pytest.mark.timeout(480)  # it installs packages
def test_vue_composable_has_no_type_errors(tmp_path):
    def run(*command, cwd):
        return subprocess.run(command, cwd=cwd, capture_output=True, text=True)

    library, project = tmp_path / "library", tmp_path / "talk"
    shutil.copytree(ROOT / "clients", library / "clients", ignore=shutil.ignore_patterns("node_modules", "dist"))
    for folder in (library / "assets", project):
        folder.mkdir()
    for command in (["npm", "ci"], ["npm", "pack", "--pack-destination", str(project)]):
        done = run(*command, cwd=library / "clients/js")
        assert done.returncode == 0, done.stderr
    package = next(project.glob("aivtuber-gateway-client-*.tgz"))
    (project / "package.json").write_text('{"private": true, "type": "module"}')
    (project / "tsconfig.json").write_text(TSCONFIG)
    (project / "user.ts").write_text(USER)
    shutil.copy(ROOT / "examples/frontend/useAnswer.vue.ts", project / "useAnswer.ts")
    done = run("npm", "install", "typescript@5.9.3", "vue@3.5.45", str(package), cwd=project)
    assert done.returncode == 0, done.stderr
    done = run("npx", "tsc", cwd=project)
    assert done.returncode == 0, done.stdout


def test_hooks_are_as_short_as_promised():
    for name in ("useAnswer.react.ts", "useAnswer.vue.ts"):
        lines = (ROOT / "examples/frontend" / name).read_text().splitlines()
        assert len(lines) < 40, f"{name} has {len(lines)} lines"
