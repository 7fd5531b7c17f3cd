"""A network's inference and learning as a value: what `run_plan_` does, without the tensors it does it to.

Tensors are referred to by number: `run_plan_` takes two lists, and a number counts those written, then those read.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum
from typing import ClassVar

from .expression import Expression

Operand = int  # a tensor's number
MOST_PAIRS = 32  # that LBFGS keeps in a plan
PROGRESS = 58  # numbers that are known of a sample between the sweeps of a method


class Law(IntEnum):
    """What makes a node's energy of its state z and prediction mu, per sample."""

    NONE = 0
    GAUSSIAN = 1  # 1/2 sum (z - mu)^2 / exp(theta), theta being log-variances [n], [1] or [], or None for 0
    FULL_GAUSSIAN = 2  # 1/2 (z - mu)^T theta (z - mu), theta being a symmetric matrix [n, n]
    LAPLACE = 3  # sum |z - mu| / exp(theta), theta being log-scales, likewise
    BERNOULLI = 4  # sum log(1 + exp(mu)) - z mu; no theta
    POISSON = 5  # sum exp(mu) - z mu; no theta
    STUDENT = 6  # sum (v + 1) / 2 log(1 + (z - mu)^2 / (v exp(2 theta))), theta being log-scales, v the parameter
    HUBER = 7  # sum (z - mu)^2 / 2, and its tangent where |z - mu| is above the parameter; no theta
    CATEGORICAL = 8  # -z . log softmax(mu), z being a distribution, which is clamped
    EXPRESSION = 9  # sum of the expression of a node, of every element's z, mu and theta: likewise, [B, n] or None

    @property
    def is_elementwise(self) -> bool:
        """Whether the energy is a sum over elements."""
        return self not in (Law.NONE, Law.FULL_GAUSSIAN, Law.CATEGORICAL)

    @property
    def has_scale(self) -> bool:
        """Whether theta may be one number per element, or for all."""
        return self in (Law.GAUSSIAN, Law.LAPLACE, Law.STUDENT)

    @property
    def is_of_distance(self) -> bool:
        """Whether the energy is one of z - mu, which is 0 and least at 0: it pulls and pushes alike."""
        return self not in (Law.NONE, Law.BERNOULLI, Law.POISSON, Law.CATEGORICAL, Law.EXPRESSION)

    def moves_by_errors(self, expression: Expression | None) -> bool:
        """Whether the energy, if there is one, is one of z - mu, of which an expression tells by itself."""
        return self is Law.NONE or (self.is_of_distance if expression is None else expression.is_of_distance)

    @property
    def pushes_apart(self) -> bool:
        """Whether what an element pushes with is another than what it pulls with."""
        return self.is_elementwise and not self.is_of_distance

    @property
    def has_parameter(self) -> bool:
        """Whether a number that is greater than 0 belongs to the law."""
        return self in (Law.STUDENT, Law.HUBER)

    @property
    def is_convex(self) -> bool:
        """Whether the energy of a clamped state is convex in its prediction."""
        return self not in (Law.STUDENT, Law.EXPRESSION)


class MatmulPrecision(IntEnum):
    """Of float32 products, as `torch.set_float32_matmul_precision` names them, where a kernel has a choice."""

    HIGHEST = 0
    HIGH = 1
    MEDIUM = 2


class Learning(IntEnum):
    """When weights learn."""

    NEVER = 0
    AT_THE_END = 1  # once, after all E-steps
    AFTER_EACH_STEP = 2  # from the states that the step has made
    WITH_EACH_STEP = 3  # from the same errors that move the states


class RuleKind(IntEnum):
    """What is done with a gradient of the mean energy."""

    GRADIENT = 0  # it is written into a tensor
    SGD = 1  # as in torch.optim.SGD; slots: velocity
    ADAM = 2  # as in torch.optim.Adam and AdamW; slots: step, mean, mean square, greatest mean square
    RMSPROP = 3  # as in torch.optim.RMSprop; slots: step, mean square, velocity, mean

    @property
    def counts_steps(self) -> bool:
        """Whether the first slot is one number, of the steps so far."""
        return self in (RuleKind.ADAM, RuleKind.RMSPROP)


