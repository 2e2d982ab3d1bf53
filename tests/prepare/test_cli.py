"""python -m prepare as a process: exit codes, one sentence for an error, no half-written output."""

import json
import lzma
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import zstandard

from common.dataset import NAMES_NAME, SPLITS, open_data
from common.tokenizer import SPECIAL_TOKENS
from tests.prepare.making import json_lines, prepare, snapshot, tar_of, texts_of
from tests.processes import REPOSITORY, assert_one_sentence, run_python, start_python
from tests.terminal import Terminal

TEXT = ["text", "--tokenizer", "char", "--out", "data"]
CUT_XZ = lzma.compress(b"text" * 99)[:-20]
BAD_UTF8 = "caf\u00e9, th\u00e9, ".encode() + b"\xe9"
# A module of this name in the current folder is found before the installed one.
NO_GIGATOKEN = "raise ImportError('absent, for this test')\n"


def prepare_here(
    folder: Path, *arguments: str, typed: str = ""
) -> "subprocess.CompletedProcess[str]":
    return run_python(["-m", "prepare", *arguments], folder, typed=typed)


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A folder with one of everything that cannot be used, and a little that can."""
    contents = {
        "good.txt": b"some good text",
        "empty.txt": b"",
        "blank.txt": b" \n\n\t",
        "cut.txt.xz": CUT_XZ,
        "cut.jsonl.zst": zstandard.compress(json_lines(["text" * 99, "more"]))[:-3],
        "cut.tar": tar_of({"a": b"text" * 300})[:900],
        "named.xz": b"<html>404</html>",
        "key.jsonl": json_lines(["one"]) + b'{"body": "two"}\n',
        "chats.jsonl": b'{"messages": [{"role": "user", "content": "one"}]}\n' * 2,
        "bad.txt": BAD_UTF8,
        "image.png": b"\0\1" * 50,
        "binary/image.png": b"\0\1" * 50,
        "mixed/image.png": b"\0\1" * 50,
        "mixed/good.txt": b"some good text",
        "wrong.tiktoken": b"these are no ranks\n",
        "file": b"",
        "letter.txt": b"x",
        "equal.jsonl": json_lines(["one of many 4"] * 1_200),
    }
    for name, content in contents.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "hollow").mkdir()
    shutil.copytree(REPOSITORY / "tests/fixtures/runs-2/tiny", tmp_path / "runs/tiny")
    return tmp_path


MENDABLE = {
    "missing": (["nowhere.txt"], ["nowhere.txt: no such file or folder"]),
    "hollow folder": (["hollow"], ["hollow: holds no file"]),
    "binary folder": (["binary"], ["binary/image.png: no text", "1 binary, not text"]),
    "binary file": (["image.png"], ["image.png: binary, not text: 50 of its first 100 bytes are"]),
    "empty": (["empty.txt"], ["empty.txt: no text found", "1 empty"]),
    "blank": (["blank.txt", "empty.txt"], ["blank.txt, empty.txt: no text found", "2 empty"]),
    "cut xz": (["good.txt", "cut.txt.xz"], ["cut.txt.xz: cut short", f"at byte {len(CUT_XZ)}"]),
    "cut zst": (["good.txt", "cut.jsonl.zst"], ["cut.jsonl.zst: cut short"]),
    "cut tar": (["good.txt", "cut.tar"], ["cut.tar/a: cut short inside its archive, 812 bytes"]),
    "no xz": (["named.xz"], ["named.xz: named as xz, but the content is no archive"]),
    "no key": (["key.jsonl"], ["key.jsonl, line 2", "'text'", "'body'", "--text-key"]),
    "chats": (["chats.jsonl"], ["'messages'", "Or learn the answers in it: python -m prepare"]),
    "a run": (["good.txt", "--out", "runs/tiny"], ["runs/tiny: is a run, not a data folder."]),
    "name of a run": (
        ["good.txt", "--tokenizer", "tiny"],
        ["--tokenizer tiny", f"The run of that name is {Path('runs/tiny')}."],
    ),
    "bad bytes": (
        ["good.txt", "bad.txt", "--on-bad-bytes", "fail"],
        ["bad.txt, byte 13: 0xe9 is not UTF-8", "--on-bad-bytes replace"],
    ),
    "unknown tokenizer": (["good.txt", "--tokenizer", "gpt9"], ["--tokenizer gpt9", "gpt2"]),
    "wrong tokenizer": (["good.txt", "--tokenizer", "wrong.tiktoken"], ["wrong.tiktoken, line 1"]),
    "wrong size": (
        ["good.txt", "--tokenizer", "bpe", "--vocab-size", "4k"],
        ["--vocab-size is '4k'", "256"],
    ),
    "huge seed": (["good.txt", "--seed", str(10**40)], ["--seed", "below"]),
    "one letter": (["letter.txt"], ["Nothing to train on: all text is val.", "cut"]),
    "equal documents": (["equal.jsonl"], ["Nothing to train on: all text is val.", "Equal"]),
    "deduplicated": (["equal.jsonl", "--dedup", "exact"], ["Nothing to train on", "Equal"]),
    "no folder": (["good.txt", "--out", "file/data"], ["file/data: cannot be written"]),
}  # fmt: skip


@pytest.mark.parametrize("case", MENDABLE)
def test_what_a_person_can_mend_is_one_sentence_and_nothing_is_written(
    case: str, sources: Path
) -> None:
    arguments, words = MENDABLE[case]
    process = prepare_here(sources, *TEXT, *arguments)
    assert_one_sentence(process, *words)
    assert snapshot(sources / "data") == {}


@pytest.mark.parametrize("case", ["cut xz", "no key", "blank", "bad bytes"])
def test_a_failure_leaves_the_data_set_that_was_there_as_it_was(case: str, sources: Path) -> None:
    prepare([sources / "good.txt"], sources / "data")
    before = snapshot(sources / "data")
    assert_one_sentence(prepare_here(sources, *TEXT, *MENDABLE[case][0]))
    assert snapshot(sources / "data") == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["text"],
        ["text", "good.txt", "--split-rule", "sideways"],
        ["text", "good.txt", "--val-fraction", "1"],
        ["text", "good.txt", "--seed", "-1"],
        ["text", "good.txt", "--no-such-option"],
        ["text", "good.txt", "--out", "good.txt"],
        ["text", "good.txt", "--split", "train"],
        ["text", "good.txt", "--config", "en"],
        ["text", "good.txt", "--ray-address", "auto"],
        ["inspect", "--show", "-1"],
        ["grind"],
    ],
)
def test_wrong_usage_ends_with_2(arguments: list[str], sources: Path) -> None:
    process = prepare_here(sources, *arguments)
    assert process.returncode == 2
    assert "Usage: python -m prepare" in process.stderr
    assert "Traceback" not in process.stderr
    assert not (sources / "data").exists()


@pytest.mark.parametrize(
    ("arguments", "ignored"),
    [
        (["good.txt", "--vocab-size", "300"], ["vocab-size"]),
        (["good.txt", "--vocab-size", "300", "--tokenizer", "bpe"], []),
        (
            ["good.txt", "--val-files", "letter.txt", "--split-rule", "auto", "--seed", "1"],
            ["split-rule", "seed"],
        ),
        (["good.txt", "--val-files", "letter.txt", "--val-fraction", "0.1"], ["val-fraction"]),
        (["good.txt", "--split-rule", "tail", "--seed", "1"], ["seed"]),
        (["good.txt", "--split-rule", "tail", "--seed", "1", "--tokenizer", "bpe"], []),
        (["good.txt", "--seed", "1", "--separator", "x", "--newlines", "lf"], []),
    ],
)
def test_an_option_that_others_make_void_is_said(
    arguments: list[str], ignored: list[str], sources: Path
) -> None:
    process = prepare_here(sources, *TEXT, *arguments)
    assert process.returncode == 0, process.stderr
    lines = [line for line in process.stderr.splitlines() if "is ignored" in line]
    assert [line.split(" is ignored: ")[0] for line in lines] == [f"--{name}" for name in ignored]


def test_bytes_that_are_no_utf8_are_replaced_counted_and_no_failure(sources: Path) -> None:
    process = prepare_here(sources, *TEXT, "bad.txt")
    assert process.returncode == 0
    assert "1 document with bytes that are no text" in process.stdout
    texts = [text for split in SPLITS for text in texts_of(open_data(sources / "data"), split)]
    assert b"".join(texts) == "caf\u00e9, th\u00e9, \ufffd".encode()


@pytest.mark.parametrize(
    ("arguments", "listed"),
    [
        (
            ["good.txt", "bad.txt", "--on-bad-bytes", "skip"],
            "1 skipped, not UTF-8: bad.txt, byte 0",
        ),
        (["mixed"], "1 skipped, binary, not text: mixed/image.png"),
    ],
)
def test_leaving_something_out_ends_with_3_and_lists_it(
    arguments: list[str], listed: str, sources: Path
) -> None:
    process = prepare_here(sources, *TEXT, *arguments)
    assert process.returncode == 3
    assert listed in process.stdout
    data = open_data(sources / "data")
    assert len(data.meta["skipped"]) == 1
    assert b"".join(t for split in SPLITS for t in texts_of(data, split)) == b"some good text"


def test_a_val_that_is_empty_is_warned_of(sources: Path) -> None:
    process = prepare_here(sources, *TEXT, "equal.jsonl", "--seed", "1")
    assert process.returncode == 0, process.stderr
    assert "Val is empty, and training asks for some. Equal documents go" in process.stderr
    assert "Val is empty" in open_data(sources / "data").meta["warnings"][0]
    for arguments in (["good.txt"], ["equal.jsonl", "--val-fraction", "0"]):
        assert "Val is empty" not in prepare_here(sources, *TEXT, *arguments).stderr


def test_the_table_counts_what_was_written(sources: Path) -> None:
    process = prepare_here(sources, *TEXT, "good.txt")
    assert process.returncode == 0
    rows = {line.split()[0]: line.split()[1:] for line in process.stdout.splitlines()}
    # 14 bytes, cut at int(14 * 0.9) = 12
    assert rows["train"] == ["1", "12", "13", "0.92"]
    assert rows["val"] == ["1", "2", "3", "0.67"]
    assert rows["all"] == ["2", "14", "16", "0.88"]


def test_a_vocabulary_that_cannot_be_fetched_is_one_sentence_that_says_what_to_do(
    sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(sources / "hollow"))
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "https_proxy", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    process = prepare_here(sources, *TEXT, "good.txt", "--tokenizer", "gpt2")
    assert_one_sentence(process, "gpt2", "TIKTOKEN_CACHE_DIR", "--tokenizer bpe")
    assert snapshot(sources / "data") == {}


def test_standard_input_gives_the_ids_of_the_file(tmp_path: Path) -> None:
    text = "".join(f"line {i} of a text, with ümlauts\n" for i in range(2_000))
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    data = prepare([tmp_path / "a.txt"], tmp_path / "from file", tokenizer="bpe", vocab_size="400")
    process = prepare_here(
        tmp_path, "text", "-", "--vocab-size", "400", "--out", "from pipe", typed=text
    )
    assert process.returncode == 0
    piped = open_data(tmp_path / "from pipe")
    named = {NAMES_NAME: data.meta["files"][NAMES_NAME]}
    assert piped.meta["files"] | named == data.meta["files"]
    assert piped.document_name("val", 0) == ("standard input", None)


def test_json_lines_on_standard_input_are_documents(tmp_path: Path) -> None:
    lines = json_lines(["long " * 50_000, "two", "three"]).decode()
    process = prepare_here(tmp_path, *TEXT, "-", "--split-rule", "hash", typed=lines)
    assert process.returncode == 0
    assert open_data(tmp_path / "data").meta["n_documents"] == 3


def test_without_gigatoken_the_same_bytes_are_written(tmp_path: Path) -> None:
    sources = tmp_path / "sources"
    sources.mkdir()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        shutil.copy(path, sources)
    learned = prepare([sources], tmp_path / "ranks", tokenizer="bpe", vocab_size="900")
    shutil.copy(learned.path / "vocab.tiktoken", tmp_path / "ranks.tiktoken")
    (tmp_path / "absent").mkdir()
    (tmp_path / "absent" / "gigatoken.py").write_text(NO_GIGATOKEN, encoding="utf-8")
    shutil.copy(tmp_path / "ranks.tiktoken", tmp_path / "absent")
    written = []
    for folder, encoder in [(tmp_path, "gigatoken"), (tmp_path / "absent", "tiktoken")]:
        process = prepare_here(folder, "text", str(sources), "--tokenizer", "ranks.tiktoken")
        assert process.returncode == 0, process.stderr
        assert ("gigatoken is not installed" in process.stderr) == (encoder == "tiktoken")
        data = open_data(folder / "data")
        assert data.meta["encoder"] == encoder
        written.append({name: (data.path / name).read_bytes() for name in data.meta["files"]})
    assert written[0] == written[1]


def test_without_gigatoken_gpt2s_ids_are_the_same(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(shared / "tiktoken"))
    sources = [str(path) for path in sorted((shared / "data/state_union").glob("*.txt"))[:20]]
    data = prepare(list(map(Path, sources)), tmp_path / "with", tokenizer="gpt2")
    assert data.meta["encoder"] == "gigatoken"
    (tmp_path / "gigatoken.py").write_text(NO_GIGATOKEN, encoding="utf-8")
    process = prepare_here(tmp_path, "text", *sources, "--tokenizer", "gpt2")
    assert process.returncode == 0
    without = open_data(tmp_path / "data")
    assert without.meta["encoder"] == "tiktoken"
    assert without.meta["files"] == data.meta["files"]


def heed_interrupts() -> None:
    """Undo what a shell does to programs in its background, as tests may be one."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def of_data_set(folder: Path) -> dict[str, bytes]:
    """Return the files of a data folder but those of work that is to be gone on with."""
    return {n: raw for n, raw in snapshot(folder).items() if not n.startswith(".unfinished/")}


