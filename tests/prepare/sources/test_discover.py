"""Which files are read, in which order and under which name, and which ranges of their bytes."""

import gzip
import io
import itertools
import json
import logging
import os
import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.dataset import SPLITS, open_data
from common.errors import DataError
from prepare.sources import discover
from prepare.sources import source as reading
from prepare.sources.discover import find_sources
from prepare.sources.source import ProgressFile, Source, byte_ranges
from prepare.workers.executor import Task, key_of, make_tasks
from tests.prepare.making import json_lines, prepare, snapshot, texts_of
from tests.processes import run_python


def written(path: Path, content: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_folders_are_walked_in_the_order_of_names_without_hidden_ones(tmp_path: Path) -> None:
    for name in ["b/2.txt", "b/1.txt", "a.txt", ".hidden", ".git/config", "b/.hidden/3.txt"]:
        written(tmp_path / name)
    found = find_sources([tmp_path])
    assert [s.name for s in found] == [f"{tmp_path}/{n}" for n in ("a.txt", "b/1.txt", "b/2.txt")]
    assert not any(source.named for source in found)


def test_a_file_named_twice_is_read_once(tmp_path: Path) -> None:
    file = written(tmp_path / "a.txt")
    (tmp_path / "link.txt").symlink_to(file)
    for paths in [[tmp_path, file, file], [file, tmp_path / "link.txt"], [tmp_path / "*.txt"]]:
        assert len(find_sources(paths)) == 1


def test_a_file_that_is_named_counts_as_named_whatever_else_it_lies_in(tmp_path: Path) -> None:
    file = written(tmp_path / "a.txt")
    assert find_sources([tmp_path, file])[0].named
    assert find_sources([file, tmp_path])[0].named


def test_a_file_of_two_names_has_the_same_one_in_whatever_order_they_are_given(
    tmp_path: Path,
) -> None:
    names = [written(tmp_path / "b.txt"), tmp_path / "a.txt", tmp_path / "c.txt"]
    for link in names[1:]:
        link.symlink_to(names[0])
    for order in itertools.permutations(names):
        assert [source.path.name for source in find_sources(list(order))] == ["a.txt"]


def test_what_is_no_file_is_left_out_of_a_folder_and_a_loop_of_links_ends(tmp_path: Path) -> None:
    written(tmp_path / "a.txt")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert [source.path.name for source in find_sources([tmp_path])] == ["a.txt"]
    (tmp_path / "itself").symlink_to(tmp_path / "itself")
    with pytest.raises(DataError, match="itself: no such file or folder"):
        find_sources([tmp_path / "itself"])


def test_a_named_pipe_is_an_error_that_says_how_to_read_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match=r"pipe: neither a file nor a folder.*'-'"):
        find_sources([tmp_path / "pipe"])


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*.txt", ["a.txt", "b.txt"]),
        ("?.txt", ["a.txt", "b.txt"]),
        ("[bc].*", ["b.txt", "c.json"]),
        ("**/*.txt", ["a.txt", "b.txt", "deep/er/d.txt"]),
        ("deep*", ["deep/er/d.txt"]),
        ("what?.txt*", ["what?.txt"]),
    ],
)
def test_patterns_are_expanded(pattern: str, names: list[str], tmp_path: Path) -> None:
    for name in ["a.txt", "b.txt", "c.json", ".e.txt", "deep/er/d.txt"]:
        written(tmp_path / "in" / name)
    written(tmp_path / "in" / "what?.txt")
    found = [s.path.relative_to(tmp_path / "in") for s in find_sources([tmp_path / "in" / pattern])]
    expected = names + ["what?.txt"] * (pattern in ("*.txt", "**/*.txt"))
    assert [str(path) for path in found] == expected


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path: Path) -> None:
    written(tmp_path / "a[1].txt")
    written(tmp_path / "a1.txt")
    assert [s.path.name for s in find_sources([tmp_path / "a[1].txt"])] == ["a[1].txt"]


def test_a_pattern_of_no_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"\*\.zst: no such file or folder"):
        find_sources([tmp_path / "*.zst"])


def test_the_folder_written_to_is_no_source(tmp_path: Path) -> None:
    written(tmp_path / "a.txt", b"a story")
    prepare([tmp_path], tmp_path / "data")
    found = find_sources([tmp_path], out=tmp_path / "data")
    assert [source.path.name for source in found] == ["a.txt"]


