#!/usr/bin/env python3
"""A service in Python: replies in upper case, word by word to a requester that wants a stream."""
import json
import subprocess

broker = subprocess.Popen(["lapce-ipc", "connect"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def say(**operation):
    print(json.dumps(operation), file=broker.stdin, flush=True)


say(op="serve", id="upper", service="upper")
for line in broker.stdout:
    event = json.loads(line)
    if event["event"] == "ready":
        print("serving", flush=True)
    elif event["event"] == "request":
        if event["stream"]:
            for word in event["data"].split():
                say(op="chunk", call=event["call"], data=word.upper())
        say(op="reply", call=event["call"], **({} if event["stream"] else {"data": event["data"].upper()}))