@pytest.mark.parametrize("existing", [False, True], ids=["new", "over another"])
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_while_writing_leaves_what_was_there(
    number: signal.Signals, code: int, existing: bool, tmp_path: Path
) -> None:
    """With tiktoken alone, encoding this takes seconds: the signal comes in their midst."""
    (tmp_path / "small.txt").write_text("a small text", encoding="utf-8")
    ranks = prepare([tmp_path / "small.txt"], tmp_path / "ranks", tokenizer="bpe", vocab_size="256")
    shutil.copy(ranks.path / "vocab.tiktoken", tmp_path / "bytes.tiktoken")
    (tmp_path / "gigatoken.py").write_text(NO_GIGATOKEN, encoding="utf-8")
    out = tmp_path / "data"
    if existing:
        prepare([tmp_path / "small.txt"], out)
    before = snapshot(out)
    with (tmp_path / "large.jsonl").open("wb") as file:
        for i in range(400):
            file.write(json_lines([f"{i} words and more words " * 4_000]))
    arguments = ["text", "large.jsonl", "--tokenizer", "bytes.tiktoken", "--split-rule", "hash"]
    arguments += ["--workers", "1"]
    with start_python(["-m", "prepare", *arguments], tmp_path, heed_interrupts) as process:
        while process.poll() is None and not any(
            path.stat().st_size for path in out.glob(".unfinished/*-train.bin")
        ):
            time.sleep(0.01)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == code, stderr
    assert "Traceback" not in stderr
    assert of_data_set(out) == before


