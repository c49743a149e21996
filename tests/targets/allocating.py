"""What the tests trace of Python: threads that allocate in many ways, without end.

Prints `ready`, answers each line on stdin with `count OPERATIONS`, and ends when stdin is closed.
"""

import json
import sys
import threading
import zlib

THREADS = 4
operations = [0] * THREADS
stop = threading.Event()


def nested(depth):
    """A list of lists; through map, each level is several frames of C."""
    return list(map(nested, [depth - 1])) if depth else ["x" * (2000 + threading.get_ident() % 7)]


def compress(text):
    return zlib.decompress(zlib.compress(text)) == text


def work(index):
    kept = []
    while not stop.is_set():
        record = {"name": f"order-{operations[index]}", "lines": [{"item": i, "note": "n" * 700} for i in range(20)]}
        text = json.dumps(record).encode()
        if not compress(text) or json.loads(text) != record:
            sys.exit("the data came back changed")
        kept.append(nested(8))
        if len(kept) > 100:
            kept = kept[50:]
        operations[index] += 1


threads = [threading.Thread(target=work, args=(index,)) for index in range(THREADS)]
for thread in threads:
    thread.start()
print("ready", flush=True)
for _ in sys.stdin:
    print("count", sum(operations), flush=True)
stop.set()
for thread in threads:
    thread.join()
