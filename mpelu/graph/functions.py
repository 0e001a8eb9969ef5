"""What is known of the functions of torch: what kind of step each is, and the names of its arguments."""

import ast
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mpelu.functional import mpelu
from mpelu.graph.calls import Call, name_of, written_through

REQUIRED = object()


@dataclass(frozen=True)
class Rule:
    """A function of torch: its kind, its name without the marks of its spelling, and its arguments in order.

    Kinds are those of nodes, and ``pointwise`` (each entry from the entries at its place), ``identity`` (the same
    entries), ``filled`` (every entry the same number) and ``random`` (drawn, not computed).
    """

    kind: str
    op: str
    arguments: tuple[tuple[str, Any], ...] = ()
    """Name and default; REQUIRED where there is none. Empty where they are not known."""


NAMESPACES = (F, torch, Tensor, torch.special, torch.linalg, torch._C._nn)

FUNCTIONS: dict[str, dict[str, str]] = {  # kind: names: arguments
    "weight": {
        "conv1d conv2d conv3d": "input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1",
        "conv_transpose1d conv_transpose2d conv_transpose3d": """input, weight, bias=None, stride=1, padding=0,
            output_padding=0, groups=1, dilation=1""",
        "linear": "input, weight, bias=None",
        "bilinear": "input1, input2, weight, bias=None",
        "matmul mm bmm mv dot inner __matmul__ __rmatmul__": "input, other",
        "tensordot": "input, other, dims=2",
        "addmm addbmm baddbmm addmv": "bias, input, other",
        "einsum": "equation",
    },
    "norm": {
        "batch_norm": """input, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1,
            eps=1e-05""",
        "instance_norm": """input, running_mean=None, running_var=None, weight=None, bias=None, use_input_stats=True,
            momentum=0.1, eps=1e-05""",
        "layer_norm": "input, normalized_shape, weight=None, bias=None, eps=1e-05",
        "rms_norm": "input, normalized_shape, weight=None, eps=None",
        "group_norm": "input, num_groups, weight=None, bias=None, eps=1e-05",
        "local_response_norm": "input, size, alpha=0.0001, beta=0.75, k=1.0",
        "normalize": "input, p=2.0, dim=1, eps=1e-12",
    },
    "concat": {
        "cat concat concatenate stack": "tensors, dim=0",
        "hstack vstack dstack column_stack row_stack": "tensors",
    },
    "pad": {"pad constant_pad_nd": "input, pad, mode='constant', value=None"},
    "pool": {
        """max_pool1d max_pool2d max_pool3d max_pool1d_with_indices max_pool2d_with_indices
            max_pool3d_with_indices""": "input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False",
        "avg_pool1d avg_pool2d avg_pool3d": """input, kernel_size, stride=None, padding=0, ceil_mode=False,
            count_include_pad=True, divisor_override=None""",
        """adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d
            adaptive_max_pool3d adaptive_max_pool1d_with_indices adaptive_max_pool2d_with_indices
            adaptive_max_pool3d_with_indices""": "input, output_size",
        "fractional_max_pool2d fractional_max_pool3d": "input, kernel_size",
        "lp_pool1d lp_pool2d lp_pool3d": "input, norm_type, kernel_size, stride=None, ceil_mode=False",
        "mean sum amax amin max min prod nanmean nansum logsumexp median": "input, dim=None, keepdim=False",
        "var std": "input, dim=None, unbiased=True, keepdim=False",
        "norm vector_norm": "input, ord=2, dim=None, keepdim=False",
    },
    "dropout": {
        "dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout feature_dropout": """input, p=0.5,
            training=True""",
    },
    "shape": {
        """view reshape flatten unflatten permute transpose t movedim moveaxis swapaxes swapdims squeeze unsqueeze
            expand expand_as broadcast_to broadcast_tensors repeat repeat_interleave tile view_as reshape_as ravel
            chunk split split_with_sizes tensor_split unsafe_chunk hsplit vsplit dsplit unbind narrow select
            __getitem__ index_select gather take take_along_dim roll flip fliplr flipud rot90 diagonal unfold
            pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle adjoint T mT H mH atleast_1d
            atleast_2d atleast_3d _pack_padded_sequence _pad_packed_sequence""": "",
    },
    "resize": {
        "interpolate upsample upsample_nearest upsample_bilinear": """input, size=None, scale_factor=None,
            mode='nearest', align_corners=None""",
        "grid_sample": "input, grid, mode='bilinear', padding_mode='zeros', align_corners=None",
    },
    "softmax": {
        "softmax log_softmax softmin": "input, dim=None",
        "gumbel_softmax": "input, tau=1, hard=False",
    },
    "attention": {
        "scaled_dot_product_attention": """query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False,
            scale=None""",
        "multi_head_attention_forward": """query, key, value, embed_dim_to_check, num_heads, in_proj_weight,
            in_proj_bias, bias_k, bias_v, add_zero_attn, dropout_p, out_proj_weight, out_proj_bias, training=True,
            key_padding_mask=None, need_weights=True, attn_mask=None, use_separate_proj_weight=False,
            q_proj_weight=None, k_proj_weight=None, v_proj_weight=None, static_k=None, static_v=None,
            average_attn_weights=True, is_causal=False""",
        "_native_multi_head_attention": """query, key, value, embed_dim, num_heads, in_proj_weight, in_proj_bias,
            out_proj_weight, out_proj_bias, mask=None, need_weights=True, average_attn_weights=True, mask_type=None""",
        "_transformer_encoder_layer_fwd": """query, embed_dim, num_heads, in_proj_weight, in_proj_bias,
            out_proj_weight, out_proj_bias, use_gelu, norm_first, eps, norm_weight_1, norm_bias_1, norm_weight_2,
            norm_bias_2, linear1_weight, linear1_bias, linear2_weight, linear2_bias, mask=None, mask_type=None""",
    },
    "embedding": {
        "embedding": "input, weight, padding_idx=None",
        "embedding_bag": "input, weight, offsets=None",
    },
    "recurrent": {
        "lstm gru rnn_tanh rnn_relu": "",
        "lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell": "input, hx, weight_ih, weight_hh, bias_ih=None, bias_hh=None",
    },
    "product": {"glu": "input, dim=-1"},
    "pointwise": {
        "rrelu": "input, lower=0.125, upper=0.3333333333333333, training=False",
        """abs sign sgn square sqrt rsqrt exp exp2 expm1 log log2 log10 log1p sin cos tan asin acos atan sinh cosh
            tanh asinh acosh atanh sigmoid expit logit erf erfc erfinv ndtr log_ndtr lgamma digamma reciprocal floor
            ceil round trunc frac clamp clamp_min clamp_max relu relu6 elu selu celu gelu silu mish hardswish
            hardsigmoid hardtanh hardshrink softshrink tanhshrink softsign softplus logsigmoid log_sigmoid leaky_relu
            prelu threshold nan_to_num sinc i0 deg2rad rad2deg isnan isinf isfinite signbit neg add sub rsub
            mul div rdiv floor_divide remainder fmod pow rpow float_power maximum minimum fmax fmin atan2 hypot xlogy
            xlog1py eq ne gt ge lt le logical_not logical_and logical_or logical_xor bitwise_not bitwise_and
            bitwise_or bitwise_xor where masked_fill lerp addcmul addcdiv heaviside copysign ldexp logaddexp
            logaddexp2 bool int long byte""": "",
    },
    "identity": {
        """contiguous clone detach to float double half bfloat16 type type_as cpu cuda alias requires_grad positive
            data as_tensor asarray""": "",
    },
    "filled": {
        """zeros ones full zeros_like ones_like full_like new_zeros new_ones new_full zero fill empty empty_like
            new_empty empty_strided new_empty_strided""": "",
    },
    "random": {
        """rand randn randint randperm rand_like randn_like randint_like normal bernoulli uniform exponential random
            poisson multinomial cauchy log_normal geometric""": "",
    },
}