def test_a_full_disk_is_one_sentence_and_leaves_what_was_there(tmp_path: Path) -> None:
    """A limit on the size of files gives the same kind of error as a full disk."""
    (tmp_path / "small.txt").write_text("a small text", encoding="utf-8")
    prepare([tmp_path / "small.txt"], tmp_path / "data")
    before = snapshot(tmp_path / "data")
    (tmp_path / "large.txt").write_text("words and more words " * 50_000, encoding="utf-8")
    command = f"ulimit -f 500; exec {sys.executable} -m prepare text large.txt --tokenizer char"
    limited = "import os; os.execvp('bash', ['bash', '-c', {!r}])".format(command)  # noqa: UP032
    process = run_python(["-c", limited], tmp_path)
    assert_one_sentence(process, "data: cannot be written")
    assert of_data_set(tmp_path / "data") == before


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "a.jsonl").write_bytes(json_lines([f"document {i}" for i in range(30)]))
    data = prepare([tmp_path / "a.jsonl"], tmp_path / "data", split_rule="hash", val_fraction=0.3)
    assert all(data.meta["splits"][split]["documents"] > 1 for split in SPLITS)
    return data.path


def test_numpy_is_loaded_only_when_its_threads_are_set(tmp_path: Path) -> None:
    """A past fault: loaded before, its threads spin for a tenth of a second."""
    code = "import sys, prepare.cli; print('numpy' in sys.modules)"
    assert run_python(["-c", code], tmp_path).stdout == "False\n"