class Learned(IntEnum):
    """What of an edge or a node is learned."""

    WEIGHT = 0
    BIAS = 1
    LOGVAR = 2


@dataclass(frozen=True)
class Activation:
    """An activation by its number in `ACTIVATIONS`, and its parameter."""

    number: int = 0
    parameter: float = 0.0


@dataclass(frozen=True)
class NodeStep:
    """What a step does of a free node beside what the method does.

    Attributes:
        relative_rate: its rate, over the method's.
        shrink: the weight of ``|z - towards|`` in the energy, of which a step takes the proximal step.
        low: the least that an element may be; None leaves it open.
        high: the most.
        known: bool ``[1 or B, n]``, of elements that hold still, whatever the method.
    """

    relative_rate: float = 1.0
    shrink: float = 0.0
    towards: float = 0.0
    low: float | None = None
    high: float | None = None
    known: Operand | None = None


@dataclass(frozen=True)
class Node:
    """A state, and what its energy is made of.

    Attributes:
        state: ``[B, n]``, contiguous.
        free: whether E-steps move it.
        swept: whether it starts at its prediction, by those edges that sweep, whatever it held.
        law: of its energy; NONE where nothing predicts it.
        theta: the law's parameter.
        prior: a constant prediction, ``[1 or B, n]``, or where edges make one what is added to their sum.
        velocity: of a momentum, like the state.
        data: ``[N, n]``, the rows of which an order picks for the state; or of a CATEGORICAL law int64 ``[N]``, the
            classes that one-hot rows stand for.
        weight: of the energy; that of a FULL_GAUSSIAN is a factor of its theta.
        sample_weights: ``[B]``, more factors of the energy.
        kept: what a method that goes on keeps beside the velocity, like the state, of LBFGS more of that; of fixed
            predictions, the first state.
        law_parameter: of laws that have one.
        expression: of an EXPRESSION law.
        factor: of a FULL_GAUSSIAN ``[2, n, n]``, L with ``L L^T`` the inverse of theta and the inverse of L, where a
            stepper measures errors in standard deviations, or bounds what is left by such.
        way: what steps do beside; but for a mask they are those at a rate, without a velocity, and on states.
    """

    state: Operand
    free: bool
    swept: bool = False
    law: Law = Law.NONE
    theta: Operand | None = None
    prior: Operand | None = None
    velocity: Operand | None = None
    data: Operand | None = None
    weight: float = 1.0
    sample_weights: Operand | None = None
    kept: Operand | None = None
    law_parameter: float = 0.0
    way: NodeStep | None = None
    expression: Expression | None = None
    factor: Operand | None = None

    @property
    def moves_by_errors(self) -> bool:
        """Whether the energy, if there is one, is one of z - mu."""
        return self.law.moves_by_errors(self.expression)

    @property
    def takes_theta(self) -> bool:
        """Whether theta may be one number per element."""
        return self.law.has_scale if self.expression is None else self.expression.has_theta


@dataclass(frozen=True)
class Edge:
    """A part of a prediction, which is ``after`` of the sum of the parts that edges to a node make.

    That is ``scale W before(z) + bias_scale b + skip z``, from a node to another or to itself, by their places in the
    plan. All edges to a node have one `after`.

    Attributes:
        weight: W ``[out, in]``, or where it is `transposed` the transpose of W; None where there is no product.
        gram: whether the feedback is computed as ``W^T P (z' - b) - (W^T P W) before(z)``, which takes fewer products
            where a narrow free node predicts a wide clamped one.
        skip: what of the state itself is added, where both nodes are of one width.
        mask: what the weight is multiplied by, element by element, like it.
        first: of the columns of z that are taken, as many as W has, or without it the target; None takes all of them.
            Without a weight, and with this or a `before`, ``scale before(z)`` itself is the part.
        sweeps: whether the target, where it is swept, starts by this part; by one at least.
    """

    source: int
    target: int
    weight: Operand | None
    bias: Operand | None = None
    before: Activation = Activation()
    after: Activation = Activation()
    gram: bool = False
    transposed: bool = False
    scale: float = 1.0
    bias_scale: float = 1.0
    skip: float = 0.0
    mask: Operand | None = None
    first: int | None = None
    sweeps: bool = True

    @property
    def passes(self) -> bool:
        """Whether it passes on what it takes, without a weight."""
        return self.weight is None and (self.before != Activation() or self.first is not None)


