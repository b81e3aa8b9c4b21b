"""What the server of tests/processes.py has done before it forks: slow imports, and what libraries find out once a process."""

import gc
import os
from importlib import import_module

from growbench import origins

MODULES = (
    "growbench.runs.benchmark",
    "growbench.report",
    "growbench.tools.tune",
    "hypothesis",
    "pytest",
    "torch._dynamo",
    "torch.distributed.fsdp",
    "torch.distributed.tensor.parallel",
    "transformers.models.bert.modeling_bert",
    "transformers.models.gpt2.modeling_gpt2",
)
gc.disable()
for module in MODULES:
    import_module(module)
origins._of_distributions()
gc.freeze()
gc.enable()
os.fsync = lambda number: None  # type: ignore[assignment]  # as in tests/conftest.py
