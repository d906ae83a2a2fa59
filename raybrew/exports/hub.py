"""Exports on the Hugging Face hub. The token is the hub client's own (HF_TOKEN or `hf auth login`), never shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from raybrew.errors import ConfigError, EnvironmentProblem, RaybrewError, RunError, first_line
from raybrew.secrets import scrub, secret_in

__all__ = ["check_push", "push_folder"]


def check_push(repository: str) -> None:
    """ConfigError if `repository` is no `owner/name`; EnvironmentProblem without a token, or where the hub is off."""
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    if (secret := secret_in(repository)) is not None:
        raise ConfigError(f"--push: holds what looks like a secret ({secret}), and becomes the name of a repository")
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise ConfigError(f"--push: given {repository!r}; {scrub(first_line(error))}") from error
    if repository.count("/") != 1:
        raise ConfigError(f"--push: given {repository!r}; owner and name are needed: owner/name")
    if constants.is_offline_mode():
        raise EnvironmentProblem("--push: the hub is switched off by HF_HUB_OFFLINE; unset it to push")
    if get_token() is None:
        raise EnvironmentProblem("--push: no token for the hub; run `hf auth login` or set HF_TOKEN")


def push_folder(folder: Path, repository: str, *, public: bool = False, client: Any = None) -> str:
    """Upload a whole export in one commit; returns its page. The repository is made, private, if there is none.

    RunError if it is there and public while `public` is not set. EnvironmentProblem says why the hub refused.
    `client` stands in for `huggingface_hub.HfApi()`.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    hub = client or HfApi(library_name="raybrew")
    try:
        try:
            found = hub.repo_info(repository, repo_type="model")
        except RepositoryNotFoundError:
            hub.create_repo(repository, repo_type="model", private=not public, exist_ok=True)
        else:
            if not found.private and not public:
                raise RunError(
                    f"--push: {repository} is there already and public; add --public to publish this export, or name "
                    f"another; the export itself is in {folder}"
                )
        commit = hub.upload_folder(
            repo_id=repository,
            folder_path=str(folder),
            repo_type="model",
            commit_message=f"Export of {scrub(folder.resolve().name)} by raybrew",
        )
    except RaybrewError:
        raise
    except Exception as error:  # the client's errors and those of the connection have no common type
        raise EnvironmentProblem(
            f"--push: the hub refused or does not answer: {scrub(first_line(error))}; the export itself is in {folder}"
        ) from error
    return str(getattr(commit, "repo_url", None) or f"https://huggingface.co/{repository}")