class UpdateOrder(IntEnum):
    """Which free nodes descend at a step."""

    TOGETHER = 0
    ALTERNATE = 1  # every other one from the first on, and then those between, by the new states of these
    ONE_BY_ONE = 2  # from the last on, one at every step


@dataclass(frozen=True)
class Descent:
    """The rule of E-steps, as in `torch.optim.SGD`.

    Attributes:
        resume: velocities hold those of steps before.
        settle: free states that differ from the prediction of their edge by no more than rounding begin as that; a
            backend may leave it at the rounding.
        turns: that free nodes take.
        first: how many steps came before, by which the order of updates goes on.
        fixed: predictions and their derivatives stay those of the first states, which nodes keep.
    """

    lr: float
    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False
    resume: bool = False
    settle: bool = False
    update_order: UpdateOrder = UpdateOrder.TOGETHER
    first: int = 0
    fixed: bool = False


@dataclass(frozen=True, kw_only=True)
class Stepper:
    """E-steps that move every sample by what a sweep has found of it; `pyromancy.methods` says what they compute.

    Attributes:
        errors: whether errors of predictions move, and states follow; else the states.
        tol: of a sample's decrease of energy, what may be left of it to be gained when the sample stops; 0 never does.
        outcome: ``[B, 2]``, set to the steps that samples took, and to 1 where they stopped by themselves, else 0.
        resume: whether it goes on from what `progress`, and velocities and what is kept of nodes, hold.
        progress: ``[B, PROGRESS]`` of float64, where it may go on in another call.
    """

    KEEPS: ClassVar[bool] = False  # whether more than the velocity goes on
    MEASURES: ClassVar[bool] = False  # whether it takes errors in standard deviations

    errors: bool = True
    tol: float = 0.0
    outcome: Operand | None = None
    resume: bool = False
    progress: Operand | None = None

    @property
    def measures(self) -> bool:
        """Whether it moves errors in standard deviations."""
        return self.MEASURES and self.errors

    @property
    def vectors(self) -> tuple[int, ...]:
        """What the shape of what is kept begins with, before that of the state."""
        return ()


@dataclass(frozen=True, kw_only=True)
class QuasiNewton(Stepper):
    """`pyromancy.methods.Accelerated` without a rate."""

    KEEPS = MEASURES = True


@dataclass(frozen=True, kw_only=True)
class Nesterov(Stepper):
    """`pyromancy.methods.Accelerated` at a rate, with restarts or a momentum."""

    lr: float
    momentum: float = 0.0
    restarts: bool = False


@dataclass(frozen=True, kw_only=True)
class Momentum(Stepper):
    """`pyromancy.methods.Descent`, as in `torch.optim.SGD`."""

    lr: float
    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False


@dataclass(frozen=True, kw_only=True)
class Heun(Stepper):
    """`pyromancy.methods.Heun`; energies are recorded before the first of a step's two sweeps."""

    KEEPS = True

    lr: float
    adaptive: bool = False
    rtol: float = 0.0
    atol: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Sequential(Stepper):
    """`pyromancy.methods.Sequential` to a tolerance; else it is a `Descent` by turns, which finds what these need."""

    lr: float


@dataclass(frozen=True, kw_only=True)
class Adam(Stepper):
    """`pyromancy.methods.Adam`."""

    KEEPS = True

    lr: float
    first: float = 0.9
    second: float = 0.999
    epsilon: float = 1e-8


@dataclass(frozen=True, kw_only=True)
class Langevin(Stepper):
    """`pyromancy.methods.Langevin`.

    Attributes:
        seed: of the noise, an integer below 2^53; `pyromancy.methods.noise` says what it makes of it.
    """

    lr: float
    temperature: float = 1.0
    seed: float = 0.0


