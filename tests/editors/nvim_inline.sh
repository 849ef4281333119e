#!/usr/bin/env bash
# The configuration that editors/neovim/README.md has for Neovim 0.12, in a headless one that gets keys as if they were
# typed: grey text appears, is typed through and is accepted; an engine that fails is a message, and typing goes on.
#
#   NVIM=nvim nvim_inline.sh        `.ci/editors` runs it, with a broker and an engine, where Neovim is that new
#
# LAPCE_IPC is the program, COMPLETION what the engine completes, FAKE_URL the endpoint that the engine asks.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
nvim=${NVIM:-nvim}
folder=$(mktemp -d)
editor=
trap 'kill $editor 2>/dev/null || true; rm -rf "$folder"' EXIT

awk '/^```lua/ { inside = 1; next } /^```/ && inside { exit } inside' editors/neovim/README.md >"$folder/init.lua"
grep -q inline_completion.enable "$folder/init.lua"
printf 'fn main() {\n' >"$folder/a.rs"
PATH="$(dirname "$LAPCE_IPC"):$PATH" "$nvim" --headless --clean -u "$folder/init.lua" --listen "$folder/nvim.sock" \
    "$folder/a.rs" >"$folder/log" 2>&1 &
editor=$!

keys() { "$nvim" --server "$folder/nvim.sock" --remote-send "$1"; }
value() { "$nvim" --server "$folder/nvim.sock" --remote-expr "$1" 2>&1; }
# What is shown in grey in the cursor's line.
grey='luaeval("vim.iter(vim.api.nvim_buf_get_extmarks(0, -1, {vim.fn.line(\".\") - 1, 0}, {vim.fn.line(\".\") - 1, -1}, {details = true})):map(function(m) return m[4].virt_text and m[4].virt_text[1][1] or \"\" end):join(\"\")")'

# becomes WHAT EXPRESSION TEXT: waits until an expression has a value that contains a text.
becomes() {
    local found
    for _ in $(seq 300); do
        found=$(value "$2") || true
        if [[ $found == *"$3"* ]]; then
            echo "$1: $3"
            return
        fi
        sleep 0.1
    done
    echo "$1: $found, not $3; mode $(value 'mode()'), text $(value 'join(getline(1, "$"), "|")')"
    cat "$folder/log"
    return 1
}

becomes "enabled" 'luaeval("tostring(vim.lsp.inline_completion.is_enabled({ bufnr = 0 }))")' true
keys 'o'
becomes "grey text" "$grey" "$COMPLETION"
keys "${COMPLETION:0:3}"
becomes "typed through" "$grey" "${COMPLETION:3}"
keys '<Tab>'
becomes "accepted" '"<" . trim(getline(2)) . ">"' "<$COMPLETION>"
keys '<CR>zz'
becomes "grey text once more" "$grey" "$COMPLETION"
curl -sf "$FAKE_URL/mode/500" >/dev/null
keys 'q<Home><Tab>'
becomes "a stale suggestion is not inserted" 'getline(3) =~# "^\\s*zzq$"' 1
keys '<End>'
keys '<CR>x'
becomes "message" 'execute("messages")' "no completions"
keys 'y'
becomes "typing goes on" 'getline(4)' "xy"
curl -sf "$FAKE_URL/mode/ok" >/dev/null
keys '<CR>z'
becomes "grey text again" "$grey" "$COMPLETION"
