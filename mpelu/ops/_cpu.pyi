def instruction_sets() -> list[str]: ...
def use(name: str, /) -> None: ...
def forward(
    dtype: int, size: int, channels: int, inner: int, threads: int, alpha: int, beta: int, x: int, y: int, /
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
def backward(
    dtype: int,
    size: int,
    channels: int,
    inner: int,
    threads: int,
    alpha: int,
    beta: int,
    grad: int,
    x: int,
    grad_x: int,
    grad_alpha: int,
    grad_beta: int,
    /,
) -> None: ...
def backward_from_output(
    dtype: int,
    size: int,
    channels: int,
    inner: int,
    threads: int,
    alpha: int,
    beta: int,
    grad: int,
    y: int,
    grad_x: int,
    grad_alpha: int,
    grad_beta: int,
    /,
) -> None: ...
