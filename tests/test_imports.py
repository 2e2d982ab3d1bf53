"""The direction of imports, held by reading them."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STAGES = ("prepare", "train", "sample")
# Sub-packages import those that stand after them, none beside or before them, and files that lie
# directly in their stage.
DIRECTION: dict[str, list[set[str]]] = {
    "common": [{"inference", "huggingface"}, {"models"}],
    "prepare": [{"output"}, {"tokens"}, {"workers"}, {"readers"}, {"archives"}, {"sources"}],
    "train": [{"report"}, {"setup"}, {"batches"}, {"optim"}, {"monitoring"}, {"distributed"}],
    "sample": [{"chat", "server", "export"}, {"text"}],
}
FILES = sorted(path for stage in ("common", *STAGES) for path in (ROOT / stage).rglob("*.py"))


def imported_by(path: Path) -> set[str]:
    """Return the dotted names that a file imports anywhere, ``from a import b`` as a and a.b."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def packages(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def reached_from(path: Path) -> set[str]:
    """Return every package that a file imports, also by way of this project's other files."""
    seen, waiting, found = {path}, [path], set[str]()
    while waiting:
        names = imported_by(waiting.pop())
        found |= packages(names)
        for name in names:
            file = ROOT / (name.replace(".", "/") + ".py")
            if file in FILES and file not in seen:
                seen.add(file)
                waiting.append(file)
    return found


def test_the_stages_are_there() -> None:
    assert {path.parent.name for path in FILES} >= {"common", *STAGES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_stage_imports_no_other_stage_and_common_imports_none(path: Path) -> None:
    own = path.relative_to(ROOT).parts[0]
    assert packages(imported_by(path)) & set(STAGES) <= {own} - {"common"}


@pytest.mark.parametrize("stage", DIRECTION)
def test_sub_packages_import_in_one_direction(stage: str) -> None:
    level = {name: i for i, names in enumerate(DIRECTION[stage]) for name in names}
    for path in FILES:
        own, folder, *_ = (*path.relative_to(ROOT).parts, "")
        for name in imported_by(path):
            package, _, rest = name.partition(".")
            other = rest.partition(".")[0]
            if own == package == stage and folder in level and other in level and other != folder:
                assert level[folder] < level[other], f"{path.relative_to(ROOT)} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_prepare_never_reaches_torch(path: Path) -> None:
    if path.relative_to(ROOT).parts[0] == "prepare":
        assert "torch" not in reached_from(path)


def test_the_search_for_torch_finds_it_where_it_is() -> None:
    assert "torch" in reached_from(ROOT / "train" / "cli.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_the_command_line_knows_click(path: Path) -> None:
    if "click" in packages(imported_by(path)):
        assert path.name == "cli.py" or path in (
            ROOT / "common" / "errors.py",
            ROOT / "common" / "command.py",
            ROOT / "common" / "settings.py",
        )


def test_common_re_exports_nothing() -> None:
    assert (ROOT / "common" / "__init__.py").read_text(encoding="utf-8") == ""


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_pickled_and_what_others_pickled_is_read_without_running_it(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if path == ROOT / "train" / "setup" / "import_folder.py":
        assert text.count("torch.load(") == text.count("weights_only=True)") == 1
        assert re.findall(r"pickle\.\w+", text.replace("pickle.UnpicklingError", "")) == [
            "pickle.Unpickler"
        ]
    else:
        assert "pickle" not in packages(imported_by(path))
        assert "torch.load(" not in text
