"""A folder whose file system answers when the test says so: a FUSE server in a thread, for slow disks and hanging servers.

It holds one level of files. Mounting needs root; a test without it is skipped.
"""

import contextlib
import ctypes
import errno
import os
import stat
import struct
import threading
import time

import pytest

LOOKUP, FORGET, GETATTR, OPEN, READ, STATFS, RELEASE, FLUSH, INIT, INTERRUPT, BATCH_FORGET = 1, 2, 3, 14, 15, 17, 18, 25, 26, 36, 42
NAMES = {LOOKUP: "lookup", GETATTR: "getattr", OPEN: "open", READ: "read"}
ROOT = 1
UNMOUNT_NOW = 1 | 2  # MNT_FORCE: requests under way fail; MNT_DETACH: even if a file is still open


class SlowFolder:
    """`files` maps names to contents. While an operation (`lookup`, `open`, `read`) is held, its callers wait."""

    def __init__(self, folder, files):
        self.folder = folder
        self.names = sorted(files)
        self.contents = [files[name] for name in self.names]
        self.news = threading.Condition()
        self.held = set()
        self.waiting = {name: 0 for name in NAMES.values()}
        self.mounted_at = time.time() - 3600
        folder.mkdir()
        self.libc = ctypes.CDLL(None, use_errno=True)
        try:
            self.device = os.open("/dev/fuse", os.O_RDWR)
        except OSError as error:
            pytest.skip(f"/dev/fuse cannot be opened: {error}")
        options = f"fd={self.device},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()}"
        if self.libc.mount(b"slow", str(folder).encode(), b"fuse", 0, options.encode()) != 0:
            os.close(self.device)
            pytest.skip(f"mounting is not allowed: {os.strerror(ctypes.get_errno())}")
        threading.Thread(target=self._serve, daemon=True).start()

    @contextlib.contextmanager
    def holding(self, *operations):
        with self.news:
            self.held |= set(operations)
        try:
            yield
        finally:
            with self.news:
                self.held -= set(operations)
                self.news.notify_all()

    def wait_until_held(self, operation, patience=15):
        """Returns once a program waits for this operation."""
        with self.news:
            assert self.news.wait_for(lambda: self.waiting[operation] > 0, patience), f"no program waits for {operation}"

    def stop(self):
        with self.news:
            self.held.clear()
            self.news.notify_all()
        self.libc.umount2(str(self.folder).encode(), UNMOUNT_NOW)

    def _serve(self):
        while True:
            try:
                request = os.read(self.device, 1 << 20)
            except OSError:
                os.close(self.device)
                return  # unmounted
            # Each in a thread of its own: one that is held must not hold up others.
            threading.Thread(target=self._handle, args=(request,), daemon=True).start()

    def _handle(self, request):
        _, operation, unique, node = struct.unpack_from("<IIQQ", request)
        name = NAMES.get(operation)
        if name:
            with self.news:
                self.waiting[name] += 1
                self.news.notify_all()
                self.news.wait_for(lambda: name not in self.held)
                self.waiting[name] -= 1
        answer = self._answer(operation, node, request[40:])
        if answer is None:
            return
        code, body = (-answer, b"") if isinstance(answer, int) else (0, answer)
        with contextlib.suppress(OSError):
            os.write(self.device, struct.pack("<IiQ", 16 + len(body), code, unique) + body)

    def _answer(self, operation, node, body):
        if operation == INIT:
            return struct.pack("<IIIIHHIIHHI28x", 7, 31, 65536, 0, 16, 12, 65536, 1, 0, 0, 0)
        if operation == LOOKUP:
            name = body.rstrip(b"\0").decode()
            if name not in self.names:
                return errno.ENOENT
            node = 2 + self.names.index(name)
            return struct.pack("<QQQQII", node, 0, 0, 0, 0, 0) + self._attributes(node)
        if operation == GETATTR:
            return struct.pack("<QII", 0, 0, 0) + self._attributes(node)
        if operation == OPEN:
            return struct.pack("<QII", 0, 0, 0)
        if operation == READ:
            _, offset, size = struct.unpack_from("<QQI", body)
            return self.contents[node - 2][offset : offset + size]
        if operation == STATFS:
            return struct.pack("<QQQQQIIII24x", 0, 0, 0, 0, 0, 4096, 255, 4096, 0)
        if operation in (RELEASE, FLUSH):
            return b""
        return None if operation in (FORGET, BATCH_FORGET, INTERRUPT) else errno.ENOSYS

    def _attributes(self, node):
        size = 0 if node == ROOT else len(self.contents[node - 2])
        mode = stat.S_IFDIR | 0o755 if node == ROOT else stat.S_IFREG | 0o644
        at = int(self.mounted_at)
        return struct.pack("<QQQQQQIIIIIIIIII", node, size, 8, at, at, at, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)
