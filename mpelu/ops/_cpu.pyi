from torch import Tensor

def instruction_sets() -> list[str]: ...
def use(name: str, /) -> None: ...
def read_tensors_of(tensor: type[Tensor], parameter: type[Tensor], /) -> None: ...
def reads(x: object, alpha: object, beta: object, /) -> bool: ...
def alike(a: Tensor, b: Tensor, /) -> bool: ...
def forward(x: Tensor, alpha: Tensor, beta: Tensor, y: Tensor, threads: int, /) -> None: ...
def backward(
    x: Tensor,
    alpha: Tensor,
    beta: Tensor,
    grad: Tensor,
    grad_x: Tensor,
    grad_alpha: Tensor,
    grad_beta: Tensor,
    threads: int,
    /,
) -> None: ...
def backward_from_output(
    y: Tensor,
    alpha: Tensor,
    beta: Tensor,
    grad: Tensor,
    grad_x: Tensor,
    grad_alpha: Tensor,
    grad_beta: Tensor,
    threads: int,
    /,
) -> None: ...
def moments(
    dtype: int, size: int, channels: int, inner: int, threads: int, x: int, /
) -> tuple[float, float, float]: ...
def products(dtype: int, sizes: tuple[int, ...], strides: tuple[int, ...], x: int, found: int, /) -> None: ...
def step_aside(
    dtype: int,
    size: int,
    channels: int,
    inner: int,
    share: float,
    least: float,
    x: int,
    steps: int,
    beside: int,
    /,
) -> None: ...
def shares(
    dtype: int, size: int, channels: int, inner: int, little: float, y: int, steps: int, beside: int, /
) -> tuple[float, float]: ...
