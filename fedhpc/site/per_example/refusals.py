"""Why a layer cannot be trained with privacy: it mixes images, keeps statistics, or Opacus objects."""

from torch import nn

from fedhpc.models.input_layer import InputLayer
from fedhpc.site.per_example.kernels import handles


def own_trained(module: nn.Module) -> list[nn.Parameter]:
    """Return the trained parameters that are the module's own, not its children's."""
    return [p for p in module.parameters(recurse=False) if p.requires_grad]


def _opacus_refusals(module: nn.Module) -> list[str]:
    if handles(module) or type(module) in (nn.GroupNorm, InputLayer):
        # Opacus objects to none of them, and takes as long to import as PyTorch.
        return []
    from opacus.validators import ModuleValidator

    validate = ModuleValidator.VALIDATORS.get(type(module))
    return [str(problem) for problem in validate(module)] if validate else []


def refusals(module: nn.Module) -> list[str]:
    """Return why a module, by itself, cannot be part of a network that is trained with privacy."""
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or module.running_mean is None):
        return ["batch norm mixes the images of a batch; use group norm"]
    if not own_trained(module):
        return []
    problems = _opacus_refusals(module)
    if any(True for _ in module.buffers()):
        problems.append("it is trained and has buffers, which would carry statistics of images outside the guarantee")
    if not getattr(module, "batch_first", True):
        problems.append("its rows are not images; set batch_first=True")
    return problems
