"""An engine of twenty lines: `lapce-ipc reply ai.inline-completion -- python3 engine.py`.

The request is a line of JSON on stdin; each line of JSON on stdout is a part of the reply, and the last one says why
the engine stopped.
"""

import json
import os
import sys

request = json.load(sys.stdin)["completion_request"]


def send(text, finish=None):
    chunk = {"id": request["id"], "text": text, "finish": finish}
    print(json.dumps({"completion_chunk": chunk}), flush=True)


for token in os.environ["COMPLETION"].split():
    send(token + " ")
send("", "stop")
