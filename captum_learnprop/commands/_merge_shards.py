"""The work of ``learnprop merge``: shards in, one file of all maps out."""

from __future__ import annotations

from pathlib import Path

from captum_learnprop.attribution_shards import ShardStore
from captum_learnprop.attribution_store import MAX_CLASSES, require_h5py
from captum_learnprop.commands._attribute_shards import Total, gather
from captum_learnprop.errors import LearnpropError


def run(folder: Path, *, hdf5: bool, partial: bool) -> Total:
    """Gathers shards.

    Args:
        folder: The output folder of a run in shards.
        hdf5: Whether to write the HDF5 file.
        partial: Whether shards may be missing.

    Raises:
        LearnpropError: There is no such run, or images are missing, or the layout cannot hold it.
    """
    store = ShardStore(folder)
    if hdf5:
        require_h5py()
        classes = len(store.manifest["class_names"])
        if classes > MAX_CLASSES:
            raise LearnpropError(f"the HDF5 layout ends at {MAX_CLASSES} classes, there are {classes}: add --no-hdf5")
    missing = store.parts - len(store.done_parts())
    if missing and not partial:
        raise LearnpropError(
            f"{missing} of {store.parts} shards are missing in {folder}: run `learnprop attribute` again to make them, "
            "or add --partial"
        )
    return gather(store, hdf5=hdf5)
