"""Weights on the Hugging Face hub; the only module that knows huggingface_hub.

Its client keeps files in its own cache, takes its own settings (`HF_HOME`, `HF_TOKEN`,
`HF_ENDPOINT`, `HF_HUB_OFFLINE`), and goes on with a download that was cut.
"""

import contextlib
import errno
import logging
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from leaps_jax import files
from leaps_jax.errors import UserError, listed, nearest, printable
from leaps_jax.progress import Steps
from leaps_jax.runtime import multihost
from leaps_jax.version import __version__
from leaps_jax.zoo import checkpoints, download
from leaps_jax.zoo.addresses import Fetched, HubAddress, safe_path
from leaps_jax.zoo.conversion import sources

INSTALL = "pip install 'leaps_jax[hub]'"
_MAIN = "main"  # the branch that every repository has
_TIMEOUT = 30  # seconds for an answer


def fetch(address: HubAddress) -> Fetched:
    """Fetches weights from the hub, unless they are in its cache.

    Of a repository or folder these files are taken: a checkpoint of this project, or
    else weights that `conversion.sources` reads, those in safetensors first.

    Args:
      address: of a repository, or of a file or folder in one.

    Raises:
      UserError: huggingface_hub is missing; there is no such repository, revision or
        file; it is private, gated or too large; its weights are of several kinds, of
        which one must be named; or it is not in the cache, and no network may be asked.
      OSError: the hub cannot be reached and the weights are not in the cache, the
        connection was cut, or the cache cannot be written.
    """
    hub = _package()
    with _told(hub, address):
        if hub.constants.HF_HUB_OFFLINE:
            return _cached(hub, address, None)
        try:
            info = _api(hub).model_info(
                address.repo,
                revision=address.revision or _MAIN,
                files_metadata=True,
                timeout=_TIMEOUT,
            )
        except Exception as error:
            if _status(error) or isinstance(error, hub.errors.HFValidationError):
                raise
            return _cached(hub, address, error)
        return _downloaded(hub, address, info)


