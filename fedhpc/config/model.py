"""The section `model`: the network."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from fedhpc.util.section import Section

TaskKind = Literal["multiclass", "multilabel"]
BuiltIn = Literal["densenet_small", "densenet121", "resnet18", "resnet50", "frozen"]


class Model(Section):
    """The network: a built-in one by `name`, one of MONAI by `monai`, or your own by `build`; exactly one of the three.

    `frozen` trains a linear head on the features of a public `backbone`, computed once per shard.

    `build` runs Python code inside every hospital, with all rights of the user who starts the rank. So each rank reads
    its own file, and the run starts only where the digests of all are equal. A copy is kept in the run directory, and
    `evaluate`, `predict`, `export`, `audit`, `contribution --on` and `open_run(...).model()` execute that copy: of a
    run that somebody else has made, read `model_source.py` first, or do not.
    """

    name: BuiltIn | None = Field(
        default="densenet_small", description="a built-in network; null with `build` or `monai`"
    )
    build: Annotated[str, Field(pattern=r"^\S.*:[A-Za-z_]\w*$")] | None = Field(
        default=None,
        description="a function (task, **args) -> torch.nn.Module: `my_models.py:make`, relative to the config file, "
        "or `package.module:make` of an installed package",
    )
    monai: Annotated[str, Field(pattern=r"^[A-Za-z]\w*$")] | None = Field(
        default=None, description="a network of monai.networks.nets by its name, such as DenseNet121"
    )
    args: dict[str, Any] = Field(default={}, description="keyword arguments for `build` or `monai`")
    source_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = Field(
        default=None, description="of the file of `build`; filled in when the config is read, and compared if it is set"
    )
    source_module: str | None = Field(
        default=None, description="the module of `build`, where it is one of an installed package; filled in"
    )
    source_version: str | None = Field(
        default=None, description="the installed package of `source_module` and its version; filled in"
    )
    backbone: str | None = Field(
        default=None,
        description="efficientnet_lite0, phantom, efficientnet_lite0+phantom (both), "
        "efficientnet_lite0+phantom+cropped (both, also of each image cut to what it shows), or the model.pt of "
        "another fedhpc run",
    )
    features: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="how many whitened directions of the backbone's features the head is trained on"
    )
    whitening: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.6, description="0: each direction as wide as in the public reference, 1: all equally wide"
    )
    feature_norm: Literal["none", "stages"] = Field(
        default="none",
        description="of a frozen backbone: none (without `features` all of an image's features are standardised as "
        "one), or stages (the channels' means, and their deviations, of each stage of the backbone are standardised by "
        "themselves, image by image, so that a scanner of another contrast changes less)",
    )
    feature_mean: Literal["reference", "sites"] = Field(
        default="reference",
        description="where the mean of the whitened features is from: reference (public), or sites (one sum over the "
        "training units, released with the noise of privacy.feature_mean_noise before the first round): for a "
        "reference that is not of the sites' own collection",
    )
    input_layer: bool = Field(
        default=False,
        description="a layer in front of the network that is trained with it: gain, gamma, low-pass of each channel, "
        "the same for all images, without effect at its start; not with name=frozen, whose features are computed once",
    )
    init_from: str | None = Field(
        default=None, description="a finished run, or a model.pt, whose parameters are the initial ones (--init-from)"
    )

    @model_validator(mode="before")
    @classmethod
    def _no_default_beside_another(cls, values: Any) -> Any:
        """The default of `name` is for a section that names no other network."""
        others = isinstance(values, dict) and (values.get("build") or values.get("monai"))
        return {"name": None, **values} if others else values

    @property
    def label(self) -> str:
        """The network in a word or two."""
        return self.name or (f"MONAI {self.monai}" if self.monai else Path(str(self.build)).name)

    @property
    def key(self) -> str:
        """The key that names the network, with its value, for messages."""
        which = "name" if self.name else "monai" if self.monai else "build"
        return f"model.{which}={self.name or self.monai or self.label}"

    @property
    def checked(self) -> bool:
        """Whether the network is not a built-in one, so that it is checked before it is trained."""
        return self.name is None

    def identity(self) -> dict[str, Any]:
        """The section without the place of the source file, which differs between ranks and in a run directory."""
        plain = self.model_dump(mode="json")
        return {**plain, "build": self.build and self.build.rpartition(":")[2]}
