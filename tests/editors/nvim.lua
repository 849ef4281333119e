-- A headless Neovim as a client, of any version since 0.7: `.ci/editors` runs it, with a broker and an engine. It makes
-- the raw request; the module vim.lsp.inline_completion is younger (0.12).

local completion = vim.env.COMPLETION

local function check(condition, text)
  if not condition then
    io.stderr:write('nvim: ' .. text .. '\n')
    vim.cmd('cquit 1')
  end
end

vim.api.nvim_buf_set_name(0, '/work/a.rs')
vim.bo.filetype = 'rust'
vim.api.nvim_buf_set_lines(0, 0, -1, false, { 'fn grüße() {', '    ', '}' })

local id = vim.lsp.start_client({
  name = 'lapce-ipc',
  cmd = { vim.env.LAPCE_IPC, 'lsp' },
  flags = { debounce_text_changes = 0 },
})
check(id, 'the server does not start')
vim.lsp.buf_attach_client(0, id)
local client = vim.lsp.get_client_by_id(id)
check(vim.wait(30000, function() return client.initialized end), 'the server does not initialize')
check(client.server_capabilities.inlineCompletionProvider == true, 'no inline completion')

-- The text of a completion at a line and a column, both from 0.
local function complete(line, column)
  local result, failed
  client.request('textDocument/inlineCompletion', {
    textDocument = vim.lsp.util.make_text_document_params(),
    position = { line = line, character = column },
    context = { triggerKind = 1 },
  }, function(err, res)
    result, failed = res, err
  end, 0)
  check(vim.wait(30000, function() return result or failed end), 'no reply')
  check(result, vim.inspect(failed))
  return vim.trim(result.items[1].insertText)
end

check(complete(1, 4) == completion, 'another completion')
vim.api.nvim_buf_set_text(0, 1, 4, 1, 4, { completion:sub(1, 4) })
check(complete(1, 8) == completion:sub(5), 'typing through')
-- Not typed through: the second line goes.
vim.api.nvim_buf_set_lines(0, 1, 2, false, { 'x', 'ü😀' })
check(complete(2, 3) == completion, 'after an edit')

client.stop()
check(vim.wait(10000, function() return client.is_stopped() end), 'the server does not stop')
io.stdout:write('ok')
vim.cmd('qall!')
