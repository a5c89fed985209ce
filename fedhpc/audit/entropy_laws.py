"""How many bits of the operating system's entropy the noise of a round depends on: measured, as far as it can be.

While a hospital trains, the operating system's source is replaced by one that the audit knows, for this process alone.
The same bits must then give the same noise (so nothing else feeds it), and any one bit of a 256-bit key that differs
must give other noise. A key of 64 bits, a seed that a generator cuts to 32, or one of 8 shows as so many bits.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from fedhpc.audit.canaries import Blank, CanarySamples, network_canaries
from fedhpc.audit.findings import WITH_DP, Law
from fedhpc.audit.mechanism import LEARNING_RATE
from fedhpc.audit.observation import Claim, Work, hospital_at_work, observed_config
from fedhpc.audit.statistics import LAW_RISK, draws_for_collision
from fedhpc.models.vector import to_vector
from fedhpc.privacy.noise import source

KEY_BITS = 256
UNITS = 8
COLLISION_BYTES = 16


@contextmanager
def known_entropy(byte_at: Callable[[int], int]) -> Iterator[None]:
    """Let `os.urandom` give bytes that are a function of their place in what was asked for."""
    real = os.urandom
    os.urandom = lambda n: bytes(byte_at(i) for i in range(n))
    try:
        yield
    finally:
        os.urandom = real


def _one_bit(bit: int | None) -> Callable[[int], int]:
    """Byte i of a pattern, with one bit of it flipped."""

    def byte_at(i: int) -> int:
        flipped = 1 << (bit % 8) if bit is not None and i == bit // 8 else 0
        return ((37 * i + 11) % 256) ^ flipped

    return byte_at


def entropy_law(claim: Claim) -> Law:
    """On how many of the first 256 bits of the operating system's entropy the noise of `Hospital.train` depends."""
    config = observed_config(claim, KEY_BITS + 2, LEARNING_RATE)
    plan = claim.plan
    model = network_canaries(Blank(claim.classes), UNITS, claim.classes, 10.0).module.to(claim.device.device)
    samples = CanarySamples(np.zeros(UNITS, np.bool_) | (np.arange(UNITS) == 0))
    work = Work(claim.config.site_names[0], config, plan, model, samples, UNITS, claim.device)
    start = to_vector(model)
    with hospital_at_work(work, lambda done, total: None) as hospital:

        def noise(bit: int | None) -> bytes:
            with known_entropy(_one_bit(bit)):
                return hospital.train(start, 0)[1:].tobytes()

        base = noise(None)
        reproduced = noise(None) == base
        bits = sum(noise(bit) != base for bit in range(KEY_BITS)) if reproduced else 0
    name = "bits of the system's entropy that change the noise:"
    details = {"same_entropy_same_noise": reproduced}
    return Law("entropy of the noise", WITH_DP, name, bits, bits, bits, KEY_BITS, KEY_BITS, "claim", details)


def collision_law(bits: int) -> Law:
    """Fresh sources of one site and round: none of so many is like another; with `bits` bits of seed two would be."""
    draws = draws_for_collision(bits, LAW_RISK)
    seen = {source(None, "audited", 0, "noise").bytes(COLLISION_BYTES) for _ in range(draws)}
    again = float(draws - len(seen))
    name = f"equal ones of {draws:,} fresh sources:"
    details = {"seed_bits_excluded": bits, "risk_of_missing": LAW_RISK}
    return Law(f"seed of more than {bits} bits", WITH_DP, name, again, again, again, 0.0, 0.0, "claim", details)
