"""One hospital: it owns its shard and its ledger, and gives out updates and what its metrics need, nothing else."""

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import numpy as np

from fedhpc.compression.top_k import refusal
from fedhpc.compression.update import LARGEST_ENTRY
from fedhpc.errors import Interrupted, SiteError
from fedhpc.models.vector import from_vector, layers_of, to_vector
from fedhpc.privacy.evaluation_plan import plan_evaluation
from fedhpc.privacy.ledger import SiteAccount
from fedhpc.privacy.noise import source
from fedhpc.privacy.plan import PrivacyPlan
from fedhpc.site.answers import Answers
from fedhpc.site.budget import Budget
from fedhpc.site.context import SiteContext
from fedhpc.site.data.samples import Samples
from fedhpc.site.evaluation import Evaluator
from fedhpc.site.failures import Failures
from fedhpc.site.training.dp_sgd import LARGEST_PARAMETER, Units, entropy
from fedhpc.site.training.feature_mean import Features, noisy_sum, shared_sum, whitened_sum
from fedhpc.site.training.local_sgd import (
    LocalRound,
    PrivateWork,
    gradient_weight,
    local_steps,
    train_plain,
    train_private,
)
from fedhpc.site.training.pace import slowed
from fedhpc.site.training.regularizers import NOTHING, Regularizer, what_to_lower
from fedhpc.site.training.secure_contribution import IntegerGrid, contribution
from fedhpc.util.arrays import F32, F64, I64
from fedhpc.util.log import LogFile


