"""Where a run's stores and a store's data set lie: as recorded, from the run's own project or from the working folder.

A record holds paths as they were typed, mostly relative to a project's folder. They are looked for from the folders
above the run first, so that a run can be used from anywhere.
"""

from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import UserError
from pipeline.projectors.run_record import AlignedRun
from pipeline.remote.binding import bind_recorded, is_url
from pipeline.store.side import Side


def locate(recorded: str, near: Path) -> Path | None:
    """Return the folder that a recorded path means, looked for from the folders above `near`; None where it is gone.

    A recorded URL is bound; whether anything is there shows when it is opened.
    """
    if not recorded:
        return None
    if is_url(recorded):
        return bind_recorded(recorded)
    bases = dict.fromkeys([*near.parents, Path(), *near.resolve().parents])
    return next((folder for base in bases if (folder := base / recorded).is_dir()), None)


def open_images(run: AlignedRun, given: Sequence[Path]) -> Side:
    """Open the given image stores, else those that the run was trained on.

    Raises:
        UserError: A store is missing or holds no image features.
    """
    if given:
        return Side.open("image", given, remedy="give the store of the images with --store")
    found = [locate(record.path, run.path) for record in run.stores["image"]]
    there = [path for path in found if path is not None]
    if len(there) < len(found):
        raise UserError(
            expected="the image store that the run was trained on",
            found="no such folder",
            where=", ".join(str(Path(record.path)) for record in run.stores["image"]),
            remedy="say where it lies with --store",
        )
    return Side.open("image", there)


def open_texts(run: AlignedRun, images: Side, given: Sequence[Path]) -> Side | None:
    """Open the given text stores, else those that the run was trained on; None where these are gone.

    Nor are the run's own taken for images of another data set: equal ids would give them captions of other pictures.

    Raises:
        UserError: A given store is missing or holds no text features.
    """
    if given:
        return Side.open("text", given, remedy="give the store of the captions with --text-store")
    trained = [record.key.get("dataset_digest") for record in run.stores["image"]]
    if [store.key.dataset_digest for store in images.stores] != trained:
        return None
    found = [locate(record.path, run.path) for record in run.stores["text"]]
    there = [path for path in found if path is not None]
    return Side.open("text", there) if len(there) == len(found) else None


def dataset_folder(images: Side) -> Path | None:
    """Return the folder that the pictures' files are relative to; None where the store does not say or it is gone."""
    store = images.stores[0]
    return locate(str(store.manifest.provenance.get("dataset") or ""), store.path)