def test_a_source_cannot_be_written_to(tmp_path: Path) -> None:
    written(tmp_path / "a.txt", b"a story")
    (tmp_path / "link").symlink_to(tmp_path)
    for folder in (tmp_path, tmp_path / "link"):
        with pytest.raises(DataError, match=f"^{folder}: is --out and a source"):
            find_sources([folder], out=tmp_path)


def test_that_a_link_to_a_folder_is_not_followed_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    written(tmp_path / "far" / "b.txt")
    written(tmp_path / "near" / "a.txt")
    (tmp_path / "near" / "link").symlink_to(tmp_path / "far")
    assert [source.path.name for source in find_sources([tmp_path / "near"])] == ["a.txt"]
    assert f"{tmp_path / 'near' / 'link'}: a link to a folder, not followed" in caplog.text
    both = find_sources([tmp_path / "near", tmp_path / "near" / "link"])
    assert [source.path.name for source in both] == ["a.txt", "b.txt"]


def test_a_file_of_val_is_val_only_wherever_else_it_lies(tmp_path: Path) -> None:
    for name in ["in/a.txt", "in/b.txt", "in/val/c.txt", "d.txt"]:
        written(tmp_path / name)
    val_paths = [tmp_path / "in" / "b.txt", tmp_path / "in" / "val", tmp_path / "d*"]
    found = find_sources([tmp_path / "in"], val_paths=val_paths)
    assert {s.path.name: s.val for s in found} == {
        "a.txt": False, "b.txt": True, "c.txt": True, "d.txt": True,
    }  # fmt: skip


def test_standard_input_is_named_so_and_read_once_and_first(tmp_path: Path) -> None:
    spool = written(tmp_path / "zzz spool", b"a story")
    stdin = Source(name="standard input", path=spool, content="a hash")
    file = written(tmp_path / "a.txt")
    for paths in [[Path("-"), file, Path("-")], [file, Path("-")]]:
        assert [s.name for s in find_sources(paths, stdin=stdin)] == ["standard input", str(file)]


def test_sources_give_the_same_bytes_in_whatever_order_they_are_named(tmp_path: Path) -> None:
    for i in range(6):
        lines = json_lines([f"{i}-{j} of them" for j in range(9)])
        written(tmp_path / "in" / f"{i}.jsonl", lines)
    files = sorted((tmp_path / "in").iterdir())
    whole = prepare([tmp_path / "in"], tmp_path / "whole", split_rule="hash")
    shuffled = random.Random(0).sample(files, len(files))
    again = prepare(shuffled, tmp_path / "again", split_rule="hash")
    assert snapshot(again.path) == snapshot(whole.path)
    in_order = [f"{i}-{j} of them".encode() for i in range(6) for j in range(9)]
    train = set(texts_of(whole, "train"))
    assert texts_of(whole, "train") == [text for text in in_order if text in train]