def _downloaded(hub: Any, address: HubAddress, info: Any) -> Fetched:
    """Downloads what is not in the cache, and compares it with the hub's checksums."""
    found = {file.rfilename: file for file in info.siblings}
    path, chosen = choose(found, address)
    sizes = {name: found[name].size or 0 for name in chosen}
    download.check_size(sum(sizes.values()))
    lacking = [
        name
        for name in chosen
        if not hub.try_to_load_from_cache(address.repo, name, revision=info.sha)
    ]
    wanted = sum(sizes[name] for name in lacking)
    download.check_room(Path(hub.constants.HF_HUB_CACHE), wanted)
    total = -(-wanted // download.MIB)
    shown = multihost.first() and bool(lacking)
    with Steps("download", total, 0, shown, "MiB", waiting="", brief=True) as steps:
        steps.say(f"downloading {address} ({wanted / download.MIB:.1f} MiB)")
        folder = Path(
            hub.snapshot_download(
                address.repo,
                revision=address.revision or _MAIN,
                allow_patterns=chosen,
                tqdm_class=_bar(steps),
            )
        )
    for name in chosen:
        if not (folder / name).is_file():  # another commit has come
            raise UserError("it changed while it was read; start again")
        known = (found[name].lfs or {}).get("sha256")
        if known and files.sha256(folder / name) != known:
            blob = (folder / name).resolve()
            raise UserError(f"{name}: is damaged; delete {blob} and start again")
    return _fetched(hub, address, folder, path)


def _cached(hub: Any, address: HubAddress, error: Exception | None) -> Fetched:
    """What the cache has of an address.

    Args:
      hub: the package.
      address: of the weights.
      error: why the hub cannot be reached; None where it must not be asked.
    """
    what = {"repo_id": address.repo, "revision": address.revision or _MAIN}
    with contextlib.suppress(
        UserError, OSError, hub.errors.CachedRepoTreeNotFoundError
    ):
        names = [file.path for file in hub.get_cached_repo_tree(**what)]
        path, chosen = choose(names, address)
        # raises where one of them is missing
        folder = hub.snapshot_download(
            **what, allow_patterns=chosen, local_files_only=True
        )
        found = _fetched(hub, address, Path(folder), path)
        if error is not None and multihost.first():
            commit = Path(folder).name
            line = f"the hub cannot be reached; {address} as it was at {commit}"
            Steps("download", brief=True).say(line)
        return found
    if error is not None:
        _unreachable(address, error)
    raise UserError(
        "HF_HUB_OFFLINE is set and this was not downloaded before; unset it, or fetch"
        " it once where there is a network"
    )


def _fetched(hub: Any, address: HubAddress, folder: Path, path: str) -> Fetched:
    """What is in the folder of a commit, which has its name."""
    commit, kind = folder.name, "blob" if (folder / path).is_file() else "tree"
    page = f"{hub.constants.ENDPOINT}/{address.repo}/{kind}/{commit}/{path}"
    pinned = HubAddress(address.repo, path, commit)
    return Fetched(folder / path, pinned, page.rstrip("/"))


def choose(names: Collection[str], address: HubAddress) -> tuple[str, list[str]]:
    """Which files of a repository are the weights of an address.

    Args:
      names: of all its files.
      address: what the user wrote.

    Returns:
      The path to read, a file or a folder, and the files that reading it takes.

    Raises:
      UserError: there are none, or several of which one must be named.

    >>> choose(["a.bin", "model.safetensors"], HubAddress("me/x3d"))
    ('model.safetensors', ['model.safetensors'])
    """
    names = [name for name in names if safe_path(name)]
    if address.path in names:
        return address.path, [address.path]
    start = f"{address.path}/" if address.path else ""
    inside = [name.removeprefix(start) for name in names if name.startswith(start)]
    if not inside:
        raise UserError(
            f"{address.repo} has no {address.path}; {nearest(address.path, names)}"
        )
    path, chosen = _in_folder(inside, address)
    full = f"{start}{path}".rstrip("/")
    return full, [start + name for name in chosen]


def _in_folder(names: list[str], address: HubAddress) -> tuple[str, list[str]]:
    """As `choose`, of names within a folder, "" for the folder itself."""
    if "model.json" in names and any(n.startswith("variables/") for n in names):
        return "", [name for name in names if checkpoints.is_part(name)]
    for file in sources.FOLDER_FILES:
        if file in names:
            return file, [file]
        if (index := f"{file}.index.json") in names:
            stem, _, suffix = file.rpartition(".")
            shards = [n for n in names if n.startswith(f"{stem}-")]
            return "", [index, *(n for n in shards if n.endswith(f".{suffix}"))]
    kinds = (".safetensors",), (".pth", ".pyth", ".pt", ".bin"), (".pkl", ".msgpack")
    for suffixes in kinds:
        found = [n for n in names if n.endswith(suffixes)]
        if len(found) == 1:
            return found[0], found
        if found:
            several = listed("files of weights", sorted(found), most=4)
            raise UserError(f"{several}; name one, as in hf:{address.repo}/{found[0]}")
    if "checkpoint" in names:  # of Scenic
        return "checkpoint", ["checkpoint"]
    raise UserError(f"{address} holds no weights that are read; name a file of it")


def push(
    contents: Mapping[str, Path | bytes],
    address: HubAddress,
    *,
    private: bool = False,
    overwrite: bool = False,
) -> str:
    """Uploads a checkpoint to the hub, in one commit.

    Args:
      contents: by path in the repository, files of this machine or their bytes.
      address: of a repository, which is made where there is none.
      private: nobody but its owner sees a repository that is made.
      overwrite: replace a model or a README.md that the repository has.

    Returns:
      The address of the repository for a browser.

    Raises:
      UserError: huggingface_hub or an account is missing, or the repository is not the
        user's or holds a model.
      OSError: the hub cannot be reached.
    """
    hub = _package()
    if hub.constants.HF_HUB_OFFLINE:
        raise UserError("HF_HUB_OFFLINE is set; unset it to upload")
    with _told(hub, address, writing=True):
        api = _api(hub)
        try:
            info = api.model_info(address.repo, timeout=_TIMEOUT)
            there = [file.rfilename for file in info.siblings]
        except hub.errors.RepositoryNotFoundError:
            there = []
        if not overwrite and (held := {"model.json", "README.md"}.intersection(there)):
            raise UserError(f"it has a {min(held)}; --overwrite replaces it")
        api.create_repo(address.repo, private=private, exist_ok=True)
        old = [n for n in there if checkpoints.is_part(n) and n not in contents]
        added = [hub.CommitOperationAdd(n, c) for n, c in contents.items()]
        size = sum(one.upload_info.size for one in added)
        total, done = -(-size // download.MIB), 0
        with Steps("upload", total, unit="MiB", waiting="", brief=True) as steps:
            steps.say(f"uploading {len(added)} files ({size / download.MIB:.1f} MiB)")
            for one in added:  # the large ones; the commit brings the small ones
                api.preupload_lfs_files(address.repo, [one], free_memory=False)
                done += one.upload_info.size
                steps.update(done // download.MIB)
            api.create_commit(
                address.repo,
                [*(hub.CommitOperationDelete(name) for name in old), *added],
                commit_message="Upload weights of leaps_jax",
            )
    return f"{hub.constants.ENDPOINT}/{address.repo}"


def _package() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
        import huggingface_hub.utils
    except ImportError:
        raise UserError(
            f"what begins with hf: needs huggingface_hub; {INSTALL}"
        ) from None
    return huggingface_hub


def _api(hub: Any) -> Any:
    return hub.HfApi(library_name="leaps_jax", library_version=__version__)


def _bar(steps: Steps) -> type:
    """A class for the bars of the client, which reports their bytes as steps."""
    from huggingface_hub.utils import tqdm

    most = 0

    class Bar(tqdm):
        """Shows nothing itself."""

        def __init__(self, *args: Any, **options: Any):
            self._counts = options.get("unit") == "B"
            self._done = int(options.get("initial") or 0)
            super().__init__(*args, **options | {"disable": True})

        def update(self, n: float | None = 1) -> None:
            nonlocal most
            self._done += int(n or 0)
            if self._counts and self._done > most:  # bars may count the same bytes
                most = self._done
                steps.update(-(-most // download.MIB))

    return Bar


@contextlib.contextmanager
def _told(hub: Any, address: HubAddress, writing: bool = False) -> Iterator[None]:
    """Turns the errors of the client into one line, and drops its own lines."""
    logger = logging.getLogger("huggingface_hub")
    before, bars = logger.level, not hub.utils.are_progress_bars_disabled()
    logger.setLevel(logging.CRITICAL)
    hub.utils.disable_progress_bars()
    try:
        yield
    except (UserError, MemoryError):
        raise
    except hub.errors.HFValidationError as error:
        raise UserError(f"no name of a repository ({printable(str(error))})") from None
    except Exception as error:  # of the client and of the library below it, many kinds
        if isinstance(error, OSError) and error.filename:  # of this machine
            raise
        _refuse(hub, address, error, writing)
    finally:
        logger.setLevel(before)
        if bars:
            hub.utils.enable_progress_bars()


def _refuse(hub: Any, address: HubAddress, error: Exception, writing: bool) -> NoReturn:
    kinds, login = hub.errors, "log in with `hf auth login`"
    page = f"{hub.constants.ENDPOINT}/{address.repo}"
    if isinstance(error, kinds.GatedRepoError):
        said = f"is gated: accept its terms at {page}, then {login}"
    elif isinstance(error, kinds.RevisionNotFoundError):
        said = f"has no revision {address.revision}; leave it out, or see {page}"
    elif isinstance(error, kinds.RepositoryNotFoundError):
        said = f"there is none, or it is private; check the name, or {login}"
    elif _status(error) in (401, 403):
        what = (
            "you may not write there" if writing else "the hub does not give it to you"
        )
        said = f"{what}; {login}, with an account that may"
    elif _status(error) == 404:
        said = f"the hub does not have it; see {page}"
    else:
        _unreachable(address, error)
    raise UserError(f"{address.repo}: {said}") from None


def _unreachable(address: HubAddress, error: Exception) -> NoReturn:
    """The hub, or the way to it, has failed."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        raise OSError(errno.ENOSPC, error.strerror, str(address)) from None
    code = _status(error)
    said = f"the connection to the hub failed ({_brief(error)})"
    if code:
        said = f"the hub answers {code}"
    raise OSError(errno.EIO, said, str(address)) from None


def _status(error: Exception) -> int | None:
    """The code of an answer from the hub; None where there was none."""
    return getattr(getattr(error, "response", None), "status_code", None)


def _brief(error: Exception) -> str:
    lines = str(error).splitlines() or [type(error).__name__]
    return printable(lines[0], 150)
