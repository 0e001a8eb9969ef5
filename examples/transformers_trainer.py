"""The Trainer of transformers: hand it an optimizer with MPELU's groups, as for any optimizer of one's own."""

import tempfile

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

import mpelu


class Classifier(nn.Module):
    """The Trainer wants keywords in, and a dictionary with the loss out."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(256, 32), mpelu.MPELU(32), nn.Linear(32, 10))
        mpelu.initialize(self.net, torch.zeros(1, 1, 16, 16))

    def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.net(pixel_values)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


model = Classifier()
optimizer = torch.optim.AdamW(mpelu.param_groups(model, lr=1e-3, weight_decay=1e-4), lr=1e-3)
mpelu.keep_beta_positive(optimizer, model)
images = [{"pixel_values": torch.randn(1, 16, 16), "labels": index % 10} for index in range(64)]
start = model.net[2].alpha.detach().clone()
with tempfile.TemporaryDirectory() as folder:
    arguments = TrainingArguments(
        folder, max_steps=8, per_device_train_batch_size=8, use_cpu=True, report_to="none", disable_tqdm=True
    )
    Trainer(model, arguments, train_dataset=images, optimizers=(optimizer, None)).train()
print("alpha moved by", (model.net[2].alpha - start).abs().max().item())
assert not torch.equal(model.net[2].alpha, start)
