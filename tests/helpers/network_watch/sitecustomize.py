"""
Writes down whom a Python process and its children ask for or talk to, where `WATCHED_NETWORK` names a file.

Python runs this module at start-up when its folder is on PYTHONPATH.
"""

import os
import sys


_EVENTS = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.sendmsg")
_LOCAL = ("127.", "::1", "localhost", "0.0.0.0")


def _write_down(event, args):
    if event not in _EVENTS:
        return
    # Socket events give the socket first; what is not a (host, port) pair is a file or no address
    target = args[0] if event.startswith("socket.get") else args[1]
    host = target[0] if isinstance(target, tuple) else target
    if event.startswith("socket.get") or isinstance(target, tuple):
        host = host.decode() if isinstance(host, bytes) else host
        if host and not host.startswith(_LOCAL):
            with open(os.environ["WATCHED_NETWORK"], "a") as file:
                file.write(f"{event} {host}\n")


if "WATCHED_NETWORK" in os.environ:
    # Its sockets are none of Python's, and would not be seen; whoever asks for it then takes asyncio's
    sys.modules["uvloop"] = None
    sys.addaudithook(_write_down)