SAME = {
    "absolute": "abs", "negative": "neg", "clip": "clamp", "subtract": "sub", "multiply": "mul", "divide": "div",
    "true_divide": "div", "greater": "gt", "greater_equal": "ge", "less": "lt", "less_equal": "le", "not_equal": "ne",
    "__radd__": "add", "__rmul__": "mul", "__rsub__": "rsub", "__rdiv__": "rdiv", "__rtruediv__": "rdiv",
    "__rpow__": "rpow", "__floordiv__": "floor_divide", "__mod__": "remainder", "__invert__": "bitwise_not",
    "__and__": "bitwise_and", "__or__": "bitwise_or", "__xor__": "bitwise_xor", "_threshold": "threshold",
    "arccos": "acos", "arcsin": "asin", "arctan": "atan", "arctanh": "atanh", "arcsinh": "asinh", "arccosh": "acosh",
    "fix": "trunc",
}  # fmt: skip
"""Other spellings. A ``_`` at the end (in place) and the marks of operators need none."""

OTHER_ARGUMENTS = {  # functions of torch that have the name of one of torch.nn.functional
    torch.batch_norm: "input, weight, bias, running_mean, running_var, training, momentum, eps",
    torch.instance_norm: "input, weight, bias, running_mean, running_var, use_input_stats, momentum, eps",
    torch.embedding: "weight, input, padding_idx=-1",
}
RECURRENT = ("has_biases", "num_layers", "dropout", "training", "bidirectional", "batch_first")
SPELLINGS = {"axis": "dim", "train": "training", "self": "input", "mat1": "input", "mat2": "other", "p": "ord"}
"""Other names of arguments."""

