"""Opens sockets and files and never closes them: on each line `tcp N`, `unix N` or `file N`, N more."""

import socket
import sys

held = []


def open_session(family):
    held.append(socket.socket(family, socket.SOCK_STREAM))


def open_log():
    held.append(open(__file__, "rb"))


print("ready", flush=True)
for line in sys.stdin:
    what, count = line.split()
    for _ in range(int(count)):
        if what == "file":
            open_log()
        else:
            open_session(socket.AF_UNIX if what == "unix" else socket.AF_INET)
    print("held", len(held), flush=True)
