"""The section `algorithm`: which federated algorithm a run follows, with its parameters.

Only names, bounds and descriptions are here; what each does is in `fedhpc.algorithms`, in a file of its name.
"""

from typing import Annotated, Literal

from pydantic import Field

from fedhpc.util.section import Section


class Algorithm(Section):
    """An algorithm by its `name`; a subclass narrows it to a literal and adds its parameters."""

    name: str
    local_layers: Literal["none", "norm", "input"] = Field(
        default="none",
        description="norm: each site trains its own scale and shift of every normalisation layer, and does not send "
        "them; input: its own gain, gamma and low-pass of model.input_layer; model.pt then holds their initial values",
    )


class FedAvg(Algorithm):
    """Federated averaging (McMahan et al. 2017)."""

    name: Literal["fedavg"] = Field(default="fedavg", description="local steps, then the mean of the sites' updates")


class FedProx(Algorithm):
    """FedAvg with a proximal term in each site's loss (Li et al. 2020, "Federated Optimization in Heterogeneous
    Networks", Algorithm 2): mu / 2 times the squared distance from the global model.
    """

    name: Literal["fedprox"] = Field(default="fedprox", description="local steps are pulled back to the global model")
    mu: Annotated[float, Field(ge=0, le=1000)] = Field(
        default=0.01, description="weight of the proximal term; 0 is FedAvg; the paper tries 0.001 to 1"
    )


class Scaffold(Algorithm):
    """Control variates against drift (Karimireddy et al. 2020, "SCAFFOLD", Algorithm 1, option II). A site and the
    aggregator send a second vector, coded like the update: twice FedAvg's bytes.
    """

    name: Literal["scaffold"] = Field(default="scaffold", description="local steps are corrected by control variates")


class FedNova(Algorithm):
    """Normalised averaging (Wang et al. 2020, "Tackling the Objective Inconsistency Problem", equation 6): for sites
    that make different numbers of steps in a round. Not with privacy on.
    """

    name: Literal["fednova"] = Field(
        default="fednova", description="updates are divided by the site's number of local steps"
    )


class FedDyn(Algorithm):
    """Dynamic regularisation (Acar et al. 2021, "Federated Learning Based on Dynamic Regularization", Algorithm 1)."""

    name: Literal["feddyn"] = Field(
        default="feddyn", description="each site's loss has a linear and a proximal term that follow its updates"
    )
    alpha: Annotated[float, Field(ge=0, le=1000)] = Field(
        default=0.1, description="weight of the regulariser; 0 is FedAvg; the paper tries 0.001 to 0.1"
    )


ALGORITHMS: tuple[type[Algorithm], ...] = (FedAvg, FedProx, Scaffold, FedNova, FedDyn)
"""All that a config can choose; the first is the default."""
