"""The command line of prepare: options, and which function does it."""

import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from common.errors import EXIT_SKIPPED
from common.files import sha256_of
from common.settings import CONTEXT, given, options_for
from prepare.archives.streams import temporary_space
from prepare.config import NOT_OF_CHATS, ChatsConfig, PrepareConfig
from prepare.report.summary import progress_bars, totals_table, warning_lines
from prepare.sources.discover import find_sources
from prepare.sources.source import Source
from prepare.workers.executor import Executor

if TYPE_CHECKING:
    from common.dataset import DataFolder
    from prepare.workers.executor import ReadSource

log = logging.getLogger(__name__)

DEFAULT_CONTEXT = 1_024  # of conversations, ids, where no run is named

data_argument = click.argument("data", type=click.Path(path_type=Path), default="data")


@click.group(context_settings=CONTEXT)
def main() -> None:
    """Grind text archives into token files."""
    # numpy's threads: nothing here uses them, and at the start they spin for a tenth of a second
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)


def source_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command what says which sources to read."""
    for option in (
        click.option(
            "--val-files",
            type=click.Path(path_type=Path),
            multiple=True,
            help="Files or folders that are the validation set, whole; SRC is then all for "
            "training. May be repeated.",
        ),
        click.option("--split", default="train", help="Split of the --dataset to read."),
        click.option("--config", help="Configuration of the --dataset, where it has several."),
        click.option(
            "--dataset", metavar="NAME", help="A Hugging Face data set, or a folder saved by it."
        ),
        click.argument(
            "src", nargs=-1, type=click.Path(path_type=Path, allow_dash=True), metavar="[SRC]..."
        ),
    ):
        command = option(command)
    return command


def out_option(default: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command --out."""
    return click.option(
        "--out",
        type=click.Path(path_type=Path, file_okay=False),
        default=default,
        help="Folder to write; a data set already there is replaced when the new one is complete.",
    )


@main.command()
@source_options
@out_option("data")
@options_for(PrepareConfig)
@options_for(Executor)
def text(**options: Any) -> None:
    """Turn SRC into token files: files, folders, patterns and '-' (standard input), in any of xz,
    zstd, gzip, bzip2, zip and tar, told by their content; in them text, JSON, CSV or parquet.

    Stopped or killed, the same command goes on where it was. Run again with nothing changed, it
    does nothing.
    """
    from prepare.readers.documents import read_source

    settings = PrepareConfig(**given(PrepareConfig, options))
    _prepare(settings, read_source, **options)


@main.command()
@source_options
@out_option("chats")
@options_for(ChatsConfig, without=NOT_OF_CHATS)
@options_for(Executor)
def chats(**options: Any) -> None:
    """Turn conversations in SRC into token files that a run is fine-tuned on.

    JSON lines or JSON, CSV and parquet with messages, conversations (ShareGPT), instruction and
    output (Alpaca), prompt and completion, question and answer, or chosen and rejected; exports of
    WhatsApp and Discord, and text with "NAME: " before each message. Archives, folders and '-' as
    in prepare text. All is told by content.
    """
    from prepare.readers.conversations import read_conversations
    from prepare.sources.vocabulary import block_size_of

    settings = ChatsConfig(**given(ChatsConfig, options))
    if settings.tokenizer == ChatsConfig.tokenizer and not Path(settings.tokenizer).exists():
        raise click.UsageError(
            f"There is no {settings.tokenizer} here, whose vocabulary is taken by default: "
            "--tokenizer names the run that will be fine-tuned (runs/NAME), or its data."
        )
    context = settings.context or block_size_of(settings.tokenizer) or DEFAULT_CONTEXT
    _prepare(replace(settings, context=context), read_conversations, **options)


def _prepare(
    settings: PrepareConfig,
    read: "ReadSource",
    *,
    src: tuple[Path, ...],
    dataset: str | None,
    config: str | None,
    split: str,
    val_files: tuple[Path, ...],
    out: Path,
    **options: Any,
) -> None:
    """Find the sources, write the data folder, and say what is in it."""
    from prepare.pipeline import prepare_corpus

    if not src and dataset is None:
        raise click.UsageError("Name at least one SRC, or a --dataset.")
    executor = Executor(**given(Executor, options))
    if executor.ray_address is not None and executor.engine != "ray":
        raise click.UsageError("--ray-address is of use only with --engine ray.")
    _check_ignored(settings, has_src=bool(src), has_val_files=bool(val_files))
    with _standard_input(src) as stdin:
        with progress_bars(" files") as new_progress:
            found = new_progress("find", 0)
            sources = find_sources(
                list(src), val_paths=list(val_files), stdin=stdin, out=out, progress=found
            )
        if dataset is not None:
            sources.append(
                Source(name=dataset, path=Path(dataset), dataset=True, config=config, split=split)
            )
        with progress_bars() as new_progress:
            meta = prepare_corpus(sources, settings, out, new_progress, executor, read)
    click.echo(totals_table(meta, out))
    for line in warning_lines(meta):
        log.warning("%s", line)
    if meta["reasons"]:
        sys.exit(EXIT_SKIPPED)


