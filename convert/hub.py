"""Uploading a folder to the Hugging Face hub, and the card that tells of it there."""

import re
from pathlib import Path

from jaxgpt.convert.errors import InputError

LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]{0,60}")
"""The identifier of a licence as the hub has them: `mit`, `apache-2.0`, `llama3.1`, `other`, `unknown`."""

REPLACED = (
    "model*.safetensors", "pytorch_model*.bin", "*.index.json", "adapter_model.*", "adapter_config.json", "config.json",
    "generation_config.json",
)  # fmt: skip
"""Files of another model, which a forced upload deletes in the same commit."""


def check_upload(repo: str, license: str, *, is_login_needed: bool = True) -> None:
    """Refuse what can be refused before anything is written: the name, the licence, a missing login.

    Raises:
        InputError: the first of them.
    """
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
        if "/" not in repo:
            raise ValueError("it has no owner")
    except (HFValidationError, ValueError) as error:
        why = str(error).splitlines()[0]
        raise InputError(f"{repo!r} is not the name of a repository (OWNER/NAME): {why}") from None
    if not LICENSE.fullmatch(license):
        raise InputError(f"license={license!r}: must be the hub's name of a licence, such as mit, apache-2.0 or other")
    if is_login_needed and get_token() is None:
        raise InputError("there is no login to the hub: run `hf auth login`, or set HF_TOKEN to a token that may write")


def upload(folder: Path, repo: str, *, private: bool = True, message: str = "", force: bool = False) -> str:
    """Upload a folder as one commit, into a repository that is made if it is not there, and return its address.

    Args:
        private: of a repository that is made; one that is there stays as it is.
        force: replace the files of a model that is there. The hub keeps them in its history.

    Raises:
        InputError: the repository holds files already, or the hub refuses something.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi()
    try:
        there = api.list_repo_files(repo) if api.repo_exists(repo) else []
        if not force and (taken := [name for name in there if name != ".gitattributes"]):
            raise InputError(
                f"{repo} holds {len(taken)} files already, {taken[0]} among them: choose another name, or force=True "
                "replaces the model there in a new commit"
            )
        address = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo, folder_path=folder, commit_message=message or "Upload a model with jaxgpt",
            delete_patterns=list(REPLACED) if there else None,
        )  # fmt: skip
    except (HfHubHTTPError, OSError) as error:
        cause = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        status = getattr(getattr(error, "response", None), "status_code", 0)
        advice = ": log in with a token that may write there, by `hf auth login`" if status in (401, 403) else ""
        raise InputError(f"the hub did not take {repo} ({cause}){advice}") from None
    return str(address)


def set_license(card: Path, license: str) -> None:
    """Write the licence into a model card's fields."""
    from huggingface_hub import metadata_load, metadata_save

    metadata_save(card, {**(metadata_load(card) or {}), "license": license})
