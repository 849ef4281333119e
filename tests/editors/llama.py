"""llama.cpp's own HTTP server with a small model: `test_llama.py` starts it, as `llama.py PORT`.

The model is a llama of eight layers with random weights, and single bytes with the markers for infilling as its tokens: it
writes lower-case nonsense without an end, at some hundred tokens a second. It is made anew at each start.
"""

import sys
import tempfile
import time
from pathlib import Path

import gguf
import numpy
import xllamacpp

LAYERS, WIDTH, HEADS, INNER = 8, 256, 8, 1024
MARKERS = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"]
TOKENS = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *MARKERS]
FIRST_BYTE = 3
UNKNOWN, CONTROL, BYTE = 2, 3, 6


def write_model(path):
    random = numpy.random.default_rng(1)

    def weights(*shape):
        return (random.standard_normal(shape) / numpy.sqrt(shape[-1])).astype(numpy.float32)

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(4096)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([token.encode() for token in TOKENS])
    writer.add_token_scores([0.0] * len(TOKENS))
    writer.add_token_types([UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [CONTROL] * len(MARKERS))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    for name, marker in zip(["pre", "suf", "mid"], MARKERS):
        writer.add_uint32(f"tokenizer.ggml.fim_{name}_token_id", TOKENS.index(marker))
    # All that is likely is a letter.
    output = numpy.zeros((len(TOKENS), WIDTH), numpy.float32)
    for letter in b"abcdefghijklmnopqrstuvwxyz":
        output[FIRST_BYTE + letter] = weights(WIDTH) * 20
    writer.add_tensor("token_embd.weight", weights(len(TOKENS), WIDTH))
    writer.add_tensor("output.weight", output)
    writer.add_tensor("output_norm.weight", numpy.ones(WIDTH, numpy.float32))
    for layer in range(LAYERS):
        for name in ["attn_norm", "ffn_norm"]:
            writer.add_tensor(f"blk.{layer}.{name}.weight", numpy.ones(WIDTH, numpy.float32))
        for name in ["attn_q", "attn_k", "attn_v", "attn_output"]:
            writer.add_tensor(f"blk.{layer}.{name}.weight", weights(WIDTH, WIDTH))
        for name, shape in [("gate", (INNER, WIDTH)), ("up", (INNER, WIDTH)), ("down", (WIDTH, INNER))]:
            writer.add_tensor(f"blk.{layer}.ffn_{name}.weight", weights(*shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "random.gguf"))
        write_model(path)
        params = xllamacpp.CommonParams()
        params.model.path = path
        params.n_ctx = 4096
        params.n_parallel = 1
        params.hostnames = ["127.0.0.1"]
        params.port = int(sys.argv[1])
        params.endpoint_slots = True
        params.cpuparams.n_threads = 1
        server = xllamacpp.Server(params)
    print(f"listening {server.listening_address}", flush=True)
    while True:
        time.sleep(3600)


main()
