"""A model with MPELU as ONNX: what onnxruntime computes from the exported file is what torch computes."""

import pytest
import torch
from torch import nn

from mpelu.functional import mpelu
from mpelu.nn import MPELU, SPELU

REASON = "export to ONNX needs the packages onnx, onnxscript and onnxruntime"
onnx = pytest.importorskip("onnx", reason=REASON)
onnxruntime = pytest.importorskip("onnxruntime", reason=REASON)
pytest.importorskip("onnxscript", reason=REASON)

pytestmark = [
    pytest.mark.slow,
    # torch's own: the exporter copies a class that warns when it is copied
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning"),
]


class Net(nn.Module):
    """MPELU in all its forms: for each channel and shared, as a module and as a function, kept output, in place."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            MPELU(8),
            nn.Conv2d(8, 4, 3, stride=2),
            MPELU(),
            nn.Conv2d(4, 4, 1),
            MPELU(4, 1.0, save="output"),
            nn.Conv2d(4, 4, 1),
            MPELU(4, 1.0, inplace=True),
            SPELU(4),
            nn.Flatten(),
        )
        self.head = nn.Linear(36, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(mpelu(self.features(x), 0.7, 1.3))


@pytest.fixture(scope="module")
def model():
    generator = torch.Generator().manual_seed(0)
    net = Net().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() == 1:  # alpha, beta and biases
                parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.3)
            else:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter[0].numel() ** 0.5)
    return net


@pytest.fixture(scope="module")
def program(model):
    batch = torch.export.Dim("batch")
    return torch.onnx.export(
        model, (torch.zeros(2, 3, 8, 8),), dynamo=True, dynamic_shapes=({0: batch},), verbose=False
    )


def test_the_file_is_valid_and_has_no_operators_of_ours(program):
    onnx.checker.check_model(program.model_proto, full_check=True)
    assert {node.domain for node in program.model_proto.graph.node} == {""}
    assert not program.model_proto.functions


def test_onnxruntime_computes_the_same_for_any_batch(model, program):
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (only,) = session.get_inputs()
    for batch in (1, 2, 7):
        x = 3 * torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(batch))
        (found,) = session.run(None, {only.name: x.numpy()})
        # ONNX has no expm1: exp - 1 has an absolute error of 2^-24 in each activation, not a relative one
        torch.testing.assert_close(torch.from_numpy(found), model(x).detach(), rtol=1e-5, atol=1e-5)
