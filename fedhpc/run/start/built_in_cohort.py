"""The built-in cohort of a run: its shards and its public reference, made where they are missing."""

from collections.abc import Sequence
from pathlib import Path

from fedhpc.config.data import PHANTOMS
from fedhpc.config.schema import RunConfig
from fedhpc.errors import InputError
from fedhpc.run.display import Console
from fedhpc.transport.base import Transport
from fedhpc.transport.collectives import run_on_all_ranks
from fedhpc.util.files import make_folder, reported
from fedhpc.util.progress import Beat

REFERENCE_IMAGES = 1000


def make_missing(config: RunConfig, transport: Transport, indices: Sequence[int], console: Console) -> None:
    """Make what is missing of the built-in cohort: this rank's shards, and at rank 0 the public reference."""
    run_on_all_ranks(transport, lambda: make_phantoms(config, [config.site_names[i] for i in indices], console))
    run_on_all_ranks(transport, lambda: make_reference(config, console) if transport.rank == 0 else None)


def make_phantoms(config: RunConfig, sites: Sequence[str], console: Console) -> None:
    """Make the shards of these sites that are missing, where the config has them from the built-in cohort."""
    wanted = config.data.phantom
    missing = [name for name in sites if not config.data.shard_path(name).exists()]
    if wanted is None or not missing:
        return
    from data_prep.phantom import Cohort, write_site

    cohort = Cohort(seed=wanted.seed, images=wanted.images, image_size=wanted.image_size, difficulty=wanted.difficulty)
    unknown = sorted(set(missing) - set(cohort.sites))
    if unknown:
        raise InputError(
            f"data.phantom: {', '.join(unknown)}: no such hospital in the built-in cohort, and there is no shard; its "
            f"hospitals are {', '.join(cohort.sites)}. Name these in data.sites, or remove data.phantom",
            code="config",
        )
    console.say(f"making the built-in cohort of {wanted.images} images ({wanted.image_size} x {wanted.image_size}) ...")
    # Each site reports on itself as it is drawn; where this process draws several, also on all of them.
    sizes, beat = {name: cohort.sites[name].images for name in missing}, Beat("built-in cohort")
    for number, name in enumerate(missing, 1):
        path = config.data.shard_path(name)
        with reported(path, "written"):
            write_site(cohort, name, path)
        share = sum(sizes[one] for one in missing[:number]) / sum(sizes.values())
        beat.at(share * wanted.images, wanted.images)


def make_reference(config: RunConfig, console: Console) -> None:
    """Make the public reference of a phantom study where it is missing; at rank 0 alone."""
    wanted, path = config.data.phantom, config.data.public_reference
    if wanted is None or path is None or path == PHANTOMS or Path(path).exists():
        return
    console.say(f"making a public reference of {REFERENCE_IMAGES} phantoms ...")
    write_phantoms(Path(path), REFERENCE_IMAGES, wanted.image_size)


def write_phantoms(path: Path, images: int, image_size: int) -> None:
    """Write a public reference of so many phantoms to `path`, and make its folder."""
    from data_prep.phantom.public import write_reference

    make_folder(path.parent)
    with reported(path, "written"):
        write_reference(path, images, image_size)
