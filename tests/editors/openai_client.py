"""OpenAI's own client library at `lapce-ipc gateway`: a streamed completion, a streamed and a whole chat, a cancel, and
an error. Run by .ci/editors, with BASE_URL, TOKEN_FILE, FAKE_URL and COMPLETION set."""

import json
import os
import time
import urllib.request

import openai

TEXT = os.environ["COMPLETION"]
with open(os.environ["TOKEN_FILE"], encoding="ascii") as file:
    TOKEN = file.read().strip()
BASE_URL = os.environ["BASE_URL"]
client = openai.OpenAI(base_url=BASE_URL, api_key=TOKEN, timeout=30)


def fake(path):
    with urllib.request.urlopen(os.environ["FAKE_URL"] + path, timeout=10) as reply:
        return json.load(reply)


def wait_until(what, condition):
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until, what
        time.sleep(0.005)


assert [model.id for model in client.models.list()] == ["fake"]

chunks = list(client.completions.create(model="fake", prompt="fn main() {", suffix="}", stream=True, max_tokens=50))
assert "".join(chunk.choices[0].text for chunk in chunks) == TEXT, chunks
assert len(chunks) > 2 and chunks[-1].choices[0].finish_reason == "stop", chunks
whole = client.completions.create(model="fake", prompt="fn main() {", suffix="}")
assert whole.choices[0].text == TEXT, whole
print("openai: a completion, streamed and whole")

question = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "why?"}]
options = {"include_usage": True}
chunks = list(client.chat.completions.create(model="fake", messages=question, stream=True, stream_options=options))
assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == TEXT, chunks
assert chunks[-1].usage.completion_tokens == 5, chunks
whole = client.chat.completions.create(model="fake", messages=question)
assert whole.choices[0].message.content == TEXT, whole
print("openai: a chat, streamed and whole")

# Leaving a stream closes its connection, and so the engine's.
fake("/mode/hang-open")
before = fake("/counts")["disconnects"]
try:
    hasty = client.with_options(timeout=0.3, max_retries=0)
    list(hasty.completions.create(model="fake", prompt="a", suffix="b", stream=True))
    raise AssertionError("a reply of an engine that hangs")
except openai.APITimeoutError:
    pass
wait_until("the engine's request to be closed", lambda: fake("/counts")["disconnects"] > before)
wait_until("the engine to be quiet", lambda: fake("/counts")["running"] == 0)
print("openai: a client that gives up cancels at the engine")

# An error of the engine is an error of the library, once: it is not repeated.
fake("/mode/500")
before = fake("/counts")["requests"]
try:
    client.completions.create(model="fake", prompt="a")
    raise AssertionError("a reply of an engine that fails")
except openai.InternalServerError as error:
    assert "out of memory" in str(error), error
assert fake("/counts")["requests"] == before + 1
fake("/mode/cut")
try:
    list(client.completions.create(model="fake", prompt="a", stream=True))
    raise AssertionError("a cut stream is no success")
except openai.APIError as error:
    assert "stream failed" in str(error), error
fake("/mode/ok")
try:
    openai.OpenAI(base_url=BASE_URL, api_key="wrong").models.list()
    raise AssertionError("a wrong token")
except openai.AuthenticationError:
    pass
print("openai: errors are the library's")
