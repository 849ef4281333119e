(; The plugin: on its first call it tells Lapce to start `lapce-ipc lsp --start`, found on PATH.

   Lapce calls `handle_rpc` for each message to the plugin, the first of which is `initialize`. The plugin writes one line
   of JSON-RPC to its stdout, and calls `host_handle_rpc`, with which Lapce reads it. All else is between Lapce and the
   language server. Lapce's runtime takes this text as it takes a binary. ;)
(module
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (import "lapce" "host_handle_rpc" (func $host_handle_rpc))
  (memory (export "memory") 1)

  (; 0: one buffer for fd_write, its address and its 179 bytes. 8: the number of bytes that were written. ;)
  (data (i32.const 0) "\10\00\00\00\b3\00\00\00")
  (data (i32.const 16)
    "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"host/startLspServer\","
    "\"params\":{\"serverUri\":\"urn:lapce-ipc\",\"serverArgs\":[\"lsp\",\"--start\"],"
    "\"documentSelector\":[{\"pattern\":\"**\"}],\"options\":null}}\n")

  (global $is_started (mut i32) (i32.const 0))

  (func (export "handle_rpc")
    (if (global.get $is_started) (then (return)))
    (global.set $is_started (i32.const 1))
    (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
    (call $host_handle_rpc)))
