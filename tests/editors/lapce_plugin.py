"""Loads the Lapce plugin as Lapce does, and checks what it says: once, on the first call."""
import json
import pathlib
import tempfile
import tomllib

import wasmtime

FOLDER = pathlib.Path(__file__).parents[2] / "editors/lapce"
LINE = (
    '{"jsonrpc":"2.0","id":1,"method":"host/startLspServer","params":{"serverUri":"urn:lapce-ipc",'
    '"serverArgs":["lsp","--start"],"documentSelector":[{"pattern":"**"}],"options":null}}\n'
)

volt = tomllib.loads((FOLDER / "volt.toml").read_text())
for key in ["name", "version", "author", "display-name", "description", "wasm", "activation"]:
    assert volt[key], key
module_file = FOLDER / volt["wasm"]

with tempfile.NamedTemporaryFile() as stdout:
    said = []
    store = wasmtime.Store()
    wasi = wasmtime.WasiConfig()
    wasi.stdout_file = stdout.name
    store.set_wasi(wasi)
    linker = wasmtime.Linker(store.engine)
    linker.define_wasi()
    linker.define_func("lapce", "host_handle_rpc", wasmtime.FuncType([], []), lambda: said.append(1))
    module = wasmtime.Module(store.engine, module_file.read_text())
    # Lapce does both.
    linker.define_module(store, "", module)
    handle_rpc = linker.instantiate(store, module).exports(store)["handle_rpc"]
    for calls in range(1, 4):
        handle_rpc(store)
        assert said == [1], f"call {calls}: the host is called once"
        assert pathlib.Path(stdout.name).read_text() == LINE
json.loads(LINE)
print("the plugin asks for:", LINE, end="")
