"""Lightning: param_groups and keep_beta_positive in configure_optimizers; everything else is as always."""

import lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import mpelu


class Classifier(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(256, 32), mpelu.MPELU(32), nn.Linear(32, 10))
        mpelu.initialize(self.net, torch.zeros(1, 1, 16, 16))

    def training_step(self, batch: list[Tensor]) -> Tensor:
        images, labels = batch
        return nn.functional.cross_entropy(self.net(images), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = torch.optim.SGD(mpelu.param_groups(self.net, lr=0.02, weight_decay=1e-4), lr=0.02)
        mpelu.keep_beta_positive(optimizer, self.net)
        return optimizer


batches = DataLoader(TensorDataset(torch.randn(64, 1, 16, 16), torch.arange(64) % 10), batch_size=16)
model = Classifier()
start = model.net[2].alpha.detach().clone()
trainer = lightning.Trainer(
    max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
)
trainer.fit(model, batches)
print("alpha moved by", (model.net[2].alpha - start).abs().max().item())
assert not torch.equal(model.net[2].alpha, start)