class Hospital:
    """A site with its samples.

    Attributes:
        name: the site's name (public).
        index: its place in the config's list of sites (public).
        weight: its public weight in the mean, and with privacy its declared number of units.
        budget: what it spends of its patients' privacy.
        evaluator: measures models on its validation and test splits.
    """

    def __init__(self, name: str, index: int, weight: int, samples: Samples, place: SiteContext) -> None:
        self.name, self.index, self.weight = name, index, weight
        self._samples, self._place = samples, place
        self.budget = Budget(name, place.config, place.plan)
        self._units: Units | None = None
        self._failures = Failures(name)
        self.evaluator = Evaluator(name, samples, place, self._failures)

    @property
    def plan(self) -> PrivacyPlan | None:
        """The noise of this site (public); None without privacy."""
        return self._place.plan

    def keep_log(self, log: LogFile) -> None:
        """Write what concerns this site's data, when something fails, to its own log (private)."""
        self._failures.log = log

    def failing(self, what: str) -> AbstractContextManager[None]:
        """See `Failures.failing`."""
        return self._failures.failing(what)

    def inside(self, what: str, work: Callable[[Samples, SiteContext, Callable[[F32], F32]], None]) -> None:
        """Let `work` see the samples; nothing of what it makes comes back from here.

        Args:
            what: the work and its failure, for the message, as "personalisation failed".
            work: takes the samples (private), what the hospitals of this rank share, and what puts this site's own
                values of layers that stay at home, which are private, into f32[d].

        Raises:
            SiteError: it failed.
        """
        with self.failing(what):
            work(self._samples, self._place, self.evaluator.at_home)

    def keep_ledger(self, path: Path, run: str, accounts: Sequence[SiteAccount] = ()) -> None:
        """Open the privacy ledger of a run, and check it against the site ledgers; no private round without.

        Args:
            path: of the run's ledger.
            run: the run's name.
            accounts: on the site ledgers, of the shards that it trains on; none where nothing leaves the hospital.

        Raises:
            PrivacyError: where they are not as they must be; see `fedhpc.privacy.ledger`.
        """
        p = self._place.config.privacy
        ledger = self.budget.open(path, run, accounts)
        self._units = Units.of(self._samples, p.unit, p.max_images_per_patient)
        evaluation = plan_evaluation(self._place.config)
        if evaluation is not None:
            self.evaluator.keep_answers(Answers(path.parent, ledger, evaluation))

    def train(self, params: F32, round: int, regularizer: Regularizer = NOTHING) -> F32:
        """Local training from the global `params`; returns local - global, f32[d].

        With privacy on `regularizer` must be a function of what is public or was released before. The result is already
        private: clipped, noised and charged to the ledger before the first step.

        Raises:
            SiteError: where training fails or gives values that are not finite; names site, round and layer.
        """
        return self._prepared(params, self._place, self._local(round, regularizer))()

    def begin(
        self,
        params: F32,
        round: int,
        regularizer: Regularizer = NOTHING,
        is_given_up: Callable[[], bool] = lambda: False,
    ) -> Callable[[], F32]:
        """Charge the round, and return what trains it: `train` in two parts, the second of which may be in any thread.

        It has a network of its own, so that this one can measure other models meanwhile.

        Args:
            params: the global parameters f32[d].
            round: from 0 on.
            regularizer: see `train`.
            is_given_up: whether to leave the training, by Interrupted, after the step that is under way.

        Raises:
            SiteError: as `train`; so does the function that is returned.
        """
        place = self._place

        def on_step(done: int, steps: int) -> None:
            if is_given_up():
                raise Interrupted(f"round {round + 1}: the update under way was given up")
            place.on_step(done, steps)

        own = replace(place, model=copy.deepcopy(place.model), on_step=on_step)
        return self._prepared(params, own, self._local(round, regularizer, own))

    def _prepared(self, params: F32, place: SiteContext, local: LocalRound) -> Callable[[], F32]:
        """Check and charge a round; what is returned trains it on the network of `place`, and gives f32[d]."""
        round = local.round
        self._check_bound(params, round)
        what = f"round {round + 1}: training failed"
        with self.failing(what):
            work = None if place.plan is None else self._private_work(round)
            if place.plan is not None:
                self.budget.charge_round(round)

        def trained() -> F32:
            from_vector(place.model, params)
            with self.failing(what):
                train_plain(local) if work is None else train_private(local, work)
            update = to_vector(place.model) - params
            refused = refusal(update, layers_of(place.model), LARGEST_ENTRY)
            if refused is not None:
                place_of_it = f"site {self.name}, round {round + 1}"
                raise SiteError(
                    f"{place_of_it}: {refused}; {what_to_lower(local.config.training.lr, local.regularizer)}",
                    code="site.diverged",
                )
            return update

        return trained

    def _check_bound(self, params: F32, round: int) -> None:
        """Refuse global parameters, which are public, for which the bound on one unit's influence is not known."""
        if self._place.plan is not None and not (np.abs(params) <= LARGEST_PARAMETER).all():
            raise SiteError(
                f"site {self.name}, round {round + 1}: a parameter of the global model is larger than "
                f"{LARGEST_PARAMETER:g} or not finite, where clipping is not proven to bound one unit; nothing was "
                "released. Lower training.lr, or ask who runs the aggregator",
                code="site.diverged",
            )

    def gradient_weight(self, round: int) -> float:
        """See `fedhpc.site.training.local_sgd.gradient_weight`; with privacy on the number of steps is public."""
        training, plan = self._place.config.training, self._place.plan
        images = len(self._samples.indices("train"))
        steps = plan.steps_per_round if plan else local_steps(images, training, self._place.effort)
        return gradient_weight(training, round, steps)

    def _local(self, round: int, regularizer: Regularizer = NOTHING, place: SiteContext | None = None) -> LocalRound:
        place = place or self._place
        return LocalRound(
            model=place.model,
            samples=self._samples,
            config=place.config,
            site=self.name,
            round=round,
            device=place.device,
            on_step=slowed(place.on_step, place.slowdown),
            regularizer=regularizer,
            effort=place.effort,
        )

    def _private_work(self, round: int) -> PrivateWork:
        if self._units is None:
            raise ValueError("no privacy ledger is open; call keep_ledger first")
        fresh = entropy(self._place.config.privacy.noise_seed, self.name, round)
        return PrivateWork(self._units, self.budget.plan, fresh, self.weight)

    def enter(self, round: int) -> None:
        """Charge a round of a secure sum; it is paid for from here on, whether this site stays to its end or not.

        Raises:
            SiteError: where the ledger cannot be written: without it this site takes no part.
        """
        with self.failing(f"round {round + 1}: the ledger cannot be charged"):
            self.budget.charge_round(round)

    def contribute(self, params: F32, round: int, grid: IntegerGrid) -> I64:
        """This site's vector for the secure sum of a round that it has entered, int64[d]: private until it is masked.

        Raises:
            SiteError: where training fails; names the site and the round.
        """
        place = self._place
        self._check_bound(params, round)
        from_vector(place.model, params)
        work = self._private_work(round)
        noise = source(place.config.privacy.noise_seed, self.name, round, "skellam")
        with self.failing(f"round {round + 1}: training failed"):
            # Within, since no other rank has this problem.
            grid.check_noise(work.plan.noise_multiplier, place.config.honest_sites)
            return contribution(self._local(round), work, grid, noise)

    def feature_sum(self, grid: IntegerGrid) -> F64:
        """Return the sum of the whitened features of all training units, f64[d], with all of the noise: charged first.

        Without privacy it is exact.
        """
        place, noise = self._place, 0.0
        if place.plan is not None:
            noise = self.budget.charge_feature_mean()
        stream = source(place.config.privacy.noise_seed, self.name, 0, "feature mean")
        with self.failing("the mean of the features failed"):
            return noisy_sum(whitened_sum(self._features(), grid, self.weight), grid, noise, stream)

    def feature_share(self, grid: IntegerGrid) -> I64:
        """The same as integers, int64[d], with this site's share of the noise: private until it is masked."""
        charged = self.budget.charge_feature_mean()
        grid.check_noise(charged, self._place.config.honest_sites)
        stream = source(self._place.config.privacy.noise_seed, self.name, 0, "feature mean")
        with self.failing("the mean of the features failed"):
            return shared_sum(whitened_sum(self._features(), grid, self.weight), grid, stream)

    def _features(self) -> Features:
        place, p = self._place, self._place.config.privacy
        units = self._units or Units.of(self._samples, p.unit, p.max_images_per_patient)
        return Features(place.model, self._samples, units, place.device, p.max_physical_batch)

    def can_afford(self, round: int) -> bool:
        """Whether one more round stays within the target epsilon and the lifetime cap; always without privacy.

        Raises:
            SiteError: where a ledger cannot be read. No other rank has this problem, as all have an InputError.
        """
        with self.failing(f"round {round + 1}: the ledger cannot be read"):
            return self.budget.affords(round)
