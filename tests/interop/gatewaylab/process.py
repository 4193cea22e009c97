"""Processes of a test: started with their output collected, waited for by line, ended by pid.

A reader thread takes every line as it is written, so waiting for a line is waiting for an event, and no pipe ever fills up.
"""

import re
import signal
import subprocess
import threading

from . import PATIENCE


class Process:
    """A child process and what it has printed so far on its standard error (and output, unless `talk` is set)."""

    def __init__(self, command, *, env=None, cwd=None, talk=False, before=None):
        self.child = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.PIPE if talk else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=env,
            cwd=cwd,
            preexec_fn=before,
        )
        self.command = command
        self.lines = []
        self.news = threading.Condition()
        self.readers = [threading.Thread(target=self._collect, args=(self.child.stderr,), daemon=True)]
        if not talk:
            self.readers.append(threading.Thread(target=self._collect, args=(self.child.stdout,), daemon=True))
        self.open_streams = len(self.readers)
        for reader in self.readers:
            reader.start()

    @property
    def pid(self):
        return self.child.pid

    @property
    def text(self):
        with self.news:
            return "\n".join(self.lines)

    def _collect(self, stream):
        for line in stream:
            with self.news:
                self.lines.append(line.decode(errors="replace").rstrip("\n"))
                self.news.notify_all()
        with self.news:
            self.open_streams -= 1
            self.news.notify_all()

    def is_running(self):
        return self.child.poll() is None

    def wait_for_line(self, pattern, after=0, patience=PATIENCE):
        """The first line, from line `after` on, that `pattern` is found in, as its match."""
        seen = after

        def found():
            nonlocal seen
            while seen < len(self.lines):
                match = re.search(pattern, self.lines[seen])
                seen += 1
                if match:
                    return match
            return None

        with self.news:
            match = self.news.wait_for(lambda: found() or self.open_streams == 0, patience)
            match = match if isinstance(match, re.Match) else found()
        assert match, f"no line like {pattern!r} from {self.command[0]}; it said:\n{self.text}"
        return match

    def signal(self, number):
        self.child.send_signal(number)

    def wait(self, patience=PATIENCE):
        """Its exit status, once it has ended and all it printed was read."""
        try:
            status = self.child.wait(patience)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.command[0]} still runs; it said:\n{self.text}") from None
        for reader in self.readers:
            reader.join(patience)
        return status

    def kill(self):
        if self.is_running():
            self.child.send_signal(signal.SIGKILL)
        self.child.wait()
        for reader in self.readers:
            reader.join()
        for stream in (self.child.stdin, self.child.stdout, self.child.stderr):
            if stream:
                stream.close()
