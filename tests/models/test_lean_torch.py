"""A rank's PyTorch leaves out what only its compiler needs, until something needs it."""

import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
PROGRAM = """
import sys
from fedhpc.models.lean_torch import REST, import_lean, import_rest

import_lean()
import torch

left_out = {REST, "torch._decomp", "torch._prims", "torch._refs"}
assert not left_out & set(sys.modules), "this version of PyTorch imports them elsewhere as well"
assert torch.rand(3, generator=torch.Generator().manual_seed(1)).tolist() == SEEDED
image, network = torch.ones(2, 3, 8, 8), torch.nn.Conv2d(3, 4, 3)
compiled = torch.compile(network, backend="aot_eager")
assert torch.equal(compiled(image), network(image))
assert left_out < set(sys.modules)
assert torch.rand(3, generator=torch.Generator().manual_seed(1)).tolist() == SEEDED
assert torch.nn.Conv2d(3, 4, 3, device="meta")(image.to("meta")).shape == (2, 4, 6, 6)
import_rest(), import_lean()
assert not any(type(finder).__module__ == "fedhpc.models.lean_torch" for finder in sys.meta_path)
"""


def test_lean_torch_completes_itself() -> None:
    """Generators work before and after; compiling and tensors without memory bring what was left out."""
    import torch

    seeded = torch.rand(3, generator=torch.Generator().manual_seed(1)).tolist()
    command = [sys.executable, "-W", "error", "-c", PROGRAM.replace("SEEDED", repr(seeded))]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
