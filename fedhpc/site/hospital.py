"""One hospital: it owns its shard and its ledger, and gives out updates and score histograms, nothing else."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from fedhpc.config import RunConfig
from fedhpc.errors import SiteError
from fedhpc.exchange.selection import refusal
from fedhpc.exchange.update import F32
from fedhpc.metrics import bootstrap_histograms, score_histogram
from fedhpc.models import from_vector, layers_of, to_vector
from fedhpc.rng import generator
from fedhpc.site.evaluation import predict
from fedhpc.site.ledger import Charge, Ledger
from fedhpc.site.privacy import PrivacyPlan, Units, entropy
from fedhpc.site.samples import Samples
from fedhpc.site.training import Bench, OnStep, PrivateWork, train_plain, train_private

Histograms = Mapping[str, NDArray[np.int64]]


@dataclass(frozen=True)
class Workplace:
    """What the hospitals of one rank share: the config, one network that each sets to its parameters, the device."""

    config: RunConfig
    model: nn.Module
    bench: Bench
    plan: PrivacyPlan | None
    on_step: OnStep


class Hospital:
    """A site with its samples.

    Attributes:
        name: the site's name (public).
        index: its place in the config's list of sites (public).
        weight: its public weight in the mean, and with privacy its declared number of units.
    """

    def __init__(self, name: str, index: int, weight: int, samples: Samples, place: Workplace) -> None:
        self.name, self.index, self.weight = name, index, weight
        self._samples, self._place = samples, place
        self._ledger: Ledger | None = None
        self._units: Units | None = None

    def keep_ledger(self, path: Path) -> None:
        """Open the privacy ledger; a private round is impossible without one."""
        p = self._place.config.privacy
        self._ledger = Ledger(path, self.name)
        self._units = Units.of(self._samples, p.unit, p.max_images_per_patient)

    def train(self, params: F32, round: int) -> F32:
        """Local training from the global `params`; returns local - global, f32[d].

        With privacy on the result is already private: clipped, noised and charged to the ledger before the first step.

        Raises:
            SiteError: where training fails or gives values that are not finite; names site, round and layer.
        """
        place = self._place
        from_vector(place.model, params)
        try:
            if place.plan is None:
                at = (self.name, round, place.bench)
                train_plain(place.model, self._samples, place.config, at, place.on_step)
            else:
                self._train_private(place.plan, round)
        except (RuntimeError, MemoryError, OSError, ValueError) as error:
            raise SiteError(f"site {self.name}, round {round}: training failed: {error}") from error
        update = to_vector(place.model) - params
        refused = refusal(update, layers_of(place.model))
        if refused is not None:
            raise SiteError(f"site {self.name}, round {round}: {refused}; lower training.lr")
        return update

    def _train_private(self, plan: PrivacyPlan, round: int) -> None:
        if self._ledger is None or self._units is None:
            raise ValueError("no privacy ledger is open; call keep_ledger first")
        place = self._place
        self._ledger.charge(self._next_charge(plan, round))
        fresh = entropy(place.config.privacy.noise_seed, self.name, round, place.bench.device)
        work = PrivateWork(self._units, plan, fresh, self.weight)
        train_private(place.model, self._samples, place.config, (round, place.bench, work), place.on_step)

    def _next_charge(self, plan: PrivacyPlan, round: int) -> Charge:
        return Charge(self.name, round, plan.noise_multiplier, plan.sample_rate, plan.steps_per_round)

    def can_afford(self, round: int) -> bool:
        """Whether one more round stays within the target epsilon; always without privacy."""
        plan, p = self._place.plan, self._place.config.privacy
        if plan is None or self._ledger is None or p.epsilon is None:
            return True
        return self._ledger.epsilon(p.delta, self._next_charge(plan, round)) <= p.epsilon

    def epsilon(self) -> float | None:
        """What this site has spent in the run's directory, by its ledger; None without privacy."""
        return None if self._ledger is None else self._ledger.epsilon(self._place.config.privacy.delta)

    def evaluate(self, params: F32) -> Histograms:
        """Score histograms of a model on this site's "val" and "test" split (outside the privacy guarantee)."""
        from_vector(self._place.model, params)
        return {
            split: score_histogram(predict(self._place.model, self._samples, split, self._place.bench))
            for split in ("val", "test")
        }

    def resample(self, params: F32) -> NDArray[np.uint16]:
        """Score histograms of bootstrap resamples of this site's test patients (outside the privacy guarantee)."""
        config = self._place.config
        from_vector(self._place.model, params)
        rng = generator(config.seed, self.name, "bootstrap")
        predictions = predict(self._place.model, self._samples, "test", self._place.bench)
        return bootstrap_histograms(predictions, config.evaluation.bootstrap, rng)
