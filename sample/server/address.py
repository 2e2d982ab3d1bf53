"""Where the server listens, and who may therefore ask.

On this machine's own address anybody on it may; on any other only who has the key.
"""

import ipaddress
import logging
import socket
import stat
from collections.abc import Sequence
from pathlib import Path

from common.errors import ConfigError
from sample.server.config import ServeConfig
from sample.server.security import LOOPBACK_NAMES, Access

log = logging.getLogger(__name__)

SHORT_KEY_CHARS = 16


def bind(config: ServeConfig) -> socket.socket:
    """Return a socket bound to the address; nobody can connect until the server listens.

    Raises: ConfigError where the address cannot be had.
    """
    where = f"--host {config.host} --port {config.port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"{where}: no such address ({error}).") from error
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise ConfigError(
            f"{where}: cannot be listened on ({error.strerror}). Choose another --port."
        ) from error
    return bound


def make_access(
    config: ServeConfig, bound: socket.socket, allow_hosts: Sequence[str], key_file: Path | None
) -> Access:
    """Return who may ask.

    Raises: ConfigError where others than this machine could, and there is no key.
    """
    address = ipaddress.ip_address(bound.getsockname()[0].partition("%")[0])
    if not address.is_loopback and key_file is None:
        raise ConfigError(
            f"--host {config.host} lets other machines ask: pass --api-key-file with the key that "
            "they must send. To make one: "
            "python3 -c 'import secrets; print(secrets.token_urlsafe())' > key.txt"
        )
    names = {config.host.lower(), str(address), *(name.lower() for name in allow_hosts)}
    return Access(
        names=LOOPBACK_NAMES | names,
        any_address=address.is_unspecified,
        key=None if key_file is None else read_key(key_file),
    )


def read_key(path: Path) -> bytes:
    """Return the key in a file, without the blanks around it.

    Raises: ConfigError where there is none, or one that no header can carry.
    """
    try:
        text = path.read_text(encoding="ascii").strip()
    except OSError as error:
        raise ConfigError(f"--api-key-file {path}: cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"--api-key-file {path}: a key is in ASCII, this is not.") from error
    if not text.isprintable() or len(text.split()) != 1:
        raise ConfigError(f"--api-key-file {path}: it must hold one word, the key.")
    if len(text) < SHORT_KEY_CHARS:
        log.warning("%s: a key of %d characters is soon guessed.", path, len(text))
    if path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
        log.warning("%s: others on this machine can read the key: chmod 600 %s", path, path)
    return text.encode("ascii")
