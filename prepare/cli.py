"""The command line of prepare.

python -m prepare corpus corpus                        make the default corpus
python -m prepare text corpus --out data               grind it into tokens
python -m prepare text dump.tar.xz notes/ --tokenizer gpt2
cat story.txt | python -m prepare text - --tokenizer char
python -m prepare inspect data --show 3                what is in there
python -m prepare verify data                          every hash and count again
"""

import logging
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from common.errors import EXIT_SKIPPED
from common.options import CONTEXT, given, options_for
from prepare.config import PrepareConfig


@click.group(context_settings=CONTEXT)
def main() -> None:
    """Grind text archives into token files."""
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)


@main.command()
@click.argument(
    "src", nargs=-1, type=click.Path(path_type=Path, allow_dash=True), metavar="[SRC]..."
)
@click.option("--dataset", metavar="NAME", help="A Hugging Face data set, or a folder saved by it.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default="data",
    help="Folder to write; a data set already there is replaced when the new one is complete.",
)
@options_for(PrepareConfig)
def text(src: tuple[Path, ...], dataset: str | None, out: Path, **options: Any) -> None:
    """Turn SRC into token files: files, folders and '-' (standard input), in any of xz, zstd,
    gzip, bzip2 and tar, told by their content.
    """
    from prepare.pipeline import Corpus, prepare_corpus
    from prepare.report import progress_bars, totals_table
    from prepare.sources import find_sources

    if not src and dataset is None:
        raise click.UsageError("Name at least one SRC, or a --dataset.")
    config = PrepareConfig(**given(PrepareConfig, options))
    with _standard_input(src) as stdin:
        corpus = Corpus(find_sources(list(src), stdin=stdin, out=out), dataset)
        with progress_bars(corpus) as new_progress:
            meta = prepare_corpus(corpus, config, out, new_progress)
    click.echo(totals_table(meta, out))
    if meta["skipped"]:
        sys.exit(EXIT_SKIPPED)


@contextmanager
def _standard_input(paths: tuple[Path, ...]) -> Iterator[Path | None]:
    """Copy what '-' stands for into a file: sources are read twice, and a pipe can be read once."""
    if Path("-") not in paths:
        yield None
        return
    with tempfile.NamedTemporaryFile() as spool:
        shutil.copyfileobj(sys.stdin.buffer, spool)
        spool.flush()
        yield Path(spool.name)


@main.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
def corpus(folder: Path) -> None:
    """Write the default corpus into FOLDER: the documentation of this machine's Python."""
    from prepare.corpus import write_corpus

    n_documents, n_bytes = write_corpus(folder)
    click.echo(f"{folder}: {n_documents:,} documents, {n_bytes:,} bytes of text.")


@main.command()
@click.argument("data", type=click.Path(path_type=Path), default="data")
@click.option("--show", type=click.IntRange(min=0), default=0, help="Decode this many documents.")
def inspect(data: Path, show: int) -> None:
    """Say what is in a data folder, by split and by source."""
    from common.tokenfile import open_data
    from prepare.report import first_documents, sources_table, totals_table

    opened = open_data(data)
    click.echo(totals_table(opened.meta, data))
    click.echo("\n" + sources_table(opened.meta))
    for document in first_documents(opened, show):
        click.echo("\n" + document)


@main.command()
@click.argument("data", type=click.Path(path_type=Path), default="data")
def verify(data: Path) -> None:
    """Check every hash and count of a data folder again."""
    from common.tokenfile import open_data, verify_data

    opened = open_data(data)
    verify_data(opened)
    click.echo(f"{data}: {len(opened.meta['files'])} files are as they were written.")
