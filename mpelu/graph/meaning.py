"""What a single call does that is a node by itself: its kind, what it reads, its parameters and its options."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mpelu.graph.calls import Call, Value, leaves
from mpelu.graph.facts import Facts
from mpelu.graph.functions import Rule, bound, numbers

Roles = dict[str, tuple[str, ...]]

JOINS = {"add": "sum", "sub": "sum", "rsub": "sum", "mul": "product", "div": "product", "rdiv": "product"}
"""What pointwise functions of several values are; the others are opaque."""
MATRICES = ("matmul", "rmatmul", "mm", "bmm", "mv", "dot", "inner", "tensordot", "einsum")
MATRICES_AND_BIAS = ("addmm", "addbmm", "baddbmm", "addmv")
INDEXED = ("getitem", "gather", "take", "take_along_dim", "index_select")
"""Functions that choose entries by other tensors: which ones may depend on the values."""
CHOOSING = ("shape", "recurrent", "attention")
"""Kinds whose integers and masks only choose among entries: they are not read, even if they depend on the inputs."""
PER_DIM = ("kernel_size", "stride", "padding", "dilation", "output_padding", "output_size")
"""Options that are one number for each spatial dim."""
NO_OPTIONS = ("out", "inplace", "generator", "device", "input")
ABSENT = ("weight", "bias", "mask", "running_mean", "running_var", "_k", "_v", "offsets", "hx")
"""Ends of the names of arguments that say nothing when they are None."""


@dataclass(frozen=True)
class Meaning:
    """See :class:`mpelu.graph.Node`; ``reads`` are the values behind its inputs."""

    kind: str
    reads: list[Value]
    parameters: Roles = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)


def meaning(facts: Facts, call: Call) -> Meaning:
    """Return what a call does that is no function, entry by entry, of one value."""
    rule = facts.rules[call.index]
    arguments = bound(call, rule)
    if rule.kind in ("pointwise", "identity"):
        return _join(facts, call, rule, arguments)
    if rule.kind == "weight":
        return _weight(facts, call, rule, arguments)
    if rule.kind == "concat":
        return Meaning("concat", facts.read(call), options=_options(arguments))
    if rule.op in INDEXED and any(facts.is_data(value) for value in call.tensors[1:]):
        return _lookup(facts, call, rule)
    signals = facts.signals(call, arguments)
    first = facts.resolved(call.tensors[0])
    reads = [
        value
        for value in facts.read(call)
        if value in signals
        or (facts.is_data(value) and (value.floating or value is first or rule.kind not in CHOOSING))
    ]
    options = _options(arguments)
    if rule.kind == "pool":
        options |= {"mode": _mode(rule.op)} | _per_dim(options, rule.op)
    if rule.kind == "norm":
        options["affine"] = isinstance(arguments.get("weight"), Value)
    return Meaning(rule.kind, reads, roles(facts, call, arguments, reads), options)


def roles(facts: Facts, call: Call, arguments: Mapping[str, Any], reads: list[Value]) -> Roles:
    """Return the names of the parameters behind the arguments of a call that are no signals.

    The role is the argument; in attention and recurrence, where one argument may be many parameters, it is the name
    that the module has for the parameter.
    """
    found: Roles = {}
    by_module = facts.rules[call.index].kind in ("attention", "recurrent")
    for argument, item in arguments.items():
        for value in leaves(item, Value):
            value = facts.resolved(value)
            names = () if facts.is_data(value) or value in reads else facts.names(value)
            if names:
                role = names[0].rpartition(".")[2] if argument == "arguments" else argument
                role = (by_module and local(names[0], call.frame.path)) or role
                found[role] = (*found.get(role, ()), *names)
    return found


def local(name: str, path: str) -> str:
    """Return a name as the module of a path knows it; "" where it lies elsewhere."""
    return name.removeprefix(f"{path}.") if not path or name.startswith(f"{path}.") else ""


def _join(facts: Facts, call: Call, rule: Rule, arguments: dict[str, Any]) -> Meaning:
    """A pointwise function of several values, or of one and a constant that has no one value for each channel."""
    kind, reads = JOINS.get(rule.op, "opaque"), facts.read(call)
    data = [value for value in reads if facts.is_data(value)]
    if kind == "sum":
        return Meaning(kind, reads, options={"coefficients": _coefficients(rule.op, arguments)})
    if kind == "opaque":
        return Meaning(kind, data, roles(facts, call, arguments, data), _options(arguments))
    drop = _drop(facts, [value for value in reads if value not in data]) if rule.op == "mul" else {}
    return Meaning("dropout", data, options=drop) if drop and len(data) == 1 else Meaning(kind, reads)


def _coefficients(op: str, arguments: Mapping[str, Any]) -> tuple[float, float]:
    alpha = arguments.get("alpha", 1)
    return {"add": (1, alpha), "sub": (1, -alpha), "rsub": (-alpha, 1)}[op]


def _drop(facts: Facts, masks: list[Value]) -> dict[str, Any]:
    """Return the options of a dropout that is written as a product with a random mask; none where it is no mask.

    A mask comes from ``bernoulli(keep)``, ``floor(keep + rand)``, ``rand < keep`` or ``rand > drop``.
    """
    steps = [item for value in masks for item in facts.origins(value) if isinstance(item, Call)]
    ops = {facts.rules[step.index].op: step for step in steps}
    scaled = not {"div", "mul"}.isdisjoint(ops)
    if "bernoulli" in ops:
        kept = _number(ops["bernoulli"])
    elif {"rand", "rand_like", "uniform"}.isdisjoint(ops):
        return {}
    elif {"lt", "le"} & ops.keys():
        kept = _number(ops["lt" if "lt" in ops else "le"])
    elif {"gt", "ge"} & ops.keys():
        dropped = _number(ops["gt" if "gt" in ops else "ge"])
        kept = None if dropped is None else 1 - dropped
    elif {"floor", "add"} <= ops.keys():
        kept = _number(ops["add"])
    else:
        return {}
    return {"p": None if kept is None else 1 - kept, "training": True, "scaled": scaled}


def _number(call: Call) -> float | None:
    found = [item for item in (*call.args, *call.kwargs.values()) if isinstance(item, float)]
    return found[0] if found else None


def _lookup(facts: Facts, call: Call, rule: Rule) -> Meaning:
    """Entries chosen by a value: rows of a parameter, or entries of another value."""
    data = [value for value in facts.read(call) if facts.is_data(value)]
    if facts.is_data(call.tensors[0]):
        return Meaning("opaque", data)
    names = facts.names(call.tensors[0])
    kind = "embedding" if names and rule.op in ("getitem", "index_select") else "opaque"
    return Meaning(kind, data, {"weight": names} if names else {})


def _weight(facts: Facts, call: Call, rule: Rule, arguments: dict[str, Any]) -> Meaning:
    matrices = rule.op in MATRICES + MATRICES_AND_BIAS
    bias = arguments.get("bias")
    factors = [facts.resolved(value) for value in call.tensors if value is not bias]
    candidates = factors if matrices else [facts.resolved(arguments["weight"])]
    weights = [value for value in candidates if not facts.is_data(value)]
    reads = [value for value in factors if value not in weights]
    options = _options(arguments) | _per_dim(arguments, rule.op)
    options.pop("arguments", None)
    if rule.op == "einsum":
        options["equation"] = next(item for item in (*call.args, *call.kwargs.values()) if isinstance(item, str))
    if isinstance(bias, Value) and facts.is_data(bias):  # a product and a sum in one
        data = [value for value in facts.read(call) if facts.is_data(value)]
        return Meaning("opaque", data, roles(facts, call, arguments, data), options)
    if not weights:
        return Meaning("product", reads, roles(facts, call, arguments, reads), options)
    origins = [item for value in weights for item in facts.origins(value)]
    steps = [facts.rules[item.index].kind for item in origins if isinstance(item, Call)]
    options["weight_shape"] = weights[0].shape
    options["computed"] = any(kind not in ("shape", "identity") for kind in steps)
    options["fixed"] = not any(isinstance(item, Value) and item.origin == "parameter" for item in origins)
    if matrices:
        options["side"] = "left" if (factors[0] in weights) != (rule.op == "rmatmul") else "right"
    names = tuple(dict.fromkeys(name for value in weights for name in facts.names(value)))
    parameters = {"weight": names, "bias": facts.names(bias) if isinstance(bias, Value) else ()}
    return Meaning("weight", reads, {role: found for role, found in parameters.items() if found}, options)


def _options(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that are no tensors."""
    return {
        name: item
        for name, item in arguments.items()
        if name not in NO_OPTIONS
        and not name.startswith("_")
        and not leaves(item, Value)
        and not (item is None and name.endswith(ABSENT))
    }


def _per_dim(arguments: Mapping[str, Any], op: str) -> dict[str, Any]:
    """Return the options of a convolution or pooling that are one number for each dim, as tuples."""
    dims = re.search(r"[123](?=d)", op)
    if dims is None:
        return {}
    found = {name: numbers(arguments[name], int(dims[0])) for name in PER_DIM if name in arguments}
    if found.get("stride", ()) is None:
        found["stride"] = found["kernel_size"]
    return found


def _mode(op: str) -> str:
    if "avg" in op or "mean" in op:
        return "avg"
    if "max" in op:
        return "max"
    return "lp" if op.startswith("lp_") else op
