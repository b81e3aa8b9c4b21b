"""What the server of tests/processes.py has done before it forks: slow imports, and what libraries find out once a process."""

import torch._dynamo
import torch.distributed.fsdp
import torch.distributed.tensor.parallel
import transformers.models.bert.modeling_bert
import transformers.models.gpt2.modeling_gpt2  # noqa: F401

import growbench.report
import growbench.runs.benchmark
import growbench.tools.tune  # noqa: F401
from growbench import origins

origins._of_distributions()
