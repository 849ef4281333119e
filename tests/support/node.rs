//! Node.js, used for the same work: an echo of JSON lines over a Unix socket, server and clients in two processes.

use super::{Process, command, wait_until};
use serde_json::Value;
use std::path::Path;

/// The server: parses each line, and writes it again.
const SERVER: &str = r"
require('net').createServer(socket => {
  let rest = '';
  socket.setNoDelay(true);
  socket.on('data', data => {
    const lines = (rest + data).split('\n');
    rest = lines.pop();
    let out = '';
    for (const line of lines) out += JSON.stringify(JSON.parse(line)) + '\n';
    if (out) socket.write(out);
  });
  socket.on('error', () => {});
}).listen(process.argv[1], () => console.log('ready'));
";

/// The clients: one connection alone, then all of them with one message outstanding each.
const CLIENTS: &str = r"
const [path, connections, each, alone] = [process.argv[1], ...process.argv.slice(2).map(Number)];
const payload = 'x'.repeat(64);
const run = (count, each) => new Promise(resolve => {
  const times = [];
  let open = count, started;
  const begin = [];
  for (let c = 0; c < count; c++) {
    let rest = '', number = 0, sent;
    const socket = require('net').connect(path);
    const send = () => {
      sent = process.hrtime.bigint();
      socket.write(JSON.stringify({ number, payload }) + '\n');
    };
    socket.on('connect', () => {
      begin.push(send);
      if (begin.length == count) {
        started = process.hrtime.bigint();
        begin.forEach(first => first());
      }
    });
    socket.on('data', data => {
      const lines = (rest + data).split('\n');
      rest = lines.pop();
      for (const line of lines) {
        if (JSON.parse(line).number != number) throw new Error('a wrong reply');
        times.push(Number(process.hrtime.bigint() - sent));
        if (++number < each) send();
        else {
          socket.end();
          if (--open == 0) resolve([times, Number(process.hrtime.bigint() - started) / 1e9]);
        }
      }
    });
  }
});
const at = (times, part) => times.sort((a, b) => a - b)[Math.floor(times.length * part)];
(async () => {
  await run(1, alone);
  const [single] = await run(1, alone);
  const [loaded, seconds] = await run(connections, each);
  console.log(JSON.stringify({
    version: process.version, replies: loaded.length, seconds,
    unloaded_p50_ns: at(single, 0.5), unloaded_p99_ns: at(single, 0.99),
    loaded_p50_ns: at(loaded, 0.5), loaded_p99_ns: at(loaded, 0.99),
  }));
})();
";

/// Measures it; nothing where there is no `node`.
pub fn measure(folder: &Path, connections: u64, each: u64, alone: u64) -> Option<Value> {
    let found = std::env::split_paths(&std::env::var_os("PATH")?).any(|path| path.join("node").exists());
    if !found {
        return None;
    }
    let socket = folder.join("node.sock");
    let mut server = command("node");
    server.args(["-e", SERVER]).arg(&socket);
    let mut server = Process::start(server);
    wait_until("node to listen", || !server.stdout().is_empty() || server.has_ended());
    let mut clients = command("node");
    clients.args(["-e", CLIENTS]).arg(&socket).args([connections, each, alone].map(|number| number.to_string()));
    let mut clients = Process::start(clients);
    let code = clients.code();
    assert_eq!(code, 0, "{}", clients.stderr());
    Some(serde_json::from_slice(&clients.stdout()).expect("figures of node"))
}
