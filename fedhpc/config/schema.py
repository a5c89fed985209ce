"""`RunConfig`: the one frozen, strictly validated value that a run depends on, beside its data.

`fedhpc.config.loader` reads it from YAML. Paths inside a config are relative to the working directory.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, ValidationInfo, model_validator

from fedhpc.aggregation import rules
from fedhpc.aggregation.base import AggregationRule, ServerStep
from fedhpc.aggregation.mean import Mean
from fedhpc.aggregation.server_sgd import ServerSgd
from fedhpc.config import algorithm as algorithms
from fedhpc.config import harmonise as harmonising
from fedhpc.config.contribution import Contribution, Rewards
from fedhpc.config.data import Data
from fedhpc.config.exchange import Exchange
from fedhpc.config.faults import Faults, fault_rules
from fedhpc.config.model import Model, TaskKind
from fedhpc.config.personalisation import Personalisation
from fedhpc.config.privacy import Privacy
from fedhpc.config.rules import cross_field_rules, new_run_rules
from fedhpc.config.schedule import Schedule, efforts_of, schedule_rules
from fedhpc.config.secure_sum_rules import secure_sum_rules
from fedhpc.config.stress import Stress
from fedhpc.config.tracking import Tracker
from fedhpc.config.training import Training
from fedhpc.util.section import Section

if TYPE_CHECKING:
    Rule = AggregationRule
    ServerOptimizer = ServerStep
    Algorithm = algorithms.Algorithm
else:
    Algorithm = rules.one_of(algorithms.ALGORITHMS, "name")
    Rule = rules.one_of(rules.RULES, "rule")
    ServerOptimizer = rules.one_of(rules.SERVER_OPTIMIZERS, "optimizer")

RECORDED = "recorded"
"""The context in which the config of a run directory is validated: see `new_run_rules`."""
YOUNG_KEYS = (("schedule", "round_units"),)
"""Keys that are younger than runs which are still going on: at their default, such a run is of the same config."""


class Federation(Section):
    """Where the aggregator runs: always at rank 0, which is one of the hospitals or a rank of its own."""

    aggregator_rank: Literal["shared", "dedicated"] = Field(
        default="shared",
        description="shared: rank 0 is also the first hospital; dedicated: rank 0 has no shard, and there is one more "
        "rank than sites",
    )


class Evaluation(Section):
    """How the metrics are made, and with privacy on, what of validation and test patients is released for them.

    Each round may release the validation split, for a curve; the test split is released once, at the end. With
    privacy on both are private by themselves: `epsilon` is their own guarantee, beside that of the training patients
    in `privacy`, of whom they are none. It is pure (delta = 0) for each unit of `privacy.unit`.

    `epsilon: null` with privacy on releases exact histograms of scores instead: whoever receives them and knows a
    patient's score learns whether the patient is there, the diagnosis and the stage.
    """

    specificity: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.9, description="the specificity at which sensitivity is measured"
    )
    bootstrap: Annotated[int, Field(ge=100, le=10_000)] = Field(
        default=1000, description="resamples of patients for the 95 % interval of the AUC"
    )
    epsilon: Annotated[float, Field(ge=0.01, le=100, allow_inf_nan=False)] | None = Field(
        default=1.0,
        description="with privacy on: what is spent on validation patients, and on test patients; null: exact",
    )
    every: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="release the validation split after every so many rounds, for a curve; with private evaluation "
        "these share half of epsilon; null: at the end only with private evaluation, else every round",
    )


class Runtime(Section):
    """The machine under a rank. What `threads: auto` stands for is written to the run's config."""

    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="auto: a GPU where there is one, else the CPU"
    )
    threads: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        default="auto",
        description="CPU threads of a rank; auto: the cores that it may use, shared with the other ranks of its node "
        "(bindings and cgroup limits count)",
    )
    precision: Literal["fp32", "tf32", "bf16"] = Field(
        default="fp32",
        description="fp32: float32; tf32: matrix products in TF32 on a GPU; bf16: forward pass and loss in bfloat16",
    )
    compile: bool = Field(
        default=False,
        description="compile the network for training without privacy (torch.compile): a minute or two at the first "
        "round of each start, for faster steps",
    )
    patience_s: Annotated[float, Field(ge=0)] = Field(
        default=60.0,
        description="seconds that a site goes on with its round after a signal to stop; then it leaves the round",
    )