def test_verify_passes_what_prepare_wrote(data: Path) -> None:
    process = prepare_here(data.parent, "verify", "data")
    assert (process.returncode, process.stderr) == (0, "")
    assert process.stdout == "data: 8 files are as they were written.\n"


def test_inspect_shows_counts_sources_and_documents(data: Path) -> None:
    process = prepare_here(data.parent, "inspect", "data", "--show", "2")
    assert (process.returncode, process.stderr) == (0, "")
    assert "30 documents, split by hash; vocabulary char" in process.stdout
    assert f"{data.parent}/a.jsonl"[-48:] in process.stdout
    shown = [text.decode() for text in texts_of(open_data(data), "train")[:2]]
    for i, text in enumerate(shown):
        assert f"--- train document {i}: {len(text) + 1} tokens ---\n{text}\n" in process.stdout
    assert process.stdout.count("---\n") == 2


def test_inspect_shows_val_after_the_last_of_train(data: Path) -> None:
    process = prepare_here(data.parent, "inspect", "data", "--show", "99")
    n_shown = [process.stdout.count(f"--- {split} document ") for split in SPLITS]
    assert n_shown == [len(texts_of(open_data(data), split)) for split in SPLITS]
    assert sum(n_shown) == 30


@pytest.mark.parametrize("command", ["inspect", "verify"])
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("no folder", ["data: no such folder", "python -m prepare text"]),
        ("no meta.json", ["data/meta.json: missing"]),
        ("half a meta.json", ["data/meta.json: cannot be read"]),
        ("another meta.json", ["data/meta.json: lacks files, splits, tokenizer"]),
        ("a later format", ["data/meta.json: format 99"]),
        ("cut short", ["data/train.bin: ", "bytes, but meta.json promises"]),
        ("a file gone", ["data/val.idx: missing, but meta.json promises"]),
    ],
)
def test_a_folder_that_is_no_data_set_is_one_sentence(
    command: str, damage: str, words: list[str], data: Path
) -> None:
    meta = data / "meta.json"
    if damage == "no folder":
        shutil.rmtree(data)
    elif damage == "no meta.json":
        meta.unlink()
    elif damage == "half a meta.json":
        os.truncate(meta, 100)
    elif damage == "another meta.json":
        meta.write_text('{"format": 1}', encoding="utf-8")
    elif damage == "a later format":
        meta.write_text(
            json.dumps(json.loads(meta.read_bytes()) | {"format": 99}), encoding="utf-8"
        )
    elif damage == "cut short":
        os.truncate(data / "train.bin", 100)
    else:
        (data / "val.idx").unlink()
    assert_one_sentence(prepare_here(data.parent, command, "data"), *words)


