"""A run -> a GGUF file, which llama.cpp and what is made of it run, and a Modelfile for Ollama.

    --architecture modern   qwen3        without --qk-norm   llama
    --mlp relu2                          without --qk-norm   arcee
    --architecture gpt2     gpt2

Norms, biases and learned positions stay float32, as llama.cpp has them. Of q8_0 and q4_0, rows that
are no whole blocks of 32 become float16, as by llama.cpp's own quantizer; of q4_0, embedding and
head become q8_0, where that one takes 6 bits, which the gguf package cannot write.
Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf

from common.chat_format import END_OF_MESSAGE
from common.checkpoint import MODEL_NAME, Checkpoint
from common.errors import ConfigError
from common.files import atomic_write, write_text
from common.huggingface.json_tokenizer import CHARACTERS
from common.huggingface.network import check_stock, weights_of
from common.huggingface.tokenizer_json import DIGITS_PATTERN, merges_of
from common.tokenizer import END_OF_TEXT, GPT2_PATTERN, BytePairTokenizer, CharTokenizer, Tokenizer
from sample.loaded_model import RunInfo, generate_config
from sample.text.prompt import find_template
from sample.weights_file import check_range, read_tensor

SUFFIX, MODELFILE_SUFFIX = ".gguf", ".Modelfile"
DTYPES = ("float32", "float16", "bfloat16", "q8_0", "q4_0")
# llama.cpp's files, by the type of most tensors in one
FILE_TYPES = {each.name.partition("_")[2]: each for each in gguf.LlamaFileType}
# Of transformers' networks that ours are, those of llama.cpp, where no other MLP can be asked for
NETWORKS = (("qwen3", "silu"), ("llama", "silu"), ("arcee", "relu2"), ("gpt2", "gelu_new"))
WORDS = {GPT2_PATTERN: "gpt-2", DIGITS_PATTERN: "smollm"}  # its names of patterns
CHAT = "{{ range .Messages }}<|{{ .Role }}|>{{ .Content }}<|end|>{{ end }}<|assistant|>"
PARAMETERS = ("temperature", "top_k", "top_p", "frequency_penalty")  # as Ollama has them
PAIRED = ("llama", "arcee")  # it rotates channels 0 and 1, 2 and 3 ...: ours are in two halves


def write_gguf(loaded: Checkpoint, info: RunInfo, path: Path, dtype: str) -> str:
    """Write ``path`` and its Modelfile; return what it is, in words.

    Raises ConfigError where llama.cpp has no such network or vocabulary.
    """
    c = info.config
    kind, activation = check_stock(c)
    if (kind, activation) not in NETWORKS:
        raise ConfigError(
            f"--ngrams is {c.ngrams}, --mlp {c.mlp}, --qk-norm {c.qk_norm}: llama.cpp has no such "
            "network. GGUF takes --mlp swiglu, or relu2 with --no-qk-norm, and --architecture "
            "gpt2 as it is; --preset tiny-portable trains one for it. --to hf takes this one."
        )
    most = dtype.upper().replace("FLOAT", "F")  # as ggml names them
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[kind.upper()], c.n_layer)
    about = _settings(info, most) | _vocabulary(loaded.tokenizer, info)
    with atomic_write(path) as file:
        with closing(gguf.GGUFWriter(file.name, kind)) as writer:
            for key, value in (about | {"chat_template": loaded.chat_template or ""}).items():
                getattr(writer, f"add_{key}")(value)
            for weight in weights_of(c):
                name = names.get_name(weight.name, (".weight", ".bias")) or weight.name
                here = replace(weight, is_transposed=False)
                # cloned, as it would keep a map of the whole file, one for each
                values = read_tensor(info.folder / MODEL_NAME, here, "float32").clone()
                if kind in PAIRED and name.endswith(("attn_q.weight", "attn_k.weight")):
                    halves = values.view(-1, 2, c.head_size // 2, c.n_embd)  # (nh, 2, hs / 2, C)
                    values = halves.transpose(1, 2).flatten(0, 2)
                number = _type(name, values.shape, most)
                if number.name not in ("F32", "BF16"):  # float16, also as the scale of a block
                    check_range(name, values)
                writer.add_tensor(name, gguf.quantize(values.numpy(), number), raw_dtype=number)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        modelfile = path.with_suffix(MODELFILE_SUFFIX)
        write_text(modelfile, _modelfile(path.name, loaded.tokenizer, info))
    return f"Network: {kind}. Ollama: ollama create NAME -f {modelfile}"


def _type(name: str, shape: tuple[int, ...], kind: str) -> gguf.GGMLQuantizationType:
    """Return as what the numbers of a tensor are written, most of them as ``kind``."""
    if len(shape) == 1 or name == "position_embd.weight":
        kind = "F32"
    elif kind.startswith("Q") and shape[-1] % 32:
        kind = "F16"
    elif kind == "Q4_0" and name in ("token_embd.weight", "output.weight"):
        kind = "Q8_0"
    return gguf.GGMLQuantizationType[kind]


def _settings(info: RunInfo, most: str) -> dict[str, Any]:
    """Return the settings, by the names of the writer's add_... methods; gpt2 has no rotation."""
    c = info.config
    return {
        "name": info.folder.parent.name, "file_type": FILE_TYPES[most],
        "quantization_version": gguf.GGML_QUANT_VERSION, "context_length": c.block_size,
        "block_count": c.n_layer, "embedding_length": c.n_embd, "head_count": c.n_head,
        "head_count_kv": c.kv_heads, "feed_forward_length": c.inner_size,
        "key_length": c.head_size, "value_length": c.head_size, "rope_freq_base": c.rope_theta,
        "layer_norm_eps" if c.norm == "layernorm" else "layer_norm_rms_eps": c.eps,
    }  # fmt: skip