@dataclass(frozen=True, kw_only=True)
class LBFGS(Stepper):
    """`pyromancy.methods.LBFGS`, which keeps the gradient and the pairs, ``[1 + 2 memory, B, n]``.

    Attributes:
        memory: a whole number, up to `MOST_PAIRS`.
    """

    KEEPS = MEASURES = True

    memory: float = 6.0

    @property
    def vectors(self) -> tuple[int, ...]:  # noqa: D102
        return (1 + 2 * int(self.memory),)


@dataclass(frozen=True)
class Rule:
    """How parameters learn.

    `first` and `second` are SGD's momentum and dampening, Adam's betas, or RMSprop's alpha and momentum.

    Attributes:
        decoupled: whether weight decay stands beside the gradient, as in AdamW.
        fresh: whether the first gradient starts SGD's velocity.
    """

    kind: RuleKind = RuleKind.GRADIENT
    lr: float = 0.0
    weight_decay: float = 0.0
    first: float = 0.0
    second: float = 0.0
    epsilon: float = 0.0
    maximize: bool = False
    nesterov: bool = False
    decoupled: bool = False
    fresh: bool = False

    @property
    def slots_needed(self) -> int:
        """The slots that must be there, from the first on."""
        if self.kind is RuleKind.SGD:
            return int(self.first != 0)
        return {RuleKind.ADAM: 3, RuleKind.RMSPROP: 3 if self.second else 2}.get(self.kind, 0)


@dataclass(frozen=True)
class Target:
    """A use of something that is learned. Of several of one tensor, all by one rule, the gradients are added up.

    Attributes:
        owner: an edge, or for log-variances a node.
        rule: by its place in the plan.
        tensor: the parameter itself, or where its gradient is written.
        slots: the rule's state, None for what it does without.
    """

    what: Learned
    owner: int
    rule: int
    tensor: Operand
    slots: tuple[Operand | None, ...] = ()


@dataclass(frozen=True)
class Plan:
    """Everything that one call does: E-steps on nodes joined by edges, and what is learned from them.

    Attributes:
        nodes: in any order, but that errors that move, and states that start at their predictions, need the nodes
            that predict them before them.
        edges: between nodes.
        method: of the E-steps.
        steps: how many.
        energies: ``[steps, nodes, B]``, set to the nodes' energies before each step, without log-determinants.
        order: int64 ``[batches * B]``: the batches are done one after another, their data being these rows.
        learning: when.
        rules: of learning.
        targets: what learns.
        precision: of products.
        diverged: ``[1]``, set to 1 where a free state ends as NaN or infinite; a backend may leave it.
        max_norm: of a node's gradient, for every sample, to which steps at a rate scale it down; 0 is none.
        factors: of their rate, one for every step, or none where that stays.
    """

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    method: Descent | Stepper
    steps: int
    energies: Operand | None = None
    order: Operand | None = None
    learning: Learning = Learning.NEVER
    rules: tuple[Rule, ...] = ()
    targets: tuple[Target, ...] = ()
    precision: MatmulPrecision = MatmulPrecision.HIGHEST
    diverged: Operand | None = None
    max_norm: float = 0.0
    factors: tuple[float, ...] = ()

    @property
    def is_chains(self) -> bool:
        """Whether every edge has all of a weight, and leads to a later node, and no node has two on either side.

        Nor does anything learn from two uses.
        """
        sources, targets = ({getattr(e, of) for e in self.edges} for of in ("source", "target"))
        return (
            len(sources) == len(targets) == len(self.edges)
            and all(e.weight is not None and e.mask is None and e.first is None for e in self.edges)
            and all(e.source < e.target for e in self.edges)
            and len({t.tensor for t in self.targets}) == len(self.targets)
            and all(self.nodes[i].prior is None for i in targets)
        )

    @property
    def descent(self) -> Descent:
        """The method, for backends that know no other.

        Raises:
            NotImplementedError: it is another.
        """
        ways = [n.way for n in self.nodes if n.way is not None]
        beside, method = self.max_norm or self.factors, self.method
        beside = beside or any(replace(way, known=None) != NodeStep() for way in ways)
        if beside or not isinstance(method, Descent) or method.update_order is not UpdateOrder.TOGETHER or method.fixed:
            raise NotImplementedError("E-steps other than plain descent are the compiled CPU kernels' alone in a plan")
        return method
