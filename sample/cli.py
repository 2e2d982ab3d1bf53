"""The command line of sample.

python -m sample chat                                  the newest run, its best checkpoint
python -m sample chat shakespeare --temperature 1.0
python -m sample chat --template turns --transcript talk.jsonl
python -m sample generate --prompt "Once upon a time" > story.txt
python -m sample serve                                 the page and the API, on this machine
"""

import io
import logging
import os
import sys
from pathlib import Path
from typing import Any

import click

from common.command import CONTEXT, device_option, runs_dir_option
from common.errors import ConfigError
from common.inference.config import GenerateConfig
from common.settings import Command, given, options_for
from sample.server.config import ServeConfig

run_argument = click.argument("run", required=False)
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def checkpoint_options(command: Command) -> Command:
    """Add the options that say which checkpoint is loaded, and onto what."""
    for option in (
        click.option(
            "--quantize",
            type=click.Choice(["none", "int8"]),
            default="none",
            help="int8: weights of one byte, on CPUs: up to 3 times as fast, a little less exact.",
        ),
        device_option,
        click.option(
            "--checkpoint",
            type=click.Choice(["best", "latest"]),
            default="best",
            help="Which of the run's checkpoints.",
        ),
        runs_dir_option,
    ):
        command = option(command)
    return command


def huge_pages_on_request() -> bool:
    """Tell whether Linux gives memory in pages of 2 MB to those who ask.

    In them weights are laid out in a third of the time and read up to an eighth faster.
    """
    try:
        return "[madvise]" in HUGE_PAGES.read_text(encoding="ascii")
    except OSError:
        return False


@click.group(context_settings=CONTEXT)
def main() -> None:
    """Talk to a trained GPT."""
    if huge_pages_on_request():
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # PyTorch reads it at its first tensor
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)
    logging.getLogger("torch").setLevel(logging.WARNING)  # it counts its caches as it ends
    for stream in (sys.stdin, sys.stdout):  # whatever the locale says: text here is UTF-8
        if isinstance(stream, io.TextIOWrapper):  # None where it was closed
            stream.reconfigure(encoding="utf-8", errors="replace")


@main.command()
@run_argument
@checkpoint_options
@options_for(GenerateConfig)
@click.option(
    "--template",
    default="raw",
    help="raw: the text goes on; turns: a script of two speakers; or a JSON file.",
)
@click.option(
    "--transcript",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File to which each turn is added, as JSON lines.",
)
def chat(
    run: str | None,
    runs_dir: Path,
    checkpoint: str,
    device: str,
    quantize: str,
    template: str,
    transcript: Path | None,
    **options: Any,
) -> None:
    """Talk to RUN (the newest by default): what you type is continued.

    In a terminal with line editing, a history and commands (/help); else each line of standard
    input is a prompt. Text goes to stdout, notices to stderr.
    """
    from sample.chat.banner import banner, read_facts
    from sample.chat.session import Chat
    from sample.chat.terminal import say, talk
    from sample.chat.transcript import Transcript
    from sample.loaded_model import load
    from sample.text.template import find_template

    config = GenerateConfig(**given(GenerateConfig, options))
    found = find_template(template)
    kept = Transcript(transcript, say) if transcript is not None else None
    ready = load(run, runs_dir, checkpoint, device, quantize)
    say(banner(read_facts(ready.folder, ready.loaded)))
    talking = Chat(
        ready.decoder(1),
        config,
        template=found,
        run=str(ready.folder),
        say=say,
        transcript=kept,
    )
    talk(talking, _state_folder() / "chat-history")


def _state_folder() -> Path:
    """Return where programs keep what outlives them. Source: XDG Base Directory 0.8."""
    given_folder = os.environ.get("XDG_STATE_HOME", "")
    if not os.path.isabs(given_folder):  # a relative one is to be ignored
        given_folder = os.path.expanduser("~/.local/state")
    return Path(given_folder) / "quern"


@main.command()
@run_argument
@click.option("--prompt", default="", help="The beginning of the text; empty: of a new document.")
@checkpoint_options
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
    run: str | None,
    prompt: str,
    runs_dir: Path,
    checkpoint: str,
    device: str,
    quantize: str,
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
    from sample.generate import Wanted, write_json, write_text
    from sample.loaded_model import load
    from sample.text.truncate import missing_notice

    config = GenerateConfig(**given(GenerateConfig, options))
    ready = load(run, runs_dir, checkpoint, device, quantize)
    click.echo(ready.described(), err=True)
    for notice in missing_notice(ready.loaded.tokenizer, prompt):
        click.echo(notice, err=True)
    wanted = Wanted(prompt, config, num_samples, stop, logprobs)
    for notice in wanted.notices(ready):
        click.echo(notice, err=True)
    for text in (write_json if as_json else write_text)(ready, wanted):
        click.echo(text, nl=False)


@main.command()
@click.argument(
    "files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, allow_dash=True)
)
@click.option("--run", help="The run's name; the newest by default.")
@checkpoint_options
@click.option(
    "--stride",
    type=click.IntRange(min=1),
    help="Tokens by which the window moves on; half of the context by default, at most all of it.",
)
@click.option("--per-token", is_flag=True, help="Show each token and how surprising it was.")
@click.option("--json", "as_json", is_flag=True, help="Write JSON, an object a line.")
def score(
    files: tuple[str, ...],
    run: str | None,
    runs_dir: Path,
    checkpoint: str,
    device: str,
    quantize: str,
    stride: int | None,
    per_token: bool,
    as_json: bool,
) -> None:
    """Say how surprising FILES (- is standard input) are to a run: loss, perplexity, bits a byte.

    Each file is scored as one document. With --per-token, in a terminal the text is coloured;
    elsewhere each token gets a line: bits, logprob, id, text.
    """
    from sample.loaded_model import load
    from sample.score.report import Style, score_files

    ready = load(run, runs_dir, checkpoint, device, quantize)
    click.echo(ready.described(), err=True)
    in_colour = per_token and not as_json and sys.stdout.isatty()
    style = Style(per_token=per_token, as_json=as_json, in_colour=in_colour)
    for text, is_result in score_files(ready, files, stride, style):
        click.echo(text, nl=False, err=not is_result)


@main.command()
@run_argument
@checkpoint_options
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
@click.option(
    "--template", default="raw", help="How chats are written down: raw, turns, or a file."
)
@options_for(GenerateConfig, without=("seed",))
def serve(
    run: str | None,
    runs_dir: Path,
    checkpoint: str,
    device: str,
    quantize: str,
    allow_host: tuple[str, ...],
    allow_origin: tuple[str, ...],
    api_key_file: Path | None,
    template: str,
    **options: Any,
) -> None:
    """Serve RUN (the newest by default) as a page and over HTTP, as OpenAI's API.

    The settings of generation are what a request that does not say otherwise gets.
    """
    from sample.loaded_model import load
    from sample.server.run import bind, describe_model
    from sample.server.run import serve as serve_model
    from sample.server.security import make_access
    from sample.text.template import find_template

    config = ServeConfig(**given(ServeConfig, options))
    defaults = GenerateConfig(**given(GenerateConfig, options))
    found = find_template(template)
    bound = bind(config)  # before the checkpoint is read, which may take long
    access = make_access(
        bound,
        config.host,
        allow_hosts=allow_host,
        allow_origins=allow_origin,
        key_file=api_key_file,
    )
    ready = load(run, runs_dir, checkpoint, device, quantize)
    serve_model(ready, describe_model(ready, found, defaults, config), bound, access)
