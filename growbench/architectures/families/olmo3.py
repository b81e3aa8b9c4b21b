"""OLMo 3: OLMo 2 with sliding windows in three of four layers."""

from __future__ import annotations

from transformers import Olmo3Config, Olmo3ForCausalLM
from transformers.models.olmo3.modeling_olmo3 import Olmo3RMSNorm

from growbench.architectures import Architecture, decoder
from growbench.architectures.decoder import NAMES, in_one_kernel
from growbench.architectures.families.olmo2 import table
from growbench.architectures.library import Transformers
from growbench.config.schema import ModelConfig


class Olmo3(Olmo3ForCausalLM):
    """transformers' OLMo 3 that maps tokens (B, T) to the logits of the labelled positions."""

    def __init__(self, config: Olmo3Config) -> None:
        super().__init__(config)
        in_one_kernel(self, Olmo3RMSNorm)

    forward = decoder.forward


LIBRARY = Transformers(Olmo3ForCausalLM, NAMES, "rms_norm_eps", rotary=True, per_layer=("layer_types",), even_heads=True)


def make(config: ModelConfig) -> Olmo3:
    return decoder.built(Olmo3, LIBRARY, config)  # type: ignore[no-any-return]


ARCHITECTURE = Architecture(
    "olmo3", "causal", "bytes", "pre", make, table, ("kv_heads", "tied"), LIBRARY, centred=False, kin="llama"
)
