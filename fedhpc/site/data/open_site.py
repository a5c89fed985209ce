"""One site's shard, open, and the samples that a network reads of it."""

from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from fedhpc.config.harmonise import DEFAULT, Chain
from fedhpc.config.schema import RunConfig
from fedhpc.errors import ShardError
from fedhpc.models.backbones import Backbone
from fedhpc.site.data.corruption import CorruptedShard
from fedhpc.site.data.samples import FeatureSamples, ImageSamples, Samples, feature_path
from fedhpc.site.data.shard import Shard


@dataclass(frozen=True)
class OpenSite:
    """An open shard (private), and the folder that it lies in. A context manager; close it or use `with`.

    `rows` is what `samples` read in its place in a stress test of this site's data. `chain` is what
    they do to each image.
    """

    shard: Shard
    folder: Path
    rows: CorruptedShard | None = None
    chain: Chain = DEFAULT

    def samples(self, backbone: Backbone | None) -> Samples:
        """Return the images, or their features of a frozen `backbone`, computed where it is and kept beside the shard.

        Raises:
            ShardError: the features cannot be kept.
        """
        rows = self.rows or self.shard
        return (
            ImageSamples(rows, self.chain)
            if backbone is None
            else FeatureSamples(rows, backbone, self.folder, self.chain)
        )

    def features_path(self, backbone: Backbone) -> Path:
        """Return the file that `samples` keeps the features of `backbone` in."""
        return feature_path(self.shard, backbone, self.folder, self.chain)

    def close(self) -> None:
        """Close the shard. Closing twice is harmless."""
        self.shard.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_site(
    path: Path, name: str | None = None, *, in_memory: bool | Literal["auto"] = "auto", chain: Chain = DEFAULT
) -> OpenSite:
    """Open the shard at `path`.

    Args:
        path: the `.h5` file.
        name: the site that it must be of; None: of any, and a training split is not needed.
        in_memory: see `Shard.open`.
        chain: the steps that harmonise its images.

    Raises:
        ShardError: the file is not a shard, or that of another site.
    """
    shard = Shard.open(path, name, in_memory=in_memory, need_train=name is not None)
    return OpenSite(shard, path.parent, chain=chain)


def open_site_of_run(config: RunConfig, name: str) -> OpenSite:
    """Open the shard of a site of a run.

    Raises:
        ShardError: as `open_site`; or its labels are not of the config's task, or a validation or test split is empty.
    """
    path = config.data.shard_path(name)
    site = open_site(path, name, in_memory=config.data.in_memory, chain=config.chain_of(name))
    try:
        _check_fit(config, name, site.shard)
    except ShardError:
        site.close()
        raise
    stress = config.stress
    if stress is None or not stress.of_data or name not in stress.sites:
        return site
    return replace(site, rows=CorruptedShard(site.shard, stress, config.seed))


def _check_fit(config: RunConfig, name: str, shard: Shard) -> None:
    if shard.kind != config.task:
        raise ShardError(
            f"shard of site {shard.site!r}: its labels are {shard.kind}, the config says task={config.task}. Set task "
            f"to {shard.kind}, or prepare the shard for the other",
            code="shard.task",
        )
    declared = next(site.modality for site in config.data.sites if site.name == name)
    if declared is not None and bool((shard.modality != declared.encode()).any()):
        raise ShardError(
            f"data.sites of {name}: modality={declared}: not all images of its shard are of that modality. Declare "
            "none, or prepare the shard without the others",
            code="shard.modality",
        )
    empty = [split for split in ("val", "test") if not len(shard.indices(split))]
    if empty:
        raise ShardError(
            f"shard of site {shard.site!r}: split {' and '.join(empty)} is empty; a run needs it",
            code="shard.empty-split",
        )