def _vocabulary(tokenizer: Tokenizer, info: RunInfo) -> dict[str, Any]:
    """Return tokens, a character a byte, and merges: of characters, those of their bytes."""
    texts = [token.decode("latin-1").translate(CHARACTERS) for token in tokenizer.token_bytes]
    types = [gguf.TokenType.NORMAL if text else gguf.TokenType.UNUSED for text in texts]
    words, merges = "gpt-2", []
    if isinstance(tokenizer, CharTokenizer):
        merges = list({(text[:i], text[i]): 0 for text in texts for i in range(1, len(text))})
    elif isinstance(tokenizer, BytePairTokenizer) and tokenizer.pattern in WORDS:
        ranks = {text: rank for rank, text in enumerate(texts) if text}
        words, merges = WORDS[tokenizer.pattern], merges_of(ranks)
    if len(merges) < sum(len(text) > 1 for text in texts):
        raise ConfigError(
            f"Its vocabulary, {tokenizer.name}, cuts texts into words as llama.cpp does not: GGUF "
            "takes GPT-2's, those learned here, and characters. --to hf takes any."
        )
    texts = [text or f"[PAD{i}]" for i, text in enumerate(texts)]
    for name, i in tokenizer.special_tokens.items():
        texts[i], types[i] = name, gguf.TokenType.CONTROL
    end = tokenizer.special_tokens[END_OF_MESSAGE if info.is_chat else END_OF_TEXT]
    return {
        "tokenizer_model": "gpt2", "tokenizer_pre": words, "token_list": texts,
        "token_types": types, "add_bos_token": False, "bos_token_id": tokenizer.eot_id,
        "pad_token_id": tokenizer.eot_id, "eos_token_id": end, "eot_token_id": end,
        # llama.cpp asks for one at least; no UTF-8 has the byte 255
        "token_merges": [" ".join(pair) for pair in merges] or ["\u00ff \u00ff"],
    }  # fmt: skip


def _modelfile(name: str, tokenizer: Tokenizer, info: RunInfo) -> str:
    """Return what ``ollama create`` reads: our chat format as a Go template, and our defaults.

    Source: https://github.com/ollama/ollama/blob/main/docs/modelfile.mdx
    """
    d = generate_config(info, find_template(None, is_chat=info.is_chat), {})
    lines = [f"FROM ./{name}", f'TEMPLATE """{CHAT if info.is_chat else "{{ .Prompt }}"}"""']
    lines += [f"PARAMETER num_ctx {info.config.block_size}"]
    lines += [f"PARAMETER num_predict {d.max_new_tokens}", "PARAMETER repeat_penalty 1.0"]
    lines += [f"PARAMETER {key} {getattr(d, key)}" for key in PARAMETERS]
    lines += [f'PARAMETER stop "{special}"' for special in tokenizer.special_tokens]
    return "\n".join(lines) + "\n"
