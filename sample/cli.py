"""The command line of sample.

python -m sample chat                                  the newest run, its best checkpoint
python -m sample chat shakespeare --temperature 1.0
python -m sample generate --prompt "Once upon a time" > story.txt
"""

import io
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from common.config import GenerateConfig
from common.options import CONTEXT, device_option, given, options_for, runs_dir_option

if TYPE_CHECKING:
    from common.checkpoint import Loaded

run_argument = click.argument("run", required=False)
checkpoint_option = click.option(
    "--checkpoint",
    type=click.Choice(["best", "latest"]),
    default="best",
    help="Which of the run's checkpoints.",
)


@click.group(context_settings=CONTEXT)
def main() -> None:
    """Talk to a trained GPT."""
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)
    for stream in (sys.stdin, sys.stdout):  # whatever the locale says: text here is UTF-8
        if isinstance(stream, io.TextIOWrapper):  # None where it was closed
            stream.reconfigure(encoding="utf-8", errors="replace")


def _load(
    run: str | None, runs_dir: Path, which: str, device: str
) -> "tuple[Path, Loaded, float | None]":
    from common import checkpoint
    from common.device import choose_device

    folder = checkpoint.newest_valid(
        checkpoint.find_run(runs_dir, run), "latest" if which == "latest" else "best"
    )
    loaded = checkpoint.load_checkpoint(folder, choose_device(device).torch_device)
    loaded.model.eval()
    return folder, loaded, checkpoint.val_loss_at(folder.parent, loaded.state["step"])


@main.command()
@run_argument
@runs_dir_option
@checkpoint_option
@device_option
@options_for(GenerateConfig)
def chat(run: str | None, runs_dir: Path, checkpoint: str, device: str, **options: Any) -> None:
    """Talk to RUN (the newest by default): each line you type is continued.

    Text goes to stdout, notices to stderr.
    """
    from sample.chat import Conversation, banner

    folder, loaded, val_loss = _load(run, runs_dir, checkpoint, device)
    state = loaded.state
    click.echo(
        banner(str(folder), state["step"], state["progress"]["n_tokens"], val_loss), err=True
    )
    conversation = Conversation(
        loaded.model, loaded.tokenizer, GenerateConfig(**given(GenerateConfig, options))
    )
    while True:
        click.echo("\n> ", nl=False, err=True)
        line = sys.stdin.readline() if sys.stdin else ""  # None where it was closed
        if not line:
            click.echo(err=True)
            return
        prompt = line.rstrip("\n")
        if not prompt.strip():
            click.echo("Type the beginning of a text, or Ctrl-D to leave.", err=True)
            continue
        notices, reply = conversation.reply(prompt)
        for notice in notices:
            click.echo(notice, err=True)
        click.echo(prompt, nl=False)
        for text in reply:
            click.echo(text, nl=False)
        click.echo()


@main.command()
@run_argument
@click.option("--prompt", default="", help="The beginning of the text; empty: of a new document.")
@runs_dir_option
@checkpoint_option
@device_option
@options_for(GenerateConfig)
def generate(
    run: str | None, prompt: str, runs_dir: Path, checkpoint: str, device: str, **options: Any
) -> None:
    """Write a text that begins with --prompt; only the text goes to stdout."""
    from common.generate import generate as generate_ids
    from sample.chat import loss_words, missing_notice
    from sample.stream import stream_text

    folder, loaded, val_loss = _load(run, runs_dir, checkpoint, device)
    click.echo(f"{folder}: {loss_words(val_loss)}", err=True)
    for notice in missing_notice(loaded.tokenizer, prompt):
        click.echo(notice, err=True)
    ids = loaded.tokenizer.encode(prompt)
    block_size = loaded.model.config.block_size
    if len(ids) > block_size:
        click.echo(
            f"The prompt has {len(ids):,} tokens and the context {block_size:,}: only its end is "
            "seen.",
            err=True,
        )
    config = GenerateConfig(**given(GenerateConfig, options))
    click.echo(prompt, nl=False)
    for text in stream_text(
        generate_ids(loaded.model, ids, config, loaded.tokenizer), loaded.tokenizer
    ):
        click.echo(text, nl=False)
    click.echo()
