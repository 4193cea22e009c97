"""What comes with the program for a system: manual pages, completions of shells, and the schema of the configuration."""

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
import tomllib

import pytest

from gatewaylab import PATIENCE, ROOT
from gatewaylab.gateway import run

SCHEMA = json.loads((ROOT / "contrib/config.schema.json").read_text())


def written(folder, name, *args):
    """What the program prints, as a file."""
    done = run(*args)
    assert done.returncode == 0, done.stderr
    file = folder / name
    file.write_text(done.stdout)
    return file


def checked(*command, **options):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=PATIENCE, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.mark.parametrize("args, name", [(["man"], "aivtuber-gateway.1"), (["man", "config"], "aivtuber-gateway.toml.5")])
def test_manual_pages_are_well_formed(tmp_path, args, name):
    """mandoc finds nothing to complain about, not even style, and man-db's formatter prints the page."""
    page = written(tmp_path, name, *args)
    assert checked("mandoc", "-T", "lint", page).stdout == ""
    shown = checked("man", "--warnings", "-l", page, env={**os.environ, "MANWIDTH": "80", "LC_ALL": "C.UTF-8", "MANPAGER": "cat"})
    assert shown.stderr == ""
    for heading in ("NAME", "DESCRIPTION", "SEE ALSO"):
        assert re.search(rf"^{heading}$", shown.stdout, re.MULTILINE)


def completed_by_bash(folder, words):
    """Calls the completion function as bash does; words are split at `=`, as bash splits them."""
    script = written(folder, "bash", "completions", "bash")
    split = [part for word in words for part in re.split(r"(=)", word) if part != ""] + ([""] if words[-1].endswith("=") else [])
    if words[-1] == "":
        split.append("")
    program = 'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _aivtuber_gateway; printf "%s\\n" "${COMPREPLY[@]}"'
    return checked("bash", "--norc", "-c", program, "bash", script, *split, cwd=folder).stdout.split()


def completed_by_fish(folder, words):
    script = written(folder, "fish", "completions", "fish")
    program = "source $argv[1]; complete -C $argv[2]"
    env = {**os.environ, "HOME": str(folder)}
    out = checked("fish", "--no-config", "-c", program, script, " ".join(words), cwd=folder, env=env).stdout
    return [re.split(r"\t", line)[0] for line in out.splitlines()]


def zsh_shows(folder, line, pattern):
    """Types the line and Tab into an interactive zsh on a terminal of the test's own, and waits until `pattern` is shown."""
    functions = folder / "functions"
    functions.mkdir(exist_ok=True)
    written(functions, "_aivtuber-gateway", "completions", "zsh")
    prepare = f"PS1='%% '; fpath=({functions} $fpath); autoload -Uz compinit; compinit -u -D; print rea''dy\n"
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(folder)
        os.environ.update(TERM="vt100", HOME=str(folder))
        os.execvp("zsh", ["zsh", "-f", "-i"])
    seen = ""

    def wait_for(pattern):
        nonlocal seen
        deadline = time.monotonic() + PATIENCE
        while not re.search(pattern, seen):
            assert time.monotonic() < deadline, f"{pattern} is not in {seen!r}"
            if select.select([terminal], [], [], 1)[0]:
                seen += re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\0", "", os.read(terminal, 4096).decode(errors="replace"))

    try:
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 200, 0, 0))
        os.write(terminal, prepare.encode())
        wait_for(r"\nready")
        seen = ""
        os.write(terminal, f"aivtuber-gateway {line}\t".encode())
        wait_for(pattern)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(terminal)


def test_bash_completes(tmp_path):
    """Commands, flags, their values, and files where a file is expected."""
    (tmp_path / "my config.toml").touch()
    checked("bash", "-n", written(tmp_path, "bash", "completions", "bash"))
    assert completed_by_bash(tmp_path, ["aivtuber-gateway", "he"]) == ["healthcheck"]
    assert completed_by_bash(tmp_path, ["aivtuber-gateway", "--log-l"]) == ["--log-level"]
    assert completed_by_bash(tmp_path, ["aivtuber-gateway", "--log-level", "d"]) == ["debug"]
    assert completed_by_bash(tmp_path, ["aivtuber-gateway", "--log-level=w"]) == ["warn"]
    assert " ".join(completed_by_bash(tmp_path, ["aivtuber-gateway", "-c", "my"])) == "my config.toml"
    assert completed_by_bash(tmp_path, ["aivtuber-gateway", "--listen", ""]) == []
    assert completed_by_bash(tmp_path, ["aivtuber-gateway", "completions", ""]) == ["bash", "zsh", "fish"]
    assert completed_by_bash(tmp_path, ["aivtuber-gateway", "-c", "x", "completions", "f"]) == ["fish"]


