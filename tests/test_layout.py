"""The size of files, functions and folders, the depth of imports, and the path for newcomers."""

import ast
import re
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.test_imports import FILES, ROOT, STAGES, imported_by

MOST_LINES, MOST_FUNCTION_LINES, MOST_FILES, MOST_LEVELS = 300, 60, 14, 6
MOST_PATH_FILES, MOST_PATH_LINES = 8, 1_200
README = (ROOT / "README.md").read_text(encoding="utf-8")
TEN_MINUTES = README.partition("## Read it in ten minutes")[2].partition("\n## ")[0]
SHORT_PATH = re.findall(r"^\d\. `([\w/]+\.py)`: .+", TEN_MINUTES, re.MULTILINE)


def n_lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def imports_within_the_stage(path: Path) -> set[Path]:
    """Return the files of its own stage that a file imports."""
    files = {ROOT / (name.replace(".", "/") + ".py") for name in imported_by(path)}
    stage = path.relative_to(ROOT).parts[0]
    return {file for file in files & set(FILES) if file.relative_to(ROOT).parts[0] == stage}


@pytest.fixture(scope="module")
def longest_chain() -> dict[Path, list[Path]]:
    """Return of each file the longest way of imports down to the last of its stage."""
    imports = {path: imports_within_the_stage(path) - {path} for path in FILES}
    chains: dict[Path, list[Path]] = {}
    try:
        for path in TopologicalSorter(imports).static_order():
            below = [chains[file] for file in imports[path]]
            chains[path] = [path, *max(below, key=len, default=[])]
    except CycleError as error:
        pytest.fail(f"a circle: {[str(file.relative_to(ROOT)) for file in error.args[1]]}")
    return chains


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_and_its_functions_are_short(path: Path) -> None:
    assert n_lines(path) <= MOST_LINES
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < MOST_FUNCTION_LINES, node.name


def test_no_folder_holds_many_files() -> None:
    assert max(Counter(path.parent for path in FILES).values()) <= MOST_FILES


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_few_levels_deep(stage: str, longest_chain: dict[Path, list[Path]]) -> None:
    chain = longest_chain[ROOT / stage / "cli.py"]
    assert len(chain) <= MOST_LEVELS, " -> ".join(str(path.relative_to(ROOT)) for path in chain)


def test_no_file_imports_itself_by_way_of_others(longest_chain: dict[Path, list[Path]]) -> None:
    assert longest_chain.keys() == set(FILES)


def test_the_short_path_is_short() -> None:
    assert 0 < len(SHORT_PATH) <= MOST_PATH_FILES
    assert sum(n_lines(ROOT / name) for name in SHORT_PATH) <= MOST_PATH_LINES