def test_names_that_are_not_utf8_are_read_and_shown_as_text(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in (b"caf\xe9.txt", b"caf\xe8.txt", b"\xff"):
        (folder / os.fsdecode(name)).write_bytes(b"text of " + name[:1])
    sources = find_sources([folder])
    assert [Path(source.name).name for source in sources] == [
        "caf\ufffd.txt", "caf\ufffd.txt", "\ufffd",
    ]  # fmt: skip
    data = prepare([folder], tmp_path / "data", tokenizer="bpe")
    assert sum(source["train"]["documents"] for source in data.meta["sources"]) == 3
    json.dumps(data.meta, ensure_ascii=False).encode("utf-8")
    before = (data.path / "meta.json").stat().st_mtime_ns
    assert prepare([folder], tmp_path / "data", tokenizer="bpe").meta == data.meta
    assert (data.path / "meta.json").stat().st_mtime_ns == before


def test_a_source_that_changed_is_known_by_size_and_time(tmp_path: Path) -> None:
    path = written(tmp_path / "a.txt", b"one")
    (source,) = find_sources([path])
    before = source.state()
    assert json.loads(json.dumps(before)) == before
    assert source.state() == before
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    assert source.state() != before
    path.write_bytes(b"longer")
    assert source.state() != before
    path.unlink()
    with pytest.raises(DataError, match=r"a\.txt: cannot be read \(No such file"):
        source.state()


def test_standard_input_is_known_by_its_hash_alone(tmp_path: Path) -> None:
    one = Source(name="standard input", path=tmp_path / "1", content="hash")
    assert replace(one, path=tmp_path / "2").state() == one.state()
    assert replace(one, content="another").state() != one.state()


def test_a_saved_data_set_is_known_by_its_files(tmp_path: Path) -> None:
    file = written(tmp_path / "set" / "deep" / "part.arrow")
    source = Source(name="set", path=tmp_path / "set", dataset=True)
    before = source.state()
    assert replace(source, split="test").state() != before
    file.write_bytes(b"longer")
    assert source.state() != before


@pytest.mark.parametrize("n_asked", [1, 99, 2560, 10_000])
@pytest.mark.parametrize("byte_range", [None, (0, 2560), (0, 7), (100, 101), (7, 2000), (5, 5)])
def test_a_progress_file_gives_its_range_and_tells_every_byte(
    byte_range: tuple[int, int] | None, n_asked: int, tmp_path: Path
) -> None:
    content = bytes(range(256)) * 10
    told: list[int] = []
    with ProgressFile(written(tmp_path / "a", content), told.append, byte_range) as file:
        stream = io.BufferedReader(file, 64)
        found = b"".join(iter(lambda: stream.read(n_asked), b""))
        assert sum(told) == len(found)
    assert found == (content if byte_range is None else content[slice(*byte_range)])


def numbered(tasks: list[Task]) -> list[tuple[int, list[str]]]:
    assert [task.number for task in tasks] == list(range(len(tasks)))
    return [(task.first_index, [source.path.name for source in task.sources]) for task in tasks]


def test_small_sources_share_a_task_and_large_ones_have_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prepare.workers.executor.GROUP_BYTES", 100)
    sizes = [40, 40, 40, 500, 0, 99, 1, 7]
    for i, size in enumerate(sizes):
        written(tmp_path / str(i), b"x" * size)
    tasks = make_tasks(find_sources([tmp_path]))
    assert numbered(tasks) == [(0, ["0", "1", "2"]), (3, ["3"]), (4, ["4", "5", "6"]), (7, ["7"])]
    assert [task.size_bytes for task in tasks] == [120, 500, 100, 7]


def test_a_key_is_that_of_all_it_is_made_from() -> None:
    assert key_of({"b": 1, "a": [2]}, "x") == key_of({"a": [2], "b": 1}, "x")
    assert len({key_of("x", i, [j]) for i in range(9) for j in range(9)}) == 81


@given(
    lengths=st.lists(st.integers(0, 60), min_size=1, max_size=40),
    range_bytes=st.integers(1, 50),
    block_bytes=st.integers(1, 20),
    last_newline=st.booleans(),
)
@settings(deadline=None)
def test_byte_ranges_are_whole_lines_and_make_up_the_file(
    tmp_path_factory: pytest.TempPathFactory,
    lengths: list[int],
    range_bytes: int,
    block_bytes: int,
    last_newline: bool,
) -> None:
    content = json_lines(["x" * length for length in lengths])
    content = content if last_newline else content[:-1]
    path = tmp_path_factory.mktemp("ranges") / "a.jsonl"
    path.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "RANGE_BYTES", range_bytes)
        patch.setattr(reading, "BLOCK_BYTES", block_bytes)
        found = byte_ranges(path)
    if len(content) < 2 * range_bytes or b"\n" not in content:
        assert found == []
        return
    assert b"".join(content[start:end] for start, end in found) == content
    for start, end in found:
        assert start < end
        assert start == 0 or content[start - 1 : start] == b"\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", json_lines(["text"] * 99)),
        ("a.jsonl", gzip.compress(json_lines([f"text {i}" for i in range(999)]))),
        ("a.jsonl", b'{\n "text": "over several lines"\n}\n' * 99),
        ("a.jsonl", json.dumps([{"text": "in a list"}] * 99).encode()),
        ("a.jsonl", json_lines(["text"] * 99).decode().encode("utf-16")),
    ],
    ids=["other name", "packed", "pretty-printed", "a list", "UTF-16"],
)
def test_what_is_no_plain_file_of_json_lines_is_not_cut(
    name: str, content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "RANGE_BYTES", 10)
    (tmp_path / name).write_bytes(content)
    assert byte_ranges(tmp_path / name) == []