def test_fish_completes(tmp_path):
    """The same in fish, which shows descriptions beside the words."""
    (tmp_path / "mine.toml").touch()
    checked("fish", "-n", written(tmp_path, "fish", "completions", "fish"))
    assert completed_by_fish(tmp_path, ["aivtuber-gateway", "he"]) == ["healthcheck"]
    assert completed_by_fish(tmp_path, ["aivtuber-gateway", "--log-l"]) == ["--log-level"]
    assert completed_by_fish(tmp_path, ["aivtuber-gateway", "--log-level", "d"]) == ["debug"]
    assert completed_by_fish(tmp_path, ["aivtuber-gateway", "-c", "mi"]) == ["mine.toml"]
    assert completed_by_fish(tmp_path, ["aivtuber-gateway", "completions", "f"]) == ["fish"]
    assert completed_by_fish(tmp_path, ["aivtuber-gateway", "demo", "he"]) == []


def test_zsh_completes(tmp_path):
    """The same in zsh, in its completion system."""
    checked("zsh", "-n", written(tmp_path, "_aivtuber-gateway", "completions", "zsh"))
    (tmp_path / "mine.toml").touch()
    zsh_shows(tmp_path, "h", "healthcheck ")
    zsh_shows(tmp_path, "--log-l", r"evel\b")
    zsh_shows(tmp_path, "--log-level ", r"debug +error +info +off +trace +warn")
    zsh_shows(tmp_path, "-c mi", "mine.toml")
    zsh_shows(tmp_path, "completions ", r"bash +fish +zsh")
    zsh_shows(tmp_path, "", r"demo +-- run with a small stand-in")


CHECK = """
import json, jsonschema, sys
schema, configs = json.load(sys.stdin)
jsonschema.Draft7Validator.check_schema(schema)
validator = jsonschema.Draft7Validator(schema)
json.dump([[error.message for error in validator.iter_errors(config)] for config in configs], sys.stdout)
"""


def problems(*configs):
    """What Debian's JSON schema validator finds in each configuration."""
    done = checked("/usr/bin/python3", "-c", CHECK, input=json.dumps([SCHEMA, configs]))
    return json.loads(done.stdout)


def test_schema_accepts_the_configurations_of_the_project(tmp_path):
    """`config.toml`, what `--print-config` prints, and every configuration in the documents and examples."""
    texts = [(ROOT / "config.toml").read_text(), run("--print-config", cwd=tmp_path).stdout]
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]:
        texts += re.findall(r"^```toml\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    texts += [file.read_text() for file in (ROOT / "examples").glob("*/config.toml")]
    assert len(texts) > 9
    for text, found in zip(texts, problems(*map(tomllib.loads, texts))):
        assert found == [], text


REFUSED = [
    "[server]\nlissten = 1",
    "[sever]",
    "[server]\nmax_connections = 0",
    "[server]\nheader_timeout = 10",
    "[server]\nheader_timeout = '10 parsecs'",
    "[output]\nchunk_size = '1 furlong'",
    "[proxy]\non_backend_failure = 'htpp'",
    "[log]\nlevel = 'loud'",
    "[output]\npath_map = { a = 1 }",
    "[[route]]\nname = 'a'\npath = '/a'",
    "[[route]]\nname = 'A'\npath = '/a'\nserve = 'output'",
    "[[route]]\nname = 'a'\npath = '/a'\nserve = 'output'\nbackend = 'ws://b'",
    "[[route]]\nname = 'a'\npath = '/a'\nbackend = 'ws://b'\nbanana = 1",
]


def test_schema_and_program_refuse_the_same(tmp_path):
    """An editor marks what the program would refuse."""
    for config, found in zip(REFUSED, problems(*map(tomllib.loads, REFUSED))):
        assert found, config
        (tmp_path / "config.toml").write_text(config)
        assert run("--check", cwd=tmp_path).returncode == 2, config
