"""A model measured on one site's own splits: predictions stay here, score histograms leave."""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from fedhpc.errors import PrivacyError
from fedhpc.models.device import Device
from fedhpc.models.vector import from_vector
from fedhpc.privacy.noise import source
from fedhpc.records.intervals import Placements, squared_influence
from fedhpc.records.metrics import Predictions, score_histogram
from fedhpc.site.answers import Answers
from fedhpc.site.context import SiteContext
from fedhpc.site.data.samples import Samples
from fedhpc.site.failures import Failures
from fedhpc.site.release import Question, Weights, weighted_counts, with_noise
from fedhpc.util.arrays import F32, I64

BATCH = 64
"""Images a forward pass: with 256 the test at the end took more memory than any step of the training before it."""


@torch.no_grad()
def predict(model: nn.Module, samples: Samples, split: str, device: Device, alone: bool = False) -> Predictions:
    """Return the model's logits on one split (private).

    With `alone` each image goes through the network by itself, so that its logits are a function of the image and of
    nothing else. In a batch they are rounded by the batch's size: one patient more would move the last bits of others,
    and with them all counts at an edge that an aggregator has put there.

    A split may be empty, where all its images are in a public reference: then there are no logits, of as many classes.
    """
    rows = samples.indices(split)
    model.eval()
    # Any image tells how many classes there are. Many networks fail on a batch of none.
    shown, blocks = rows if len(rows) else np.zeros(1, np.int64), []
    for start in range(0, len(shown), BATCH):
        images = samples.inputs(shown[start : start + BATCH]).to(device.device)
        with device.autocast():
            parts = torch.split(images, 1 if alone else BATCH)
            blocks += [model(part).float().cpu().numpy() for part in parts]
    model.train()
    logits = np.concatenate(blocks)[: len(rows)]
    return Predictions(logits, samples.labels[rows], samples.early[rows], samples.patient[rows])


class Evaluator:
    """What may be asked of a site about a model: exact counts in a run whose evaluation is not private, else answers.

    Attributes:
        at_home: puts the site's own values of layers that stay at home, which are private, into f32[d].
    """

    def __init__(self, name: str, samples: Samples, place: SiteContext, failures: Failures) -> None:
        """Of the site `name` with these samples."""
        self._name, self._samples, self._place, self._failures = name, samples, place, failures
        self._answers: Answers | None = None
        self.at_home: Callable[[F32], F32] = lambda params: params

    def keep_answers(self, answers: Answers) -> None:
        """Answer from here on what `answers` allows."""
        self._answers = answers

    def epsilon(self) -> float | None:
        """What validation and test patients have spent in the run's directory; None where that is not counted."""
        return None if self._answers is None else self._answers.spent()

    def exact_counts(self, params: F32, split: str) -> I64:
        """Return the exact score histogram of a model on "val" or "test".

        Raises:
            PrivacyError: in a run whose evaluation is private.
        """
        self._refuse_where_private("histograms")
        return score_histogram(self._predictions(params, split))

    def squared_influence(self, params: F32, placed: Placements) -> float:
        """What this site's test patients add to the variance of the AUC: one number (`fedhpc.records.intervals`).

        Raises:
            PrivacyError: in a run whose evaluation is private.
        """
        self._refuse_where_private("sums over patients")
        return squared_influence(self._predictions(params, "test"), placed)

    def may_answer(self, params: F32, question: Question) -> bool:
        """Return whether the evaluation budget allows the answer to a question about a model.

        Raises:
            SiteError: where the ledger or a kept answer cannot be read.
        """
        with self._failures.failing("evaluation failed"):
            return self._answers is not None and self._answers.affords(question, self.asked(params, question))

    def answer(self, params: F32, question: Question, weights: Weights) -> I64:
        """Return the private answer to a question, int64[tasks, groups, bins]; charged before the noise is drawn.

        With privacy.trust=sites it carries this site's share of the noise only, and must be masked before it leaves.
        """
        if self._answers is None:
            raise ValueError("no privacy ledger is open; call keep_ledger first")
        config = self._place.config
        share = config.honest_sites if config.privacy.trust == "sites" else 1
        asked, counts = self.asked(params, question), np.empty(0, np.int64)
        if not self._answers.keeps(question, asked):
            # Before it is charged: a rank that is killed in these seconds has lost nothing.
            predictions = self._predictions(params, question.split)
            counts = weighted_counts(predictions, question, weights, config.privacy.unit)

        def noised(epsilon: float) -> I64:
            purpose = f"evaluation {question.split}"
            stream = source(config.privacy.noise_seed, self._name, question.stage, purpose)
            return with_noise(counts, epsilon, weights, share, stream)

        return self._answers.answer(question, asked, noised)

    def asked(self, params: F32, question: Question) -> str:
        """Return what a kept answer is the answer to.

        With privacy.trust=sites also for which sites' sum: an answer that is summed once with all sites and once
        without one of them would give away that one's, which carries a share of the noise only.
        """
        asked, config = question.digest(params), self._place.config
        return f"{asked} {','.join(config.site_names)}" if config.privacy.trust == "sites" else asked

    def _refuse_where_private(self, what: str) -> None:
        if self._place.config.private_evaluation:
            raise PrivacyError(
                f"evaluation.epsilon is set: exact {what} must not leave a site", code="privacy.exact-metrics"
            )

    def _predictions(self, params: F32, split: str) -> Predictions:
        with self._failures.failing("evaluation failed"):
            from_vector(self._place.model, self.at_home(params))
            alone = self._place.config.private_evaluation
            return predict(self._place.model, self._samples, split, self._place.device, alone)