@pytest.mark.parametrize("tokenizer", ["char", "bpe"])
def test_the_data_are_the_same_however_the_file_is_cut(
    tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        texts = [f"{name} {i} " * (i % 70) for i in range(300)]
        (tmp_path / f"{name}.jsonl").write_bytes(json_lines(texts))
    sources = [tmp_path / f"{name}.jsonl" for name in "abc"]
    whole = prepare(sources, tmp_path / "whole", tokenizer=tokenizer, vocab_size="300")
    for size in (2_000, 20_000):
        monkeypatch.setattr(reading, "RANGE_BYTES", size)
        cut = prepare(sources, tmp_path / str(size), tokenizer=tokenizer, vocab_size="300")
        assert snapshot(cut.path) == snapshot(whole.path)


def test_a_bad_line_is_named_by_the_range_it_is_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = json_lines([f"text {i}" for i in range(10)])
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines + b"not JSON\n" + lines)
    monkeypatch.setattr(reading, "RANGE_BYTES", len(lines))
    with pytest.raises(DataError, match=rf"^from byte {len(lines)} of {path}, line 1: not a JSON"):
        prepare([path], tmp_path / "data")


def test_memory_and_meta_json_do_not_grow_with_the_number_of_files(tmp_path: Path) -> None:
    """The peak is this process's alone: it reads all, and has the same texts to learn from.

    VmHWM, as ru_maxrss begins at the parent's peak.
    """
    code = (
        "import sys\n"
        "from prepare.cli import main\n"
        "main(sys.argv[1:], standalone_mode=False)\n"
        "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])\n"
    )
    sizes, peaks = [], []
    for n_files in (1_500, 9_000):
        for i in range(n_files):
            if i % 1_000 == 0:
                folder = tmp_path / str(n_files) / f"{i:05}"
                folder.mkdir(parents=True)
            (folder / f"{i:05} of them.txt").write_bytes(b"%d words" % i)
        options = ["--out", f"{n_files}.out", "--tokenizer", "char", "--workers", "1"]
        done = run_python(["-c", code, "text", str(n_files), *options], tmp_path)
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout.splitlines()[-1]))  # KiB
        meta = open_data(tmp_path / f"{n_files}.out").meta
        assert meta["n_documents"] == sum(
            source[split]["documents"] for source in meta["sources"] for split in SPLITS
        )
        sizes.append((tmp_path / f"{n_files}.out" / "meta.json").stat().st_size)
    assert peaks[1] - peaks[0] < 7_500 * 1_000 / 1024  # a path and some numbers; once it was 5,500
    assert sizes[1] < 1.01 * sizes[0] < 1 << 20
    shown = run_python(["-m", "prepare", "inspect", "9000.out"], tmp_path).stdout
    assert "and 8,990 more" in shown


@pytest.mark.parametrize("n_files", [3, 1_200])
def test_a_data_set_whose_meta_json_lists_every_file_is_known_again(
    n_files: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As it was written until a hash took the place of long lists."""
    for i in range(n_files):
        written(tmp_path / "in" / f"{i:04}.txt", b"%d words" % i)
    data = prepare([tmp_path / "in"], tmp_path / "data")
    meta = data.meta
    del meta["meta_sha256"]
    meta["made_from"]["sources"] = [source.state() for source in find_sources([tmp_path / "in"])]
    (data.path / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    before = (data.path / "meta.json").stat().st_mtime_ns
    prepare([tmp_path / "in"], tmp_path / "data")
    assert (data.path / "meta.json").stat().st_mtime_ns == before
    os.utime(tmp_path / "in" / "0001.txt", ns=(0, 0))
    caplog.set_level(logging.INFO)
    prepare([tmp_path / "in"], tmp_path / "data")
    changed = "the sources changed" if n_files > 1_000 else "1 of the sources changed"
    assert f"data: made again: {changed}" in caplog.text


def test_files_are_told_as_they_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discover, "TOLD_FILES", 4)
    for i in range(10):
        written(tmp_path / str(i % 2) / f"{i}.txt")
        written(tmp_path / "all" / f"{i}.txt")
    told: list[int] = []
    assert len(find_sources([tmp_path], progress=told.append)) == sum(told) - 3 == 20
    assert max(told) == 4


def test_paths_of_all_depths_are_in_the_order_of_their_bytes(tmp_path: Path) -> None:
    names = [
        "a/b.txt",
        "a/b/c.txt",
        "a/b-1.txt",
        "a/b0",
        "a.txt",
        "a-/x",
        "b",
        "\u00e4/z",
        "a/b/a/z",
    ]
    for name in names:
        written(tmp_path / name)
    expected = sorted(os.fsencode(tmp_path / name) for name in names)
    assert find_sources([tmp_path]).items == expected
    assert find_sources([tmp_path, tmp_path / "a"]).items == expected
