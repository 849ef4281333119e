// Both ends of the Node.js peer: JSON lines over a Unix socket. Arguments and lines are those of src/role.rs.
// One way, the sender gathers messages with `cork`, as Node's documentation recommends for many small writes, and
// waits for `drain` when the buffer is full.
'use strict';
const fs = require('fs');
const net = require('net');

const [, , , , role, folder, sizeText, millisecondsText, countText] = process.argv;
const [size, milliseconds, connections] = [sizeText, millisecondsText, countText].map(Number);
const socketPath = `${folder}/${role == 'send' || role == 'receive' ? `one_way_${size}` : 'socket'}`;
const warmUp = milliseconds / 4;
const TOKENS = 1000;
const TOKEN = ' token  ';
const body = 'x'.repeat(size);

const say = line => fs.writeSync(1, line + '\n');
const now = () => process.hrtime.bigint();
const since = start => Number(now() - start) / 1e6; // in milliseconds

function fail(text) {
  fs.writeSync(2, `error: ${text}\n`);
  process.exit(1);
}

// Calls `take` for each line, parsed.
function lines(socket, take) {
  let rest = '';
  socket.setEncoding('utf8');
  socket.on('data', data => {
    const parts = (rest + data).split('\n');
    rest = parts.pop();
    for (const part of parts) take(JSON.parse(part));
  });
}

const write = (socket, message) => socket.write(JSON.stringify(message) + '\n');

function result(figures) {
  say('result ' + JSON.stringify(figures));
  process.stdin.resume();
  process.stdin.on('end', () => process.exit(0));
}

function respond() {
  net.createServer(socket => {
    socket.on('error', () => {});
    lines(socket, request => {
      if (!request.tokens) return write(socket, request);
      for (let index = 0; index < request.tokens; index++) write(socket, { number: index, body: TOKEN });
    });
  }).listen(socketPath, () => say('ready'));
}

// One request at a time; resolves with its socket after `limit` requests, or when the time is over.
function requests(tokens, limit, times) {
  return new Promise(resolve => {
    const socket = net.connect(socketPath);
    socket.on('error', error => fail(error.message));
    let number = 0, left = 0, sent, first, started;
    const next = () => {
      first ??= now();
      if (times && !started && since(first) >= warmUp) {
        say('start');
        started = now();
      } else if (started && since(started) >= milliseconds) {
        say('end');
        return resolve([socket, since(started)]);
      }
      if (number == limit) return resolve([socket, 0]);
      left = tokens || 1;
      sent = now();
      write(socket, { number, tokens, body });
    };
    lines(socket, reply => {
      const isRight = tokens
        ? reply.number == tokens - left && reply.body == TOKEN
        : reply.number == number && reply.body == body;
      if (!isRight || left == 0) fail(`a wrong reply to request ${number}`);
      if (--left > 0) return;
      if (started) times.push(Number(now() - sent) / 1000);
      number++;
      next();
    });
    socket.on('connect', next);
  });
}

async function request(tokens) {
  const times = [];
  const [, spent] = await requests(tokens, Infinity, times);
  times.sort((a, b) => a - b);
  const at = part => times[Math.floor(times.length * part)];
  result({ messages: times.length, seconds: spent / 1000, p50_us: at(0.5), p99_us: at(0.99) });
}

async function connect() {
  const open = [await requests(0, 1)];
  say('start');
  for (let count = 0; count < connections; count++) open.push(await requests(0, 1));
  say('end');
  result({ messages: open.length, seconds: 0 });
}

function send() {
  const socket = net.connect(socketPath);
  socket.on('error', error => fail(error.message));
  let number = 0, started;
  const BURST = 128;
  const burst = () => {
    socket.cork();
    for (let count = 0; count < BURST; count++) {
      started ??= now();
      if (number % 64 == 0 && since(started) >= milliseconds + warmUp) {
        write(socket, { number, last: true, body });
        socket.uncork();
        process.stdin.resume();
        process.stdin.on('end', () => process.exit(0));
        return;
      }
      write(socket, { number: number++, body });
    }
    socket.uncork();
    if (socket.writableNeedDrain) socket.once('drain', burst);
    else setImmediate(burst);
  };
  socket.on('connect', burst);
}

function receive() {
  let received = 0, first, started, before;
  const server = net.createServer(socket => lines(socket, message => {
    const isRight = message.number == received && message.body == body;
    if (!isRight) fail(`message ${received} expected, ${message.number} received`);
    if (message.last) {
      if (!started) fail('all messages arrived before the warm-up ended');
      const seconds = since(started) / 1000;
      say('end');
      return result({ messages: received - before, seconds });
    }
    received++;
    if (!started && received % 64 == 0) {
      first ??= now();
      if (since(first) >= warmUp) {
        say('start');
        [started, before] = [now(), received];
      }
    }
  }));
  server.listen(socketPath, () => say('ready'));
}

({ respond, request: () => request(0), stream: () => request(TOKENS), connect, send, receive })[role]();
