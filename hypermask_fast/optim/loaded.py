"""Whether the state of an optimizer can be loaded into FactoredAdam."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypermask_fast.errors import CheckpointError, shown

MOMENTS = ("exp_avg", "exp_avg_sq")


def check_state(state_dict: dict[str, Any], param_groups: Sequence[dict[str, Any]]) -> None:
    """Raise CheckpointError where a state is not one of an Adam over these parameters."""
    if not isinstance(state_dict, dict) or not {"state", "param_groups"} <= set(state_dict):
        raise CheckpointError(
            f"the optimizer state is {shown(state_dict)}; give what state_dict() returned, "
            "with 'state' and 'param_groups'"
        )
    groups, states = state_dict["param_groups"], state_dict["state"]
    for group in groups:
        missing = {"betas", "eps"} - set(group)
        if missing or group.get("amsgrad"):
            found = f"without {', '.join(sorted(missing))}" if missing else "with amsgrad=True"
            raise CheckpointError(
                f"the optimizer state has a group {found}; load one of FactoredAdam, or of "
                "torch.optim.Adam or AdamW with amsgrad=False"
            )
    saved, own = ([len(g["params"]) for g in some] for some in (groups, param_groups))
    if saved != own:
        raise CheckpointError(
            f"the optimizer state has groups of {saved} parameters and this optimizer of "
            f"{own}; build it over the same parameters"
        )
    places = (place for group in groups for place in group["params"])
    parameters = (p for group in param_groups for p in group["params"])
    for place, p in zip(places, parameters, strict=True):
        of_one = states.get(place, {})
        shapes = {n: tuple(getattr(of_one[n], "shape", ())) for n in MOMENTS if n in of_one}
        wrong = {name: shape for name, shape in shapes.items() if shape != tuple(p.shape)}
        if wrong or (of_one and len(shapes) < 2):
            raise CheckpointError(
                f"the optimizer state of parameter {place}, of shape {tuple(p.shape)}, has "
                f"moments of shapes {shapes}; load one of the same parameters"
            )
