"""How the server is set up."""

from dataclasses import dataclass

from common.settings import check_ranges, setting


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Where the server listens, and how much it takes on."""

    host: str = setting(
        "127.0.0.1", "Address to listen on; other than this machine's own, --api-key-file too."
    )
    port: int = setting(8000, "Port to listen on; 0: a free one.", at_least=0, below=65_536)
    rows: int = setting(16, "Answers generated at once.", at_least=1, below=1025)
    queue: int = setting(1024, "Answers that may wait for a row; beyond, 429.", at_least=0)
    max_tokens: int = setting(4096, "The most tokens of an answer.", at_least=1)
    drain_seconds: float = setting(
        30.0, "On SIGTERM, running answers may take this long to end.", at_least=0.0
    )

    def __post_init__(self) -> None:
        check_ranges(self)
