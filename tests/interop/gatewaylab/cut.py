"""A proxy that cuts a connection in the middle, once: what happens to a browser whose network goes away and comes back.

It passes bytes on, whatever they are. The first connection whose request is for a path that begins with `path` is cut, both ways and
without a word, when `after` bytes of the answer have been passed on.
"""

import socket
import threading


class CuttingProxy:
    def __init__(self, port, path, after):
        self.target, self.path, self.after = port, path.encode(), after
        self.targets = []
        self.sockets = []
        self.threads = []
        self.lock = threading.Lock()
        self.door = socket.create_server(("127.0.0.1", 0))
        self.port = self.door.getsockname()[1]
        self._begin(self._open_door)

    def stop(self):
        self._end(self.door)
        with self.lock:
            sockets = list(self.sockets)
        for sock in sockets:
            self._end(sock)
        for thread in self.threads:
            thread.join(10)

    def _begin(self, work, *arguments):
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self.threads.append(thread)
        thread.start()

    def _open_door(self):
        while True:
            try:
                client, _ = self.door.accept()
            except OSError:
                return
            gateway = socket.create_connection(("127.0.0.1", self.target))
            with self.lock:
                self.sockets += [client, gateway]
            self._begin(self._serve, client, gateway)

    def _serve(self, client, gateway):
        try:
            head = b""
            while b"\r\n\r\n" not in head:
                more = client.recv(65536)
                if not more:
                    break
                head += more
            target = head.split(b" ")[1] if head.count(b" ") > 1 else b""
            budget = None
            if target.startswith(self.path):
                with self.lock:
                    budget = None if self.targets else self.after
                    self.targets.append(target.decode())
            gateway.sendall(head)
            self._begin(self._pass_on, client, gateway, None)
            self._pass_on(gateway, client, budget)
        finally:
            self._end(client)
            self._end(gateway)

    def _pass_on(self, source, sink, budget):
        try:
            while data := source.recv(65536 if budget is None else min(65536, budget)):
                sink.sendall(data)
                if budget is not None and (budget := budget - len(data)) <= 0:
                    break
            else:
                sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    @staticmethod
    def _end(sock):
        try:
            sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        sock.close()
