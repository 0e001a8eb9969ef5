def instruction_sets() -> list[str]: ...
def use(name: str, /) -> None: ...
def forward(
    dtype: int, size: int, channels: int, inner: int, threads: int, alpha: int, beta: int, x: int, y: int, /
) -> None: ...
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
