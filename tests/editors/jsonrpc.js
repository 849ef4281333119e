// vscode-jsonrpc as a client, the library below VS Code's language clients: `.ci/editors` runs it, with a broker and an
// engine.

const assert = require('assert');
const { spawn } = require('child_process');
const rpc = require('vscode-jsonrpc/node');

const completion = process.env.COMPLETION;
const uri = 'file:///work/a.rs';
const server = spawn(process.env.LAPCE_IPC, ['lsp'], { stdio: ['pipe', 'pipe', 'inherit'] });
const reader = new rpc.StreamMessageReader(server.stdout);
const connection = rpc.createMessageConnection(reader, new rpc.StreamMessageWriter(server.stdin));
connection.listen();

const complete = (character, ...token) => connection.sendRequest('textDocument/inlineCompletion', {
  textDocument: { uri },
  position: { line: 0, character },
  context: { triggerKind: 2 },
}, ...token);
const insert = (version, character, text) => connection.sendNotification('textDocument/didChange', {
  textDocument: { uri, version },
  contentChanges: [{ range: { start: { line: 0, character }, end: { line: 0, character } }, text }],
});
const texts = result => result.items.map(item => item.insertText.trim());
const codeOf = request => request.then(result => assert.fail(JSON.stringify(result)), error => error.code);

(async () => {
  const early = await codeOf(complete(0));
  assert.strictEqual(early, -32002);
  const { capabilities } = await connection.sendRequest('initialize', {
    processId: process.pid, rootUri: null, capabilities: {},
  });
  assert.strictEqual(capabilities.inlineCompletionProvider, true);
  connection.sendNotification('initialized', {});
  connection.sendNotification('textDocument/didOpen', {
    textDocument: { uri, languageId: 'rust', version: 1, text: '' },
  });

  assert.deepStrictEqual(texts(await complete(0)), [completion]);
  insert(2, 0, completion.slice(0, 3));
  assert.deepStrictEqual(texts(await complete(3)), [completion.slice(3)]);

  // Another key than the suggested one; then two requests, of which the first is superseded.
  insert(3, 3, 'x');
  const first = codeOf(complete(4));
  assert.deepStrictEqual(texts(await complete(4)), [completion]);
  assert.strictEqual(await first, -32801);

  // One that the client cancels.
  insert(4, 4, 'y');
  const source = new rpc.CancellationTokenSource();
  const cancelled = codeOf(complete(5, source.token));
  source.cancel();
  assert.strictEqual(await cancelled, -32800);

  assert.strictEqual(await connection.sendRequest('shutdown'), null);
  const ended = new Promise(resolve => server.on('exit', resolve));
  connection.sendNotification('exit');
  assert.strictEqual(await ended, 0);
  console.log('ok');
})().catch(error => {
  console.error(error);
  server.kill();
  process.exit(1);
});
