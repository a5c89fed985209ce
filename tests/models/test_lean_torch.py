"""A rank's PyTorch leaves out what only its compiler needs, until something needs it."""

import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
START = """
import sys
from fedhpc.models.lean_torch import REST, import_lean, import_rest

import_lean()
import torch

left_out = {REST, "torch._decomp", "torch._prims", "torch._refs"}
assert not left_out & set(sys.modules), "this version of PyTorch imports them elsewhere as well"
assert torch.rand(3, generator=torch.Generator().manual_seed(1)).tolist() == SEEDED
"""
COMPILE = """
image, network = torch.ones(2, 3, 8, 8), torch.nn.Conv2d(3, 4, 3)
compiled = torch.compile(network, backend="aot_eager")
assert torch.equal(compiled(image), network(image))
assert torch.nn.Conv2d(3, 4, 3, device="meta")(image.to("meta")).shape == (2, 4, 6, 6)
"""
ACCOUNT = """
from fedhpc.privacy.accountant import Charge, bounds_of

alone = bounds_of([Charge(1, 1.0, 0.01, 100)], 1e-5)
assert not {"opacus", *left_out} & set(sys.modules), "an epsilon needs neither"
"""
TRANSFORM = """
x = torch.ones(2, 3)
assert torch.equal(torch.func.vmap(torch.func.grad(lambda row: (row**2).sum()))(x), 2 * x)
assert torch.equal(torch.func.jvp(torch.sin, (x,), (x,))[1], torch.cos(x))
"""
WHOLE_OPACUS = """
import opacus
from opacus.accountants import PRVAccountant
from opacus.optimizers import DPOptimizer

whole = PRVAccountant()
whole.history = [(1.0, 0.01, 100)]
assert abs(whole.get_epsilon(1e-5) / alone.prv - 1) < 0.02 and issubclass(DPOptimizer, torch.optim.Optimizer)
assert opacus.accountants.PRVAccountant is PRVAccountant and opacus.PrivacyEngine
"""
END = """
assert left_out < set(sys.modules)
import torch._decomp
assert sys.modules["torch._decomp"].__spec__.origin.endswith("_decomp/__init__.py")
assert len(torch._decomp.decomposition_table) > 500
assert torch.rand(3, generator=torch.Generator().manual_seed(1)).tolist() == SEEDED
import_rest(), import_lean()
assert not any(type(finder).__module__ == "fedhpc.models.lean_torch" for finder in sys.meta_path)
"""


@pytest.mark.parametrize(
    "use",
    [
        pytest.param(COMPILE, marks=pytest.mark.slow, id="compile"),
        pytest.param(ACCOUNT + TRANSFORM + WHOLE_OPACUS, id="account, transform"),
    ],
)
def test_lean_torch_completes_itself(use: str) -> None:
    """Generators work before and after; what needs the part that was left out brings it, once."""
    import torch

    seeded = torch.rand(3, generator=torch.Generator().manual_seed(1)).tolist()
    program = (START + use + END).replace("SEEDED", repr(seeded))
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
