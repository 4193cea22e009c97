"""A small laboratory around the gateway's binary: peers that are under control to the byte, and the process in between.

Nothing here knows how the gateway works inside; it is started, spoken to over loopback and read in its log, as its
users do. The surprising part: most exchanges need no thread, because the kernel's listen queue and socket buffers let one
test play client and backend in turn, so a test reads from top to bottom like the exchange itself.
"""

import os
import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[3]
PEERS = ROOT / "tests" / "interop" / "peers"
NODE_MODULES = ROOT / "target" / "interop" / "node_modules"

PATIENCE = float(os.environ.get("GATEWAYLAB_PATIENCE", "15"))
"""Seconds that a wait for an event may last before the test fails; never a time that is waited out."""

SOON = 4.0
"""Seconds for what the contract wants `without delay`: below every timeout that the gateway has by default."""
