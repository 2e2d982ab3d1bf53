"""What the standard library says of itself: each public function, method, class and module.

    import, vars --> os.path.join, (a, *p), "Join two or more pathname components ..."

Modules written in C have no source to read, so those listed here are imported, and no others.
"""

import importlib
import inspect
import re
import types
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

# What people ask about; each can be imported anywhere, and does nothing when it is.
MODULES = (
    "abc", "argparse", "array", "ast", "asyncio", "atexit", "base64", "binascii", "bisect",
    "builtins", "bz2", "calendar", "cmath", "cmd", "code", "codecs", "collections",
    "collections.abc", "colorsys", "concurrent.futures", "configparser", "contextlib",
    "contextvars", "copy", "csv", "dataclasses", "datetime", "decimal", "difflib", "dis",
    "email", "enum", "errno", "fileinput", "filecmp", "fnmatch", "fractions", "ftplib",
    "functools", "gc", "getopt", "getpass", "gettext", "glob", "graphlib", "gzip", "hashlib",
    "heapq", "hmac", "html", "html.parser", "http", "http.client", "http.cookies",
    "http.server", "imaplib", "importlib", "inspect", "io", "ipaddress", "itertools", "json",
    "keyword", "linecache", "locale", "logging", "logging.handlers", "lzma", "mailbox", "math",
    "mimetypes", "mmap", "multiprocessing", "numbers", "operator", "os", "os.path", "pathlib",
    "pdb", "pickle", "pickletools", "pkgutil", "platform", "plistlib", "poplib", "pprint",
    "profile", "queue", "quopri", "random", "re", "reprlib", "sched", "secrets", "select",
    "selectors", "shelve", "shlex", "shutil", "signal", "site", "smtplib", "socket",
    "socketserver", "sqlite3", "ssl", "stat", "statistics", "string", "stringprep", "struct",
    "subprocess", "symtable", "sys", "tabnanny", "tarfile", "tempfile", "textwrap", "threading",
    "time", "timeit", "token", "tokenize", "trace", "traceback", "tracemalloc", "types",
    "typing", "unicodedata", "unittest", "unittest.mock", "urllib.parse", "urllib.request",
    "urllib.robotparser", "uuid", "venv", "warnings", "wave", "weakref", "webbrowser",
    "xml.dom.minidom", "xml.etree.ElementTree", "xml.sax", "xmlrpc.client", "zipapp", "zipfile",
    "zipimport", "zlib", "zoneinfo",
)  # fmt: skip
# Paragraphs of which each line is one by itself: code, lists, ways to call.
AS_IT_IS = re.compile(r"^(\s|>>>|[-*+] |(\w+)\(.*\n\2\()", re.MULTILINE)
# Many docstrings of C begin with it: "sleep(seconds)", "S.rfind(sub) -> int", with a text in the
# paragraph after it, or behind it.
CALL = re.compile(r"(?:\w\.)?(\w+)(\([^\n]*?\))(?: -+> [\w ]+)?(?:\.?(?:\n\1\(.*)*\n\n|\. +)(?=\w)")


@dataclass(frozen=True)
class Entry:
    """One thing that the library documents, under the name by which it is used."""

    name: str  # os.path.join, str.split
    module: str  # os.path, builtins
    kind: str  # module, class, method, function
    signature: str  # (a, *p); empty where it has or tells none
    text: str  # the docstring, its paragraphs in one line each

    @property
    def document(self) -> str:
        """What stands of it in the corpus; an answer begins with the same words."""
        call = f"\n\n{self.name}{self.signature}" if self.signature else ""
        return f"{self.name}: {self.text}{call}\n"


@cache
def library() -> tuple[Entry, ...]:
    """Return what is documented in MODULES, sorted by name, nothing twice."""
    entries: dict[str, Entry] = {}
    seen: set[int] = set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is deprecated
        for name in MODULES:
            module = importlib.import_module(name)
            for entry in _module_entries(name, module, seen):
                entries.setdefault(entry.name, entry)
    return tuple(entries[name] for name in sorted(entries))


def _module_entries(module_name: str, module: types.ModuleType, seen: set[int]) -> Iterator[Entry]:
    yield from _entry(module_name, module_name, "module", module)
    prefix = "" if module_name == "builtins" else module_name + "."
    for name in sorted(getattr(module, "__all__", vars(module))):
        value = getattr(module, name, None)
        if name.startswith("_") or id(value) in seen or not _is_own(value, module):
            continue
        seen.add(id(value))
        if inspect.isclass(value):
            yield from _entry(prefix + name, module_name, "class", value)
            for method in sorted(name for name in vars(value) if not name.startswith("_")):
                found = getattr(value, method, None)  # a property or a constant is no routine
                if inspect.isroutine(found):
                    yield from _entry(f"{prefix}{name}.{method}", module_name, "method", found)
        elif inspect.isroutine(value):
            yield from _entry(prefix + name, module_name, "function", value)


def _is_own(value: Any, module: types.ModuleType) -> bool:
    """Tell whether a module has it for others, and not because it uses it."""
    if module.__name__ == "builtins" or hasattr(module, "__all__"):
        return True
    return getattr(value, "__module__", "") in (module.__name__, "_" + module.__name__)


def _entry(name: str, module: str, kind: str, value: Any) -> Iterator[Entry]:
    docstring = getattr(value, "__doc__", None)
    if not isinstance(docstring, str) or re.search("[\0\ud800-\udfff]", docstring):
        return
    try:
        signature = "" if kind == "module" else str(inspect.signature(value))
        signature = re.sub("<[^=]*? at 0x[0-9a-f]+>", "...", signature)  # another each time
    except (TypeError, ValueError):
        signature = ""
    text = "\n\n".join(
        part if AS_IT_IS.search(part) else " ".join(part.split())
        for part in re.split(r"\n\s*\n", inspect.cleandoc(docstring).strip())
    )
    call = CALL.match(text)
    if call and call[1] == name.rpartition(".")[2]:
        signature, text = signature or call[2], text[call.end() :]
    if text:
        yield Entry(name, module, kind, signature, text)