@pytest.mark.parametrize("command", ["verify", "inspect", "export"])
@pytest.mark.parametrize("name", ["train.bin", "val.bin", "train.idx", "val.idx", "vocab.json"])
def test_no_command_reads_past_a_flipped_bit(name: str, command: str, data: Path) -> None:
    raw = bytearray((data / name).read_bytes())
    raw[-3] ^= 0x40
    (data / name).write_bytes(raw)
    to_export = ["out", "--to", "text"] if command == "export" else []
    process = prepare_here(data.parent, command, "data", *to_export)
    assert_one_sentence(
        process, f"data/{name}: SHA-256 is", "The file changed after it was written"
    )
    assert not (data.parent / "out").exists()


def test_a_reader_that_goes_away_is_no_traceback(data: Path) -> None:
    with start_python(["-m", "prepare", "inspect", "data", "--show", "99"], data.parent) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""


@pytest.fixture(scope="module")
def dataset_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the same texts as a saved data set, as saved splits, and as JSON lines."""
    folder = tmp_path_factory.mktemp("datasets")
    (folder / "lines").mkdir()
    texts = [f"row {i}" for i in range(40)]
    (folder / "lines" / "train.jsonl").write_bytes(json_lines(texts, key="body"))
    code = (
        "from datasets import Dataset, DatasetDict\n"
        "rows = Dataset.from_dict({'body': [f'row {i}' for i in range(40)]})\n"
        "rows.save_to_disk('saved')\n"
        "DatasetDict({'train': rows, 'test': rows.select([0])}).save_to_disk('splits')\n"
    )
    process = run_python(["-c", code], folder)
    assert process.returncode == 0, process.stderr
    return folder


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("arguments", "n_rows"),
    [(["saved"], 40), (["splits"], 40), (["splits", "--split", "test"], 1), (["lines"], 40)],
)
def test_a_data_set_in_a_folder_is_read(
    arguments: list[str], n_rows: int, dataset_folder: Path, tmp_path: Path
) -> None:
    name, *others = arguments
    arguments = ["--dataset", str(dataset_folder / name), *others, "--split-rule", "hash"]
    process = prepare_here(tmp_path, *TEXT, *arguments, "--text-key", "body")
    assert process.returncode == 0, process.stderr
    data = open_data(tmp_path / "data")
    texts = [text for split in SPLITS for text in texts_of(data, split)]
    assert sorted(texts) == sorted(f"row {i}".encode() for i in range(n_rows))


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["saved"], ["row 0", "no text under the key 'text'", "'body'", "--text-key"]),
        (["splits", "--split", "dev"], ["no split 'dev'; there are 'train', 'test'"]),
        (["saved", "--split", "test"], ["with one split, which has no name there: leave --split"]),
        (
            ["splits", "--config", "en"],
            ["with one config, which has no name there: leave --config"],
        ),
        (["nowhere"], ["--dataset", "nowhere: no such folder. Check the path."]),
    ],
)
def test_a_data_set_that_cannot_be_used_is_one_sentence(
    arguments: list[str], words: list[str], dataset_folder: Path, tmp_path: Path
) -> None:
    name, *others = arguments
    others += ["--encoding", "utf-8"]
    process = prepare_here(tmp_path, *TEXT, "--dataset", str(dataset_folder / name), *others)
    said = "--encoding is ignored: a --dataset has no plain files or archives.\n"
    assert process.stderr.startswith(said)
    process.stderr = process.stderr.removeprefix(said)
    assert_one_sentence(process, *words)
    assert snapshot(tmp_path / "data") == {}


@pytest.mark.parametrize("on_error", ["fail", "skip"])
def test_a_truncated_archive_among_good_ones_stops_or_is_listed(
    on_error: str, tmp_path: Path
) -> None:
    texts = [f"{i} of some texts that xz cannot pack to nothing: {i * i}" for i in range(9_000)]
    shares = [texts[:3_000], texts[3_000:6_000], texts[6_000:]]
    for name, share in zip("abc", shares, strict=True):
        (tmp_path / f"{name}.jsonl.xz").write_bytes(lzma.compress(json_lines(share)))
    whole = (tmp_path / "b.jsonl.xz").read_bytes()
    (tmp_path / "b.jsonl.xz").write_bytes(whole[: len(whole) // 2])
    names = [f"{name}.jsonl.xz" for name in "abc"]
    options = ["--split-rule", "hash", "--val-fraction", "0", "--on-error", on_error]
    process = prepare_here(tmp_path, *TEXT, *options, *names)
    if on_error == "fail":
        said = f"the xz data stops at byte {len(whole) // 2:,}, before its end mark"
        assert_one_sentence(process, "b.jsonl.xz: cut short", said)
        assert of_data_set(tmp_path / "data") == {}
        return
    assert process.returncode == 3, process.stderr
    assert "1 skipped, cut short: b.jsonl." in process.stdout
    found = [text.decode() for text in texts_of(open_data(tmp_path / "data"), "train")]
    n_of_b = len(found) - 6_000
    assert 0 < n_of_b < 3_000
    assert found == shares[0] + shares[1][:n_of_b] + shares[2]


def test_again_with_nothing_changed_does_nothing_and_with_another_option_says_why(
    sources: Path,
) -> None:
    first = prepare_here(sources, *TEXT, "good.txt", "mixed")
    before = {path.name: path.stat().st_mtime_ns for path in (sources / "data").iterdir()}
    again = prepare_here(sources, *TEXT, "mixed", "good.txt")
    assert (again.returncode, again.stdout) == (first.returncode, first.stdout)
    assert "data: made of these sources, with these options: nothing to do." in again.stderr
    assert {path.name: path.stat().st_mtime_ns for path in (sources / "data").iterdir()} == before
    other = prepare_here(sources, *TEXT, "good.txt", "mixed", "--val-fraction", "0.5")
    assert "data: made again: --val-fraction was 0.1, and is 0.5." in other.stderr
    assert open_data(sources / "data").meta["split"]["val_fraction"] == 0.5


def test_standard_input_of_the_same_text_is_nothing_new(tmp_path: Path) -> None:
    for typed, said in [("some text", False), ("some text", True), ("other text", False)]:
        process = prepare_here(tmp_path, *TEXT, "-", typed=typed)
        assert process.returncode == 0
        assert ("nothing to do" in process.stderr) == said


def test_whole_files_are_val_where_they_are_named_so(tmp_path: Path) -> None:
    for name in ["in/a.txt", "in/b.txt", "c.txt"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"text of {name}", encoding="utf-8")
    process = prepare_here(tmp_path, *TEXT, "in", "--val-files", "in/b.txt", "--val-files", "c.txt")
    assert process.returncode == 0, process.stderr
    assert "split by files" in process.stdout
    data = open_data(tmp_path / "data")
    assert texts_of(data, "train") == [b"text of in/a.txt"]
    assert sorted(texts_of(data, "val")) == [b"text of c.txt", b"text of in/b.txt"]


def test_patterns_that_no_shell_expanded_are(tmp_path: Path) -> None:
    for name in ["a.txt", "b.txt", "c.md"]:
        (tmp_path / name).write_text(f"text of {name}", encoding="utf-8")
    process = prepare_here(tmp_path, *TEXT, "*.txt")
    assert process.returncode == 0, process.stderr
    assert [s["name"] for s in open_data(tmp_path / "data").meta["sources"]] == ["a.txt", "b.txt"]


def test_an_archive_that_expands_too_much_is_one_sentence(tmp_path: Path) -> None:
    packed = lzma.compress(b"all the same " * 8_000_000, preset=0)
    (tmp_path / "a.xz").write_bytes(packed)
    assert_one_sentence(
        prepare_here(tmp_path, *TEXT, "a.xz"), "a.xz: expands to", "--max-ratio is 1,000"
    )
    process = prepare_here(tmp_path, *TEXT, "a.xz", "--max-ratio", "2")
    assert_one_sentence(process, "--max-ratio is 2: raise it")


def test_a_name_that_is_not_utf8_is_shown_and_kept(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / os.fsdecode(b"caf\xe9.txt")).write_text("some text", encoding="utf-8")
    process = prepare_here(tmp_path, *TEXT, "in")
    assert process.returncode == 0, process.stderr
    (source,) = open_data(tmp_path / "data").meta["sources"]
    assert source["name"] == "in/caf\ufffd.txt"
    for command in ["inspect", "verify"]:
        assert prepare_here(tmp_path, command, "data").returncode == 0


def test_corpus_text_inspect_and_verify_follow_one_another(tmp_path: Path) -> None:
    """The commands at the top of cli.py, on a small folder instead of the corpus."""
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("some notes on this and that", encoding="utf-8")
    for arguments in [["text", "notes"], ["inspect", "data", "--show", "3"], ["verify", "data"]]:
        process = prepare_here(tmp_path, *arguments)
        assert process.returncode == 0, process.stderr
    assert open_data(tmp_path / "data").meta["tokenizer"]["special_tokens"].keys() == set(
        SPECIAL_TOKENS
    )


def test_the_bar_is_for_terminals_alone(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some words " * 100)
    command = ["-m", "prepare", *TEXT, "a.txt"]
    with Terminal(command, tmp_path) as terminal:
        terminal.see("find: 1.00 files", "encode: 100%", "1 documents")
    assert prepare_here(tmp_path, *command[2:], "--out", "again").stderr == ""


def test_standard_input_that_finds_no_room_names_the_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def small_files() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))

    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    text = "some text " * 20_000
    done = run_python(["-m", "prepare", "text", "-"], tmp_path, typed=text, before=small_files)
    assert_one_sentence(done, f"{tmp_path}/tmp: no room for a copy of standard input", "TMPDIR")