PER_CHANNEL = ("prelu", "mpelu")
"""Pointwise functions whose parameters of shape (C,) belong to dim 1; broadcasting would take the last one."""


def _arguments(text: str) -> tuple[tuple[str, Any], ...]:
    parts = [part.strip().partition("=") for part in text.split(",") if part.strip()]
    return tuple((name, ast.literal_eval(default) if equals else REQUIRED) for name, equals, default in parts)


def _spellings(name: str) -> list[str]:
    bare = name.strip("_")
    others = [other for other, same in SAME.items() if same == name]
    return [name, f"{name}_", f"__{bare}__", f"__i{bare}__", *others, *(f"{other}_" for other in others)]


def _tables() -> tuple[dict[Any, Rule], dict[str, Rule]]:
    by_function: dict[Any, Rule] = {}
    by_name: dict[str, Rule] = {}
    for kind, groups in FUNCTIONS.items():
        for names, arguments in groups.items():
            for name in names.split():
                rule = Rule(kind, name.strip("_"), _arguments(arguments))
                for spelling in _spellings(name):
                    by_name.setdefault(spelling, rule)
                    by_function.update(
                        (function, rule) for function in _called(spelling) if function not in by_function
                    )
    for function, arguments in OTHER_ARGUMENTS.items():
        by_function[function] = replace(by_function[function], arguments=_arguments(arguments))
    by_function[mpelu] = Rule("pointwise", "mpelu")
    by_function[written_through] = Rule("shape", "view")
    by_function[Tensor.__setitem__] = Rule("concat", "setitem")
    by_function[Tensor.copy_] = Rule("identity", "copy")
    return by_function, by_name


def _called(name: str) -> Iterator[Any]:
    """Yield the functions and properties of a name in torch."""
    for namespace in NAMESPACES:
        function: Any = getattr(namespace, name, None)
        if callable(function):
            yield function
        elif namespace is Tensor and function is not None:
            yield function.__get__


_BY_FUNCTION, _BY_NAME = _tables()


def rule_of(function: Callable[..., Any]) -> Rule:
    """Return what is known of a function; kind ``opaque`` where that is nothing."""
    rule = _BY_FUNCTION.get(function)
    name = name_of(function).partition(".")[0]
    if rule is None and getattr(function, "__module__", "") == "torch._ops.aten":
        rule = _BY_NAME.get(name)
    return rule or Rule("opaque", name.strip("_"))


def bound(call: Call, rule: Rule) -> dict[str, Any]:
    """Return the arguments of a call by name, with defaults; those whose names are not known are ``arguments``."""
    names = [name for name, _ in rule.arguments]
    if rule.kind == "recurrent" and not names:  # what is packed comes with its batch sizes
        packed = len(call.args) > 3 and isinstance(call.args[3], list | tuple)
        names = ["input", *["batch_sizes"] * packed, "hx", "params", *RECURRENT]
    found = {name: default for name, default in rule.arguments if default is not REQUIRED}
    found.update(zip(names, call.args, strict=False))
    if len(call.args) > len(names):
        found["arguments"] = call.args[len(names) :]
    found.update({key if key in names else SPELLINGS.get(key, key): item for key, item in call.kwargs.items()})
    return found


def numbers(item: Any, length: int) -> Any:
    """Return a number or a sequence of numbers as a tuple of a length; anything else as it is."""
    if isinstance(item, int | float) and not isinstance(item, bool):
        return (item,) * length
    if isinstance(item, Sequence) and not isinstance(item, str):
        return tuple(item) * (length if len(item) == 1 else 1)
    return item
