"""The command line of prepare: options, and which function does it."""

import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from common.errors import EXIT_SKIPPED
from common.files import sha256_of
from common.settings import CONTEXT, given, options_for
from prepare.archives.streams import temporary_space
from prepare.config import PrepareConfig
from prepare.sources.discover import find_sources
from prepare.sources.source import Progress, Source
from prepare.workers.executor import Executor

if TYPE_CHECKING:
    from common.dataset import DataFolder

log = logging.getLogger(__name__)

MAX_LISTED = 10  # skipped files, sources and warnings named one by one; the rest is in meta.json

data_argument = click.argument("data", type=click.Path(path_type=Path), default="data")


@click.group(context_settings=CONTEXT)
def main() -> None:
    """Grind text archives into token files."""
    # numpy's threads: nothing here uses them, and at the start they spin for a tenth of a second
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)


@main.command()
@click.argument(
    "src", nargs=-1, type=click.Path(path_type=Path, allow_dash=True), metavar="[SRC]..."
)
@click.option("--dataset", metavar="NAME", help="A Hugging Face data set, or a folder saved by it.")
@click.option("--config", help="Configuration of the --dataset, where it has several.")
@click.option("--split", default="train", help="Split of the --dataset to read.")
@click.option(
    "--val-files",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Files or folders that are the validation set, whole; SRC is then all for training. "
    "May be repeated.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default="data",
    help="Folder to write; a data set already there is replaced when the new one is complete.",
)
@options_for(PrepareConfig)
@options_for(Executor)
def text(
    src: tuple[Path, ...],
    dataset: str | None,
    config: str | None,
    split: str,
    val_files: tuple[Path, ...],
    out: Path,
    **options: Any,
) -> None:
    """Turn SRC into token files: files, folders, patterns and '-' (standard input), in any of xz,
    zstd, gzip, bzip2, zip and tar, told by their content; in them text, JSON, CSV or parquet.

    Stopped or killed, the same command goes on where it was. Run again with nothing changed, it
    does nothing.
    """
    from prepare.pipeline import prepare_corpus

    if not src and dataset is None:
        raise click.UsageError("Name at least one SRC, or a --dataset.")
    settings = PrepareConfig(**given(PrepareConfig, options))
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
            meta = prepare_corpus(sources, settings, out, new_progress, executor)
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
def corpus(folder: Path) -> None:
    """Write the default corpus into FOLDER: the documentation of this machine's Python."""
    from prepare.corpus import write_corpus

    n_documents, n_bytes = write_corpus(folder)
    click.echo(f"{folder}: {n_documents:,} documents, {n_bytes:,} bytes of text.")


@main.command()
@data_argument
@click.option("--show", type=click.IntRange(min=0), default=0, help="Decode this many documents.")
def inspect(data: Path, show: int) -> None:
    """Verify a data folder and say what is in it: by split and source, how long, which tokens."""
    from prepare.report.inspection import first_documents, inspect_data, tables

    opened = _open_verified(data)
    click.echo("\n".join([totals_table(opened.meta, data), *warning_lines(opened.meta)]))
    click.echo("\n" + tables(inspect_data(opened)))
    for document in first_documents(opened, show):
        click.echo("\n" + document)


@main.command()
@data_argument
def verify(data: Path) -> None:
    """Check every hash and count of a data folder again."""
    n_files = len(_open_verified(data).meta["files"])
    click.echo(f"{data}: {n_files} files are as they were written.")


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

    data = open_data(path)
    verify_data(data)
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
    from prepare.report.export import export_llmc, export_text

    write = {"llmc": export_llmc, "text": export_text}[to]
    for path in write(_open_verified(data), folder):
        click.echo(str(path))


@contextmanager
def progress_bars(unit: str = "B") -> Iterator[Callable[[str, int], Progress]]:
    """Give each pass over the sources a bar in bytes on disk, with the time that is left.

    There is none where stderr is no terminal.
    """
    if not sys.stderr.isatty():
        yield lambda name, size_bytes: lambda n_bytes: None
        return
    from tqdm import tqdm

    with ExitStack() as shown:

        def new_progress(name: str, size_bytes: int) -> Progress:
            shown.close()  # that of the pass before
            bar = tqdm(
                desc=name, total=size_bytes or None, unit=unit, unit_scale=True, mininterval=0.5
            )
            return shown.enter_context(bar).update

        yield new_progress


def totals_table(meta: dict[str, Any], folder: Path) -> str:
    """Return documents, bytes and tokens by split, then everything that was left out and why."""
    lines = [f"{'split':<7}{'documents':>13}{'bytes':>17}{'tokens':>16}{'bytes/token':>13}"]
    rows = meta["splits"]
    total = {key: sum(row[key] for row in rows.values()) for key in rows["train"]}
    for name, row in [*rows.items(), ("all", total)]:
        ratio = f"{row['bytes'] / row['tokens']:.2f}" if row["tokens"] else "-"
        lines.append(
            f"{name:<7}{row['documents']:>13,}{row['bytes']:>17,}{row['tokens']:>16,}{ratio:>13}"
        )
    tokenizer, split = meta["tokenizer"], meta["split"]
    lines.append(
        f"{folder}: {meta['n_documents']:,} documents, split by {split['rule']}; vocabulary "
        f"{tokenizer['name']}, {tokenizer['vocab_size']:,} ids as {meta['dtype']}; "
        f"encoded by {meta['encoder']}."
    )
    for count, what in [
        (meta["n_empty"], "documents without text, left out"),
        (meta["n_duplicates"], "documents equal to an earlier one (--dedup exact drops them)"),
        (meta["n_bad_bytes"], "documents with bytes that are no text"),
        (meta["n_with_nul"], "documents with NUL characters, kept"),
        (meta["n_crlf"], "files with CR LF or CR for line ends, now LF"),
        (meta["n_forced_cuts"], "cuts inside of words of millions of characters"),
        *((count, f"files read as {name}") for name, count in meta["encodings"].items()),
    ]:
        if count:
            noun, _, rest = what.partition(" ")
            lines.append(f"{count:,} {noun.removesuffix('s') if count == 1 else noun} {rest}.")
    for reason, count in meta["reasons"].items():
        names = [entry["name"] for entry in meta["skipped"] if entry["reason"] == reason]
        more = f" and {count - MAX_LISTED:,} more" if count > MAX_LISTED else ""
        lines.append(f"{count:,} skipped, {reason}: {', '.join(names[:MAX_LISTED])}{more}.")
    return "\n".join(lines)


def warning_lines(meta: dict[str, Any]) -> list[str]:
    """Return the first warnings of meta.json, and how many more it holds."""
    warnings: list[str] = meta["warnings"]
    more = f"{len(warnings) - MAX_LISTED:,} more warnings in meta.json."
    return warnings[:MAX_LISTED] + [more] * (len(warnings) > MAX_LISTED)
