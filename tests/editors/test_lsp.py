"""pytest-lsp as a client: `.ci/editors` runs it, with a broker and an engine."""

import asyncio
import os

import pytest
import pytest_lsp
from lsprotocol import types
from pygls.exceptions import JsonRpcException
from pytest_lsp import ClientServerConfig, LanguageClient, client_capabilities

COMPLETION = os.environ["COMPLETION"]
URI = "file:///work/a.rs"
SERVER = [os.environ["LAPCE_IPC"], "lsp", "--debounce", "50ms"]


@pytest_lsp.fixture(config=ClientServerConfig(server_command=SERVER))
async def client(lsp_client: LanguageClient):
    params = types.InitializeParams(capabilities=client_capabilities("visual-studio-code"))
    result = await lsp_client.initialize_session(params)
    assert result.server_info.name == "lapce-ipc"
    assert result.capabilities.inline_completion_provider is True
    yield
    await lsp_client.shutdown_session()


def open_document(client, text):
    document = types.TextDocumentItem(uri=URI, language_id="rust", version=1, text=text)
    client.text_document_did_open(types.DidOpenTextDocumentParams(text_document=document))


def insert(client, version, character, text):
    at = types.Position(line=0, character=character)
    change = types.TextDocumentContentChangePartial(range=types.Range(start=at, end=at), text=text)
    document = types.VersionedTextDocumentIdentifier(uri=URI, version=version)
    params = types.DidChangeTextDocumentParams(text_document=document, content_changes=[change])
    client.text_document_did_change(params)


def complete(client, character, kind=types.InlineCompletionTriggerKind.Automatic):
    params = types.InlineCompletionParams(
        text_document=types.TextDocumentIdentifier(uri=URI),
        position=types.Position(line=0, character=character),
        context=types.InlineCompletionContext(trigger_kind=kind),
    )
    # A task, so that the request goes out now.
    return asyncio.ensure_future(client.text_document_inline_completion_async(params))


@pytest.mark.asyncio
async def test_a_completion_is_shown_and_typed_through(client):
    open_document(client, "    ")
    result = await complete(client, 4)
    assert [item.insert_text.strip() for item in result.items] == [COMPLETION]
    assert result.items[0].range == types.Range(types.Position(0, 4), types.Position(0, 4))
    insert(client, 2, 4, COMPLETION[:5])
    result = await complete(client, 9)
    assert [item.insert_text.strip() for item in result.items] == [COMPLETION[5:]]


@pytest.mark.asyncio
async def test_a_superseded_request_is_an_error_and_the_newest_is_answered(client):
    open_document(client, "")
    superseded = [complete(client, 0) for _ in range(3)]
    last = await complete(client, 0)
    assert last.items[0].insert_text.strip() == COMPLETION
    for error in await asyncio.gather(*superseded, return_exceptions=True):
        assert isinstance(error, JsonRpcException) and error.code == -32801, error


@pytest.mark.asyncio
async def test_an_unknown_document_is_an_error(client):
    with pytest.raises(JsonRpcException, match="not open"):
        await complete(client, 0, types.InlineCompletionTriggerKind.Invoked)
