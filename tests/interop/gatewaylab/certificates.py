"""Certificates of a test: a root of its own, and what it signs, made by openssl."""

import pathlib
import socket
import ssl
import subprocess

from . import PATIENCE
from . import wire


def openssl(*arguments, **options):
    done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, timeout=PATIENCE, **options)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


class Authority:
    """A root that signs certificates, in a folder."""

    def __init__(self, folder, name="test root"):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.pem, self.key = folder / "root.pem", folder / "root.key"
        self.new_key(self.key)
        openssl("req", "-x509", "-key", self.key, "-subj", f"/CN={name}", "-days", 30, "-out", self.pem)

    def new_key(self, path, kind="EC"):
        options = {"EC": ["ec_paramgen_curve:P-256"], "RSA": ["rsa_keygen_bits:2048"]}[kind]
        openssl("genpkey", "-algorithm", kind, "-pkeyopt", options[0], "-out", path)

    def certify(self, *names, file="server", kind="EC"):
        """The files of a chain and its key; the same files again for another certificate of the same `file`."""
        pem, key, request = (self.folder / f"{file}.{end}" for end in ("pem", "key", "csr"))
        self.new_key(key, kind)
        kinds = [f"IP:{name}" if name.replace(".", "").isdigit() or ":" in name else f"DNS:{name}" for name in names]
        openssl("req", "-new", "-key", key, "-subj", f"/CN={names[0]}", "-out", request)
        extensions = self.folder / "extensions"
        extensions.write_text(f"subjectAltName={','.join(kinds)}\n")
        signed = openssl("x509", "-req", "-in", request, "-CA", self.pem, "-CAkey", self.key, "-days", 30, "-extfile", extensions)
        pem.write_text(signed)
        return pem, key

    def context(self, **options):
        """What a client needs that trusts this root."""
        context = ssl.create_default_context(cafile=self.pem)
        for name, value in options.items():
            setattr(context, name, value)
        return context

    def connect(self, port, name="localhost", context=None):
        """A raw client over TLS."""
        client = wire.connect(port)
        # An end without close_notify is an error.
        context = context or self.context()
        client.sock = context.wrap_socket(client.sock, server_hostname=name, suppress_ragged_eofs=False)
        # An SSLSocket's own `shutdown` would forget its keys.
        client.half_close = lambda: socket.socket.shutdown(client.sock, socket.SHUT_WR)
        return client


def serial_of(pem: pathlib.Path):
    return openssl("x509", "-in", pem, "-noout", "-serial").split("=")[1].strip()
