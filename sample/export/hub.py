"""An export -> a repository of the Hugging Face Hub, by the Hub's own client; only when asked."""

from pathlib import Path

from httpx2 import HTTPError  # what the client raises where there is no network
from huggingface_hub import HfApi

from common.errors import ConfigError


def push_to_hub(out: Path, name: str) -> str:
    """Upload what was exported into the repository ``name``; return where it is, in words.

    A repository that is not there yet is made, and is private. Raises ConfigError where the Hub
    cannot be reached or refuses, or where nobody is logged in.
    """
    api = HfApi()
    try:
        url = api.create_repo(name, private=True, exist_ok=True)
        if out.is_dir():
            api.upload_folder(repo_id=url.repo_id, folder_path=out)
        else:
            api.upload_file(repo_id=url.repo_id, path_or_fileobj=out, path_in_repo=out.name)
    except (HTTPError, OSError, ValueError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise ConfigError(
            f"{out}: is written, but was not uploaded to {name} ({reason}). Once that is mended: "
            f"hf auth login, then hf upload {name} {out} --private"
        ) from error
    return f"{url}: {out.name} is there. A new repository is private: its page can change that."
