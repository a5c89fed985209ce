"""`run.py prepare compare SHARD...`: a table and a page of the hospitals before and after each chain of steps.

The page shows images and exact histograms of each shard: it is as private as the shards, unless they are phantoms.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep.domain_shift import Shift, draw, reference_steps, shift, usual_chains
from fedhpc.config.harmonise import Chain, Step
from fedhpc.models.backbones import public_backbone
from fedhpc.util.arrays import F32, F64
from fedhpc.util.files import PRIVATE, write_text
from fedhpc.util.html import rendered
from fedhpc.util.progress import at_work
from fedhpc.util.text import fixed, table

TEMPLATE = Path(__file__).with_name("compare.html.jinja")
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#8a7a00", "#444444")
DASHES = ("none", "7 3", "2 2", "9 3 2 3")
"""Sites differ by more than colour."""
WIDTH, HEIGHT = 360, 130


@dataclass(frozen=True)
class Comparison:
    """What to compare.

    Attributes:
        shards: of at least two sites.
        images: at most so many of each.
        backbone: whose features a classifier tells the sites apart by.
        reference: a public shard for the steps that need one; None: without these.
        frequencies: a side, of the Fourier step.
        chain: one more chain, of a config; None: the usual ones only.
        own: the chains of sites that have one of their own in that config.
    """

    shards: tuple[Path, ...]
    images: int = 400
    backbone: str = "phantom"
    reference: Path | None = None
    frequencies: int = 5
    chain: Chain | None = None
    own: Mapping[str, Chain] = field(default_factory=dict)


def compare(wanted: Comparison) -> dict[str, Shift]:
    """Return what each chain makes of the sites' images, by the chain's name.

    Raises:
        ShardError: shards that cannot be compared, a reference that is not public.
    """
    drawn = draw(wanted.shards, wanted.images)
    steps = reference_steps(wanted.reference, wanted.frequencies) if wanted.reference else ()
    chains = usual_chains(drawn[0].pixel_range, steps)
    if wanted.chain is not None:
        chains["config"] = wanted.chain
    backbone = public_backbone(wanted.backbone)
    found = {}
    with at_work("compare") as begins:
        for name, chain in chains.items():
            begins(name)
            found[name] = shift(drawn, chain, backbone, wanted.own if name == "config" else None)
    return found


def comparison_text(found: Mapping[str, Shift]) -> str:
    """Return the table: AUC of telling two sites apart (0.5 is the goal), share of variance between sites, CPU time."""
    rows = [["harmonise", "site AUC", "worst pair", "site share", "ms an image"]]
    rows += [
        [
            name,
            fixed(one.auc),
            fixed(max(one.pairs.values(), default=None)),
            fixed(one.share),
            f"{one.ms_per_image:.2f}",
        ]
        for name, one in found.items()
    ]
    return table(rows)


def write_page(found: Mapping[str, Shift], path: Path) -> None:
    """Write the page: histograms and one image of each site, by chain."""
    sites = list(next(iter(found.values())).histograms)
    styles = {site: {"colour": COLOURS[k % 8], "dash": DASHES[k % 4]} for k, site in enumerate(sites)}
    chains = [
        {
            "name": name,
            "auc": fixed(one.auc),
            "share": fixed(one.share),
            "ends": (f"{one.edges[0]:.3g}", f"{one.edges[-1]:.3g}"),
            "lines": [
                {"site": site, **styles[site], "points": _points(shares)} for site, shares in one.histograms.items()
            ],
            "images": [{"site": site, "png": _png(image, one.edges)} for site, image in one.examples.items()],
        }
        for name, one in found.items()
    ]
    text = rendered(TEMPLATE, chains=chains, width=WIDTH, height=HEIGHT, sites=styles)
    write_text(path, text, mode=PRIVATE)


def landmarks_text(reference: Path, frequencies: int) -> str:
    """Return the steps `nyul` and `fourier` of a public reference, as they stand in a config."""
    steps: Sequence[Step] = reference_steps(reference, frequencies)
    lines = [f"# Of {reference.name}, a public reference: take one of the first two."]
    lines += ["harmonise:", *(f"  - {_flow(step)}" for step in steps), "  - {step: zscore}"]
    return "\n".join(lines)


def _flow(step: Step) -> str:
    inner = ", ".join(f"{name}: {_plain(value)}" for name, value in step.model_dump(mode="json").items())
    return f"{{{inner}}}"


def _plain(value: object) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_plain, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _points(shares: F64) -> str:
    """A histogram as the points of an SVG polyline; the square root shows small shares too."""
    tall = np.sqrt(shares / max(float(shares.max()), 1e-12))
    across = np.linspace(0, WIDTH, len(shares))
    return " ".join(f"{x:.1f},{HEIGHT - 2 - y * (HEIGHT - 6):.1f}" for x, y in zip(across, tall, strict=True))


def _png(image: F32, edges: F64) -> str:
    """The image on the scale of the histograms, which all sites share: one of its own would hide what a chain does."""
    low, high = edges[0], edges[-1]
    grey = np.clip((image - low) * (255 / max(float(high - low), 1e-12)), 0, 255).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(grey).save(out, format="PNG")
    return base64.b64encode(out.getvalue()).decode()