class RunConfig(Section):
    """All that a run depends on, with the data. Public: it holds no secret and no patient data."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")] = Field(
        description="name of the run, and of its directory in runs/"
    )
    mode: Literal["federated", "local", "centralised"] = Field(
        default="federated",
        description="federated, or a baseline: local (each site by itself) or centralised (all shards pooled on rank "
        "0)",
    )
    seed: int = Field(
        default=0,
        description="seed of the initial parameters, the order of images, and random rounding; never of the noise",
    )
    task: TaskKind = Field(
        default="multiclass",
        description="multiclass: an image is of one class (softmax); multilabel: each class is a finding that an image "
        "has or not (sigmoid), and /labels of a shard is [n, classes] of 0 and 1",
    )
    data: Data = Field(description="the sites and their shards")
    harmonise: harmonising.Steps = Field(
        default=harmonising.DEFAULT,
        description="what each hospital does to each image by itself before the network sees it, in order: a list of "
        "steps, the same at every site that has none of its own (data.sites[].harmonise). It spends no privacy",
    )
    model: Model = Field(default=Model(), description="the network")
    training: Training = Field(default=Training(), description="local training")
    privacy: Privacy = Field(default=Privacy(), description="differential privacy of the training units, or `off`")
    exchange: Exchange = Field(default=Exchange(), description="what a site and the aggregator send each other")
    federation: Federation = Field(default=Federation(), description="where the aggregator runs")
    algorithm: Algorithm = Field(
        default=algorithms.FedAvg(),
        description="what a round is: FedAvg, or what adds to it; local and centralised runs have none",
    )
    aggregation: Rule = Field(default=Mean(), description="how the aggregator makes one update of the sites' updates")
    server: ServerOptimizer = Field(
        default=ServerSgd(), description="how the aggregator steps the global model along the mean update"
    )
    stress: Stress | None = Field(
        default=None, description="a stress test: what is wrong with some sites, on purpose; null: nothing"
    )
    evaluation: Evaluation = Field(default=Evaluation(), description="metrics, and what is released for them")
    contribution: Contribution = Field(
        default=Contribution(), description="what rank 0 keeps to tell who contributed how much"
    )
    rewards: Rewards = Field(default=Rewards(), description="what each hospital gets of the global step")
    personalisation: Personalisation = Field(
        default=Personalisation(), description="what each hospital makes of the final model for itself"
    )
    runtime: Runtime = Field(default=Runtime(), description="the machine under a rank")
    faults: Faults = Field(default=Faults(), description="what happens when a rank ends, hangs or does not come")
    schedule: Schedule = Field(default=Schedule(), description="whether a slow site is waited for, or does less work")
    tracking: tuple[Tracker, ...] = Field(
        default=(),
        description="also write the metrics of rounds.jsonl, at rank 0, as TensorBoard's event files (tensorboard/ in "
        "the run directory) or for MLflow (mlruns/ there): tensorboard, mlflow, or both; needs `pip install "
        "'fedhpc[tracking]'`",
    )

    def replace(self, changes: Mapping[str, Any]) -> "RunConfig":
        """Return a config with some keys changed, checked by the rules that this one was checked by.

        Args:
            changes: values by dotted key, such as {"training.rounds": 5}.

        Raises:
            pydantic.ValidationError: a key or value that is not allowed, or a rule between keys that is broken.

        >>> tree = {"name": "x", "data": {"shards": "{site}.h5", "sites": [{"name": "a"}]}}
        >>> RunConfig.model_validate(tree).replace({"training.lr": 1.0}).training.lr
        1.0
        """
        tree = self.model_dump(mode="json")
        for key, value in changes.items():
            *sections, last = key.split(".")
            place = tree
            for section in sections:
                if not isinstance(place.get(section), dict):
                    place[section] = {}
                place = place[section]
            place[last] = value
        return self._checked_alike(tree)

    @property
    def site_names(self) -> tuple[str, ...]:
        """The hospitals in rank order."""
        return tuple(site.name for site in self.data.sites)

    def chain_of(self, site: str) -> harmonising.Chain:
        """Return the steps that a site harmonises its images by: its own, or those of all; of no site of the run these.

        >>> sites = [{"name": "a"}, {"name": "b", "harmonise": [{"step": "clip"}]}]
        >>> config = RunConfig.model_validate({"name": "x", "data": {"shards": "{site}.h5", "sites": sites}})
        >>> [config.chain_of(site)[0].step for site in ("a", "b", "c")]
        ['zscore', 'clip', 'zscore']
        """
        own = {one.name: one.harmonise for one in self.data.sites}
        return own.get(site) or self.harmonise

    def without(self, absent: Collection[str]) -> "RunConfig":
        """Return the config of the other sites: what those that take part train by.

        Raises:
            pydantic.ValidationError: a rule that fewer sites break, as of privacy.trust=sites.

        >>> tree = {"name": "x", "data": {"shards": "{site}.h5", "sites": [{"name": "a"}, {"name": "b"}]}}
        >>> RunConfig.model_validate(tree).without(["a"]).site_names
        ('b',)
        """
        if not absent:
            return self
        tree = self.model_dump(mode="json")
        tree["data"]["sites"] = [site for site in tree["data"]["sites"] if site["name"] not in absent]
        if tree["schedule"]["policy"] == "plan":
            # By all that are declared: the plan does not change with those that are there.
            tree["schedule"]["efforts"] = {n: e for n, e in efforts_of(self).items() if n not in absent}
        if self.stress is not None:
            left = [name for name in self.stress.sites if name not in absent]
            tree["stress"] = {**tree["stress"], "sites": left} if left else None
        tree["faults"] |= {"absent": [], "min_sites": None, "on_death": "requeue"}
        return self._checked_alike(tree)

    def _checked_alike(self, tree: dict[str, Any]) -> "RunConfig":
        """Return the config of a tree; what earlier versions have let pass in this one may stay."""
        younger = any(broken for broken, _ in new_run_rules(self))
        return RunConfig.model_validate(tree, context=RECORDED if younger else None)

    def effort(self, site: str) -> float:
        """Return the share of its images that a site trains on in a round (`schedule`)."""
        return efforts_of(self)[site]

    @property
    def private(self) -> bool:
        """Whether DP-SGD is on."""
        return self.privacy.epsilon is not None

    @property
    def private_evaluation(self) -> bool:
        """Whether what is released of validation and test patients is differentially private."""
        return self.private and self.evaluation.epsilon is not None

    def validates(self, round: int) -> bool:
        """Return whether the validation split is released after this round, counted from 1."""
        every = self.evaluation.every or (0 if self.private_evaluation else 1)
        last = self.private_evaluation and round >= self.training.rounds
        return bool(every) and round % every == 0 and not last

    @property
    def honest_sites(self) -> int:
        """With privacy.trust=sites: how many sites' noise counts. All other noise is more than was promised."""
        return len(self.data.sites) - (self.privacy.colluding_sites or 0) - self.privacy.tolerated_dropouts

    @model_validator(mode="after")
    def _rules(self, info: ValidationInfo) -> "RunConfig":
        rules = [
            *cross_field_rules(self),
            *([] if info.context == RECORDED else new_run_rules(self)),
            *fault_rules(self),
            *schedule_rules(self),
            *(secure_sum_rules(self) if self.privacy.trust == "sites" else []),
        ]
        problems = [text for broken, text in rules if broken]
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def identity(self, exclude: Any = None) -> dict[str, Any]:
        """Return the config as plain values that say whether two are the same.

        Args:
            exclude: as in pydantic's `model_dump`; keys of YOUNG_KEYS are left out where they are at their default.
        """
        plain = {**self.model_dump(mode="json", exclude=exclude), "model": self.model.identity()}
        for section, key in YOUNG_KEYS:
            own: Section = getattr(self, section)
            if getattr(own, key) == type(own).model_fields[key].default:
                plain.get(section, {}).pop(key, None)
        return plain

    def digest(self) -> str:
        """SHA-256 of the canonical JSON form, 16 hex digits."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()[:16]
