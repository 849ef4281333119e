#!/usr/bin/env node
// A requester in Node.js: one reply, then a streamed one.
import { spawn } from "node:child_process";
import { createInterface } from "node:readline";

const broker = spawn("lapce-ipc", ["connect"], { stdio: ["pipe", "pipe", "inherit"] });
const say = (operation) => broker.stdin.write(JSON.stringify(operation) + "\n");

say({ op: "request", id: 1, service: "upper", data: "one reply" });
say({ op: "request", id: 2, service: "upper", data: "many small chunks", stream: true });
broker.stdin.end(); // It ends when both requests have.

for await (const line of createInterface(broker.stdout)) {
  const event = JSON.parse(line);
  if (event.id) console.log(event.id, event.event, event.data ?? event.message ?? "");
}
