"""Activations of plans among the calls of a program."""

from __future__ import annotations

from ..plan import Activation
from ..plan.activations import ACTIVATIONS
from .calls import Call
from .program import Program
from .vocabulary import arguments, unusual

_NUMBER = {name: i for i, name in enumerate(ACTIVATIONS)}
# The arguments that activations take beside their input, and what they are where nobody gives them.
_PARAMETERS = {
    "leaky_relu": ("negative_slope", 0.01),
    "elu": ("alpha", 1.0),
    "softplus": ("beta", 1.0),
    "hardtanh": ("max_val", 1.0),
}


def unwrapped(program: Program, slot: int) -> tuple[Activation, int | None, int]:
    """The activation that makes a slot, its slope if that is a slot, and what it is applied to.

    Where none does, the identity and the slot itself.
    """
    call = program.producer.get(slot)
    if call is not None and call.meaning == "prelu":
        of, slope = _prelu(call)
        form = program.stand_ins[slope]
        # which plans take as a number, and so it is read at every run: of a GPU it would have to be waited for
        # The gradient of one that learns is autograd's, in whose products the errors of a sweep of ours are not zero.
        if form.numel() == 1 and form.is_cpu and slope not in program.varying and not learns(program, slope):
            return Activation(_NUMBER["leaky_relu"]), slope, of
    activation = _activation(call)
    return (Activation(), None, slot) if call is None or activation is None else (activation, None, call.inputs[0])


def ends_in_activation(program: Program, slot: int) -> bool:
    """Whether a prediction is an activation of something else than a free state."""
    of = unwrapped(program, slot)[2]
    return of != slot and program.state_of(of) not in program.free


def _activation(call: Call | None) -> Activation | None:
    name = None if call is None else call.meaning
    if call is None or (name not in _NUMBER and name != "relu6") or len(call.inputs) != 1:
        return None
    options = unusual(call.function, call.args, call.kwargs)
    if name == "relu6":
        name, options = "hardtanh", options | {"min_val": 0.0, "max_val": 6.0}
    if name == "gelu" and options.pop("approximate", "none") == "tanh":
        name = "gelu_tanh"
    parameter, default = _PARAMETERS.get(name, ("", 0.0))
    value = float(options.pop(parameter, default))
    if name == "hardtanh":  # there is one parameter: bounds are 0 and a number, or a number and its negative
        low = float(options.pop("min_val", -1.0))
        if low == 0 < value:
            name = "clipped_relu"
        elif not low == -value < 0:
            return None
    return None if options else Activation(_NUMBER[name], value)


def _prelu(call: Call) -> tuple[int, int]:
    """What a PReLU is applied to, and its slope, as slots."""
    given = arguments(call.function, call.args, call.kwargs)
    return (given["input"] if "input" in given else given["self"]).index, given["weight"].index


def of_slopes(program: Program, call: Call | None) -> str:
    """Of what is no activation of chains, why not, where it is a PReLU."""
    if call is None or call.meaning != "prelu":
        return ""
    slope = _prelu(call)[1]
    form = program.stand_ins[slope]
    return (
        f": chains take one slope, on a CPU, that depends on no free state and requires no gradient, and "
        f"{program.in_words(slope)} is {[*form.shape]} on {form.device}"
        + (", and requires one" if learns(program, slope) else "")
    )


def learns(program: Program, slot: int) -> bool:
    """Whether what a slot is computed from requires gradients."""
    leaves = program.leaves
    return any(i < len(leaves) and leaves[i].requires_grad for i in program.ancestors(slot))
