"""The command line of sample: options, and which function does it."""

import io
import logging
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from common.errors import ConfigError
from common.models.config import GenerateConfig
from common.settings import CONTEXT, device_option, given, options_for, runs_dir_option
from sample.server.config import ServeConfig
from sample.text.terminal_text import notify, write_stdout

if TYPE_CHECKING:
    from sample.loaded_model import LoadedModel

run_argument = click.argument("run", required=False)
template_option = click.option(
    "--template",
    show_default="chat for a model that was trained on conversations, else raw",
    help="raw: the text goes on; turns: a script of two speakers; chat; or a JSON file.",
)
checkpoint_option = click.option(
    "--checkpoint",
    type=click.Choice(["best", "latest"]),
    default="best",
    help="Which of the run's checkpoints.",
)
quantize_option = click.option(
    "--quantize",
    type=click.Choice(["none", "int8"]),
    default="none",
    help="int8: weights of one byte, on CPUs: up to 3 times as fast, a little less exact.",
)


# Settings of generation that hang on the run, as help says them.
SHOWN = {item.name: str(item.default) for item in fields(GenerateConfig)} | {
    "frequency_penalty": "0.1 where it answers, else 0.0",
    "max_new_tokens": "the context where it answers, else 200",
}


def load_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that say which checkpoint is loaded, and onto what: those of ``load``."""
    return runs_dir_option(checkpoint_option(device_option(quantize_option(command))))


def load(options: Mapping[str, Any]) -> "LoadedModel":
    """Return the checkpoint that a command's options name."""
    from sample.loaded_model import load_model  # torch, which help does not need

    names = ("run", "runs_dir", "checkpoint", "device", "quantize")
    return load_model(*(options[name] for name in names))


@click.group(context_settings=CONTEXT)
def main() -> None:
    """Talk to a trained GPT."""
    # for PyTorch: memory in pages of 2 MB, where weights are read up to an eighth faster
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    logging.basicConfig(format="%(message)s", stream=sys.stderr)  # of libraries only warnings
    for ours in ("common", "sample"):
        logging.getLogger(ours).setLevel(logging.INFO)
    # whatever the locale says text here is UTF-8; a file that is piped in may begin with a mark
    for stream, encoding in ((sys.stdin, "utf-8-sig"), (sys.stdout, "utf-8")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding=encoding, errors="replace")


@main.command()
@run_argument
@load_options
@options_for(GenerateConfig, preset=SHOWN)
@template_option
@click.option(
    "--transcript",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File to which each turn is added, as JSON lines.",
)
def chat(template: str | None, transcript: Path | None, **options: Any) -> None:
    """Talk to RUN (the newest by default): it answers or, a base model, continues what you type.

    In a terminal with line editing, a history and commands (/help); else each line of standard
    input is a prompt. Text goes to stdout, notices to stderr.
    """
    from sample.chat.session import Chat
    from sample.chat.terminal import run_chat
    from sample.chat.transcript import Transcript
    from sample.loaded_model import banner, generate_config
    from sample.text.prompt import find_template
    from sample.text.sources import open_training_text

    kept = Transcript(transcript, notify) if transcript is not None else None
    model = load(options)
    found = find_template(template, is_chat=model.info.is_chat)
    config = generate_config(model.info, found, given(GenerateConfig, options))
    notify(banner(model.info, found))
    # Source: XDG Base Directory 0.8, by which a relative one is to be ignored
    state = os.environ.get("XDG_STATE_HOME", "")
    folder = Path(state if os.path.isabs(state) else os.path.expanduser("~/.local/state"))
    read = open_training_text(model.info.folder, model.tokenizer)
    session = Chat(model.decoder(), config, template=found, notify=notify, training_text=read)
    run_chat(session, folder / "quern" / "chat-history", kept)


@main.command()
@run_argument
@click.option("--prompt", default="", help="The beginning of the text; empty: of a new document.")
@load_options
@click.option("--num-samples", type=click.IntRange(1, 1_000_000), default=1, help="Texts to write.")
@click.option(
    "--stop", multiple=True, help="End where this text comes, without it; may be given repeatedly."
)
@click.option(
    "--json", "as_json", is_flag=True, help="Write a JSON object a text, with its tokens."
)
@click.option(
    "--logprobs",
    type=click.IntRange(0, 100),
    default=0,
    help="With --json: beside each token this many of the likeliest.",
)
@options_for(GenerateConfig)
def generate(
    prompt: str,
    num_samples: int,
    stop: tuple[str, ...],
    as_json: bool,
    logprobs: int,
    **options: Any,
) -> None:
    """Write a text that begins with --prompt; only the text goes to stdout.

    Several are divided by lines of ---. The first is that of --seed however many follow, the
    second that of the next seed, and so on.
    """
    if not all(stop):
        raise click.BadParameter("an empty text is everywhere.", param_hint="--stop")
    if logprobs and not as_json:
        raise ConfigError("--logprobs is of use only with --json: pass both, or none.")
    from sample.generate import GenerateRequest, write_json, write_text
    from sample.text.prompt import missing_notice

    config = GenerateConfig(**given(GenerateConfig, options))
    model = load(options)
    notify(f"{model.info.folder}: {model.info.loss_words}")
    if model.info.is_chat:
        notify("It was trained to answer, but this continues --prompt: python -m sample chat asks.")
    for notice in missing_notice(model.tokenizer, prompt):
        notify(notice)
    n, room = len(model.tokenizer.encode(prompt)), model.info.config.block_size
    if n > room:
        notify(f"The prompt has {n:,} tokens and the context {room:,}: only its end is seen.")
    request = GenerateRequest(prompt, config, num_samples, stop, logprobs)
    for text in (write_json if as_json else write_text)(model, request):
        write_stdout(text)


