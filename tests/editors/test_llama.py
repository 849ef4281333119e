"""llama.cpp's own HTTP server behind engine, broker and bridge: `.ci/editors` runs it, with a broker."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest
import pytest_lsp
from lsprotocol import types
from pygls.exceptions import JsonRpcException
from pytest_lsp import ClientServerConfig, LanguageClient, client_capabilities

LAPCE_IPC = os.environ["LAPCE_IPC"]
URI = "file:///work/a.rs"
TOKENS = 1000


def started(command, text):
    """A process, when it has written `text`, and that line."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for line in process.stdout:
        print(line, end="")
        if text in line:
            # What it writes further must not fill the pipe.
            threading.Thread(target=process.stdout.read, daemon=True).start()
            return process, line
    raise AssertionError(f"{command} ended with {process.wait()}")


class Llama:
    def __init__(self):
        self.start(0)

    def start(self, port):
        command = [sys.executable, str(Path(__file__).with_name("llama.py")), str(port)]
        self.process, line = started(command, "listening http")
        self.url = line.split("listening ")[1].strip()

    def slot(self):
        with urllib.request.urlopen(f"{self.url}/slots", timeout=10) as reply:
            return json.load(reply)[0]

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def llama():
    server = Llama()
    command = [LAPCE_IPC, "engine", "openai", "--base-url", server.url, "--model", "random", "--no-chat"]
    engine, _ = started(command, "serving")
    yield server
    engine.terminate()
    assert engine.wait(20) == 0
    server.kill()


@pytest_lsp.fixture(config=ClientServerConfig(server_command=[LAPCE_IPC, "lsp", "--max-tokens", str(TOKENS)]))
async def client(lsp_client: LanguageClient):
    await lsp_client.initialize_session(types.InitializeParams(capabilities=client_capabilities("visual-studio-code")))
    yield
    await lsp_client.shutdown_session()


def open_document(client, text):
    document = types.TextDocumentItem(uri=URI, language_id="rust", version=1, text=text)
    client.text_document_did_open(types.DidOpenTextDocumentParams(text_document=document))


def replace(client, version, text):
    document = types.VersionedTextDocumentIdentifier(uri=URI, version=version)
    change = types.TextDocumentContentChangeWholeDocument(text=text)
    client.text_document_did_change(types.DidChangeTextDocumentParams(document, [change]))


def complete(client, character):
    params = types.InlineCompletionParams(
        text_document=types.TextDocumentIdentifier(uri=URI),
        position=types.Position(line=0, character=character),
        context=types.InlineCompletionContext(trigger_kind=types.InlineCompletionTriggerKind.Invoked),
    )
    # A task, so that the request goes out now.
    return asyncio.ensure_future(client.text_document_inline_completion_async(params))


async def until(what, condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, what
        await asyncio.sleep(0.002)


@pytest.mark.asyncio
async def test_a_completion_comes_by_infilling_and_the_doctor_knows(llama, client):
    open_document(client, "fn main() {\n}\n")
    result = await complete(client, 11)
    text = result.items[0].insert_text
    # A text without a stop ends at the limit.
    assert len(text) == TOKENS and text.isascii() and text.islower(), text
    done = subprocess.run([LAPCE_IPC, "doctor", "--json"], capture_output=True, check=False)
    engine = [finding for finding in json.loads(done.stdout) if finding["subject"] == "engine"]
    assert engine == [
        {
            "grade": "ok",
            "subject": "engine",
            "found": f"ai.inline-completion: random at {llama.url}/v1, fill-in-the-middle by infill",
        }
    ]


@pytest.mark.asyncio
async def test_a_superseded_request_stops_the_generation(llama, client):
    text = "fn a() {\n}\n"
    open_document(client, text)
    asked, task, times = complete(client, 8), None, []
    for version in range(2, 22):
        await until("it generates", lambda: llama.slot()["is_processing"] and llama.slot()["id_task"] != task)
        task = llama.slot()["id_task"]
        text = f"fn a() {{{version}\n}}\n"
        sent = time.monotonic()
        replace(client, version, text)
        newer = complete(client, text.index("\n"))
        await until("another one", lambda: llama.slot()["id_task"] != task)
        times.append(1000 * (time.monotonic() - sent))
        with pytest.raises(JsonRpcException) as superseded:
            await asked
        assert superseded.value.code == -32801, superseded.value
        asked = newer
    assert len((await asked).items[0].insert_text) == TOKENS
    times.sort()
    print(f"\nthe next one is generated after {times[10]:.0f} ms (median of 20), at most {times[-1]:.0f} ms")
    # The whole text takes seconds.
    assert times[10] < 500


@pytest.mark.asyncio
async def test_a_server_that_is_killed_is_an_error_and_the_next_one_completes(llama, client):
    open_document(client, "fn b() {\n}\n")
    asked = complete(client, 8)
    await until("it generates", lambda: llama.slot()["is_processing"])
    llama.kill()
    with pytest.raises(JsonRpcException) as failed:
        await asked
    assert failed.value.code == -32803, failed.value
    llama.start(llama.url.rsplit(":", 1)[1])
    result = await complete(client, 8)
    assert len(result.items[0].insert_text) == TOKENS