def _check_ignored(settings: PrepareConfig, *, has_src: bool, has_val_files: bool) -> None:
    """Refuse, or say, what was given and is made void by other options."""
    context = click.get_current_context()
    given_ones = {
        name
        for name in context.params
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }
    if "dataset" not in given_ones and (names := {"config", "split"} & given_ones):
        raise click.UsageError(f"--{min(names)} is of use only with --dataset.")
    learns = settings.tokenizer == "bpe"  # from a sample that the seed draws
    of_files = ("separator", "encoding", "newlines", "strip_gutenberg", "max_ratio")
    for is_void, void, why in (
        (not learns, ("vocab_size",), "only --tokenizer bpe learns a vocabulary of any size"),
        (not has_src and not has_val_files, of_files, "a --dataset has no plain files or archives"),
        (has_val_files, ("val_fraction", "split_rule"), "--val-files are all of val"),
        (has_val_files and not learns, ("seed",), "--val-files are all of val"),
        (
            settings.split_rule == "tail" and not learns,
            ("seed",),
            "--split-rule tail draws nothing",
        ),
    ):
        for name in (name for name in void if is_void and name in given_ones):
            log.warning("--%s is ignored: %s.", name.replace("_", "-"), why)


@contextmanager
def _standard_input(paths: tuple[Path, ...]) -> Iterator[Any]:
    """Copy what '-' stands for into a file: sources are read twice, and a pipe can be read once."""

    if Path("-") not in paths:
        yield None
        return
    with tempfile.NamedTemporaryFile() as spool:
        with temporary_space("standard input"):
            shutil.copyfileobj(sys.stdin.buffer, spool)
            spool.flush()
        path = Path(spool.name)
        yield Source(name="standard input", path=path, content=sha256_of(path))


@main.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--chats",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write questions and answers about it, and small talk, into this .jsonl.zst.",
)
def corpus(folder: Path, chats: Path | None) -> None:
    """Write the default corpus into FOLDER: the documentation of this machine's Python."""
    from prepare.corpus import write_corpus

    n_documents, n_bytes = write_corpus(folder)
    click.echo(f"{folder}: {n_documents:,} documents, {n_bytes:,} bytes of text.")
    if chats is not None:
        from prepare.questions import write_conversations

        n_conversations, n_questions = write_conversations(chats)
        click.echo(f"{chats}: {n_conversations:,} conversations, {n_questions:,} questions.")


@main.command()
@data_argument
@click.option("--show", type=click.IntRange(min=0), default=0, help="Decode this many documents.")
def inspect(data: Path, show: int) -> None:
    """Verify a data folder and say what is in it: by split and source, how long, which tokens."""
    from prepare.report.conversations import first_conversations
    from prepare.report.inspection import first_documents, inspect_data, tables

    opened = _open_verified(data)
    click.echo("\n".join([totals_table(opened.meta, data), *warning_lines(opened.meta)]))
    click.echo("\n" + tables(inspect_data(opened)))
    first = first_conversations if opened.has_masks else first_documents
    for document in first(opened, show):
        click.echo("\n" + document)


@main.command()
@data_argument
def verify(data: Path) -> None:
    """Check every hash and count of a data folder again, and the hash of its index."""
    from prepare.output.index import verify_index

    opened = _open_verified(data)
    verify_index(opened)
    click.echo(f"{data}: {len(opened.meta['files'])} files are as they were written.")


@main.command()
@data_argument
def index(data: Path) -> None:
    """Index the training text of DATA, so that a chat can show where its words stand in it.

    Takes 4 bytes of disk a token and, up to 100 million tokens, 10 bytes of memory.
    """
    from common.dataset import open_data
    from common.suffix_array import SA_NAME
    from prepare.output.index import write_index

    opened = open_data(data)
    with progress_bars() as new_progress:
        is_new = write_index(opened, new_progress)
    what = f"{opened.n_tokens('train'):,} positions." if is_new else "there already, of these ids."
    click.echo(f"{data / SA_NAME}: {what}")


def _open_verified(path: Path) -> "DataFolder":
    from common.dataset import open_data, verify_data
    from prepare.report.conversations import verify_masks

    data = open_data(path)
    verify_data(data)
    verify_masks(data)
    return data


@main.command()
@click.argument("data", type=click.Path(path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--to",
    type=click.Choice(["llmc", "text"]),
    required=True,
    help="llmc: shards for llm.c and modded-nanogpt; text: the documents again, as JSON lines; "
    "Megatron-LM, GPT-NeoX and nanoGPT open DATA as it is.",
)
def export(data: Path, folder: Path, to: str) -> None:
    """Verify the data set DATA, and write it into FOLDER in a form that other projects read."""
    from prepare.report.conversations import export_conversations
    from prepare.report.export import export_llmc, export_text

    opened = _open_verified(data)
    write_text = export_conversations if opened.has_masks else export_text
    write = {"llmc": export_llmc, "text": write_text}[to]
    for path in write(opened, folder):
        click.echo(str(path))