@main.command()
@click.argument(
    "files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, allow_dash=True)
)
@click.option("--run", help="The run's name; the newest by default.")
@load_options
@click.option(
    "--stride",
    type=click.IntRange(min=1),
    help="Tokens by which the window moves on; half of the context by default, at most all of it.",
)
@click.option("--per-token", is_flag=True, help="Show each token and how surprising it was.")
@click.option(
    "--novelty",
    is_flag=True,
    help="Say also which share of the tokens is in no run of 8 or more that the training text has; "
    "with --json, the others with the documents they stand in.",
)
@click.option("--json", "as_json", is_flag=True, help="Write JSON, an object a line.")
def score(
    files: tuple[str, ...],
    stride: int | None,
    per_token: bool,
    novelty: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Say how surprising FILES (- is standard input) are to a run: loss, perplexity, bits a byte.

    Each file is scored as one document. With --per-token, in a terminal the text is coloured;
    elsewhere each token gets a line: bits, logprob, id, text.
    """
    from sample.score import write_scores

    model = load(options)
    notify(f"{model.info.folder}: {model.info.loss_words}")
    write_scores(model, files, stride, per_token=per_token, as_json=as_json, novelty=novelty)


@main.command()
@run_argument
@load_options
@options_for(ServeConfig)
@click.option("--allow-host", multiple=True, help="Another name that clients may ask for it by.")
@click.option(
    "--allow-origin",
    multiple=True,
    help="Another site whose pages may ask, such as http://localhost:3000.",
)
@click.option(
    "--api-key-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File that holds the key which clients must send.",
)
@template_option
@options_for(GenerateConfig, without=("seed",), preset=SHOWN)
def serve(
    allow_host: tuple[str, ...],
    allow_origin: tuple[str, ...],
    api_key_file: Path | None,
    template: str | None,
    **options: Any,
) -> None:
    """Serve RUN (the newest by default) as a page and over HTTP, as OpenAI's API.

    The settings of generation are what a request that does not say otherwise gets.
    """
    from sample.loaded_model import generate_config
    from sample.server import run
    from sample.server.security import make_access
    from sample.text.prompt import find_template

    config = ServeConfig(**given(ServeConfig, options))
    bound = run.bind(config)  # before the checkpoint is read, which may take long
    access = make_access(
        bound, config.host, hosts=allow_host, origins=allow_origin, key_file=api_key_file
    )
    model = load(options)
    found = find_template(template, is_chat=model.info.is_chat)
    own = given(GenerateConfig, options)
    defaults = generate_config(model.info, found, own, config.max_tokens)
    run.serve(model, run.describe_model(model, found, defaults, config), bound, access)


@main.command()
@click.argument("run")
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--to",
    type=click.Choice(["hf", "gguf", "onnx", "weights"]),
    required=True,
    help="hf: a folder that transformers loads; gguf: a file that llama.cpp runs, and a Modelfile "
    "for Ollama; onnx: a folder that onnxruntime runs, in browsers too; weights: one safetensors "
    "file that sample runs.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16", "q8_0", "q4_0"]),
    default="float32",
    help="Of the numbers; the next two take half the room and are less exact; of gguf also the "
    "last two, of 8.5 and 4.5 bits.",
)
@click.option(
    "--push-to-hub",
    "repository",
    metavar="NAME",
    help="Upload OUT into this repository of the Hugging Face Hub as well; a new one is private.",
)
@runs_dir_option
@checkpoint_option
def export(
    run: str, out: Path, to: str, dtype: str, repository: str | None, **options: Any
) -> None:
    """Write the network of RUN, its vocabulary and its chat template into OUT, for other software.

    OUT must not be there yet. With --to gguf it ends in .gguf, with --to weights in .safetensors,
    which stands for a run: python -m sample chat OUT
    """
    from sample.export.run import export_run, push_to_hub

    notify(export_run(run, out, to, dtype, options["runs_dir"], options["checkpoint"]))
    if repository is not None:
        notify(push_to_hub(out, repository))
