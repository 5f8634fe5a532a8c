"""Fetching a checkpoint from the hub: the files that are read, and no others, into the hub's own cache."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi, errors, hf_hub_download, try_to_load_from_cache
from huggingface_hub import constants as hub

from illava_lab.errors import LabError
from illava_lab.models.folder import CONFIG, INDEX, JSONS, TEXTS, WEIGHTS, read_json
from illava_lab.models.weights import indexed, pickled

SMALL = (*JSONS, *TEXTS)


class Source:
    """One commit of a model on the hub, or what the cache has of it if the hub cannot be asked.

    Raises:
        LabError: unknown, gated, no such revision, or neither to be reached nor cached.
    """

    def __init__(self, name: str, revision: str | None) -> None:
        self.name, self.revision = name, revision
        try:
            info = HfApi().model_info(name, revision=revision or hub.DEFAULT_REVISION)
            self.files = {entry.rfilename for entry in info.siblings or ()}
            self.commit: str | None = info.sha
        except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError) as error:
            raise LabError(self._reason(error)) from None
        except Exception as error:  # whatever its client raises without a network
            cached = try_to_load_from_cache(name, CONFIG, revision=revision)
            if not isinstance(cached, str):
                raise LabError(self._reason(error)) from None
            self.folder: Path | None = Path(cached).parent
            self.commit = None
        else:
            self.folder = None

    def small_files(self) -> Path:
        """The folder with everything but the weights."""
        if self.folder is None:
            if CONFIG not in self.files:
                raise LabError("it is no checkpoint: there is no config.json")
            self._fetch([name for name in SMALL if name in self.files])
        assert self.folder is not None
        return self.folder

    def weights(self) -> None:
        """Fetch the weights into the folder, where they are not there already."""
        assert self.folder is not None
        if self.commit is None:
            return
        wanted = {WEIGHTS} if WEIGHTS in self.files else set()
        if not wanted and INDEX in self.files:
            wanted = self.files.intersection(indexed(read_json(self.folder / INDEX)))
        self._fetch(sorted(wanted))
        if not wanted and (pickles := sorted(name for name in self.files if name.endswith(".bin"))):
            raise LabError(pickled(pickles[0]))

    def _fetch(self, names: list[str]) -> None:
        try:
            for name in names:
                # The first is asked for by the name of its branch, which notes in the cache what commit that is now.
                revision = self.revision if self.folder is None else self.commit
                path = Path(hf_hub_download(self.name, name, revision=revision))
                if self.folder is None:
                    self.folder = path.parent
                    self.commit = self.folder.name
        except Exception as error:
            raise LabError(self._reason(error)) from None

    def _reason(self, error: Exception) -> str:
        """One sentence for a person."""
        if isinstance(error, errors.GatedRepoError):
            page = f"{hub.ENDPOINT}/{self.name}"
            said = f"it is gated: accept its licence at {page}, then log in here with: hf auth login"
        elif isinstance(error, errors.RevisionNotFoundError):
            said = f"it has no revision {self.revision!r}"
        elif isinstance(error, errors.RepositoryNotFoundError):
            said = "there is no such model on the hub, or it is private: check the name, or log in with: hf auth login"
        elif isinstance(error, errors.HFValidationError):
            said = "this cannot be the name of a model on the hub"
        elif hub.HF_HUB_OFFLINE:
            said = "it is not in the local cache, and HF_HUB_OFFLINE forbids to fetch it"
        elif isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
            said = f"it cannot be stored: {error.strerror}"
        else:
            said = (
                f"it is not in the local cache, and {hub.ENDPOINT} cannot be reached: check the network, or give a "
                "folder"
            )
        return said
