"""The test bench around the gateway's binary: peers controlled to the byte, and the process between them.

Nothing here knows how the gateway works inside. It is started, spoken to over loopback and read in its log, as its users
do. Most exchanges need no thread: the kernel's listen queue and socket buffers let one test play client and backend in
turn, so a test reads from top to bottom like the exchange itself.
"""

import os
import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[3]
PEERS = ROOT / "tests" / "interop" / "peers"
TARGET = ROOT / os.environ.get("CARGO_TARGET_DIR", "target")
NODE_MODULES = TARGET / "interop" / "node_modules"
RUST_BACKEND = TARGET / "interop" / "rust_backend" / "debug" / "rust-backend"
PROJECTS = TARGET / "interop" / "projects"
"""The Python environment with other projects' libraries (`projects.txt`)."""

PATIENCE = float(os.environ.get("GATEWAYLAB_PATIENCE", "15"))
"""Seconds until a wait for an event fails its test. No test waits this long when all is well."""

SOON = 4.0
"""Seconds for what the contract wants `without delay`: shorter than every default timeout of the gateway."""
