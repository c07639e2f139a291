"""Fetching from and sending to the Hub, with huggingface_hub, which is imported when it is needed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from keyglue.base.bundled import DEFAULT_MODEL
from keyglue.base.errors import HubError

_COMMIT = re.compile(r"[0-9a-f]{40}")


class HubRepository:
    """The files of one revision of a model on the Hub, fetched when they are asked for and kept in the cache.

    All files come from the same commit, even if the branch moves on between two of them. Where the Hub can't be
    reached, what is in the cache is used.

    Args:
        repo_id: "owner/name".
        options: ``revision``, ``cache_dir``, ``local_files_only``, ``token``, ``force_download``, ``subfolder``.
    """

    def __init__(self, repo_id: str, options: Mapping[str, Any]) -> None:
        self.repo_id = repo_id
        self._revision = str(options.get("revision", "main"))
        self._asked_revision = self._revision
        self._subfolder = str(options.get("subfolder", "")).strip("/")
        self._cache_dir = options.get("cache_dir")
        self._token = options.get("token")
        self._force = bool(options.get("force_download", False))
        # Why the Hub is not asked: it was forbidden, or an earlier question failed with this error.
        self._offline: bool | Exception = bool(options.get("local_files_only", False))
        self._asked = False

    def find(self, filename: str) -> Path | None:
        """Return the local path of a file, or None where the model has no such file.

        Raises:
            HubError: The Hub cannot be reached and the cache does not have the file, or the Hub says that the model,
                the revision or the permission is not there.
        """
        name = f"{self._subfolder}/{filename}" if self._subfolder else filename
        pinned = bool(_COMMIT.fullmatch(self._revision))
        if pinned and not self._force:
            # A commit never changes: what is cached of it needs no question.
            found, known = self._cached(name)
            if known:
                return found
        if not self._offline and not self._asked:
            self._ask(name)
        if not self._offline:
            return self._download(name)
        found, known = self._cached(name)
        if not known or self._force:
            raise self._explain(self._offline, filename)
        return self._pin(found, name)

    def _cached(self, name: str) -> tuple[Path | None, bool]:
        """Return a file's place in the cache, and whether the cache knows that there is, or is not, such a file."""
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(self.repo_id, name, cache_dir=self._cache_dir, revision=self._revision)
        return (Path(found) if isinstance(found, str) else None), found is not None

    def _ask(self, name: str) -> None:
        """Ask the Hub for a file's metadata once, because the download itself would retry for half a minute."""
        from huggingface_hub import get_hf_file_metadata, hf_hub_url
        from huggingface_hub.errors import EntryNotFoundError, RevisionNotFoundError

        try:
            get_hf_file_metadata(hf_hub_url(self.repo_id, name, revision=self._revision), token=self._token)
        except EntryNotFoundError:
            pass
        except RevisionNotFoundError as error:
            raise self._explain(error, name) from error
        except Exception as error:  # the client's transport errors have no common ancestor across its versions
            self._offline = error
        self._asked = True

    def _download(self, name: str) -> Path | None:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        try:
            path = hf_hub_download(
                self.repo_id,
                name,
                revision=self._revision,
                cache_dir=self._cache_dir,
                token=self._token,
                force_download=self._force,
            )
        except LocalEntryNotFoundError as error:
            raise self._explain(error, name) from error
        except EntryNotFoundError:
            return None
        except Exception as error:  # see above
            raise self._explain(error, name) from error
        return self._pin(Path(path), name)

    def _pin(self, path: Path | None, name: str) -> Path | None:
        """Take all later files from the commit that this one came from: .../snapshots/<commit>/<name>."""
        if path is not None:
            commit = path.parents[name.count("/")].name
            self._revision = commit if _COMMIT.fullmatch(commit) else self._revision
        return path

    def _explain(self, reason: bool | Exception, filename: str) -> HubError:
        """Return the error to raise, with what to do."""
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

        state = "is to be fetched anew" if self._force else "is not in the local cache"
        error = HubError(
            f"{filename} of {self.repo_id} {state}, and the Hub {_why(reason)}. Connect once to fill the cache, or use "
            f"the bundled model {DEFAULT_MODEL!r}, which needs no network."
        )
        if isinstance(reason, GatedRepoError):
            error = HubError(f"{self.repo_id} is gated: accept its terms on the Hub and pass token=.")
        elif isinstance(reason, RevisionNotFoundError):
            error = HubError(f"{self.repo_id} has no revision {self._asked_revision!r} on the Hub.")
        elif _status(reason) == 401 and "credentials" in str(reason).lower():
            error = HubError(f"the Hub refuses the access token for {self.repo_id}: it is wrong or has expired.")
        elif isinstance(reason, RepositoryNotFoundError):
            error = HubError(
                f"there is no model {self.repo_id} on the Hub, or it is private and needs token=. There is no folder "
                "of that name here either."
            )
        if isinstance(reason, Exception):
            error.__cause__ = reason
        return error


def _status(error: object) -> int | None:
    """Return the HTTP status that an error of the client carries, if any."""
    return getattr(getattr(error, "response", None), "status_code", None)


def _why(reason: bool | Exception) -> str:
    if reason is True:
        return "was not to be asked (local_files_only)"
    from huggingface_hub.errors import OfflineModeIsEnabled

    if isinstance(reason, OfflineModeIsEnabled):
        return "was not to be asked (HF_HUB_OFFLINE is set)"
    status = _status(reason)
    if status is not None:
        return f"answered with HTTP status {status}"
    first_line = str(reason).splitlines()[0] if str(reason) else ""
    return f"cannot be reached ({type(reason).__name__}: {first_line})"


def upload_folder(folder: Path, repo_id: str, *, private: bool, token: str | None, message: str) -> str:
    """Create a model repository on the Hub where needed, upload a folder to it and return the commit's address.

    Raises:
        HubError: The Hub cannot be reached or refuses.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message)
    except Exception as error:  # see above
        if _status(error) in (401, 403):
            raise HubError(
                f"the Hub does not let you write to {repo_id}: pass token= with an access token that may, or log in "
                "with `hf auth login`."
            ) from error
        raise HubError(f"{repo_id} could not be sent: the Hub {_why(error)}.") from error
    return str(commit.commit_url)
