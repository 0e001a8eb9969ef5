"""For all tests: one thread, and examples that do not change from run to run."""

import torch
from hypothesis import settings

settings.register_profile("mpelu", derandomize=True, database=None, deadline=None, max_examples=50)
settings.load_profile("mpelu")
torch.set_num_threads(1)  # the tensors are small: more threads only wait for each other
