"""HyperCloning: every unit copied n times, so that the wider model computes what the small one does."""

from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from growbench.method import (
    Maps,
    Method,
    ModelConfig,
    Phase,
    Phases,
    Select,
    Task,
    UsageError,
    Weight,
    apart,
    deepen,
    map_of,
    stack_and_top,
    tiling,
    widen,
)


class HyperCloning(Method):
    """Repeat the small model's units n times: the hidden state x becomes [x, ..., x].

    Formula: form = "symmetric": W' = tile(W, n x n) / n; "diagonal": W' has W in its diagonal blocks and zeros elsewhere. Biases,
    embeddings and norms are repeated. A matrix with only one side that grows is repeated there, and divided by n if that is its
    input. noisy: the columns of the copies 1 and 2 of an input get +noise and -noise, those of 3 and 4 other noise, and so on;
    each copy of an output has noise of its own. Heads are copied whole. Depth: whole copies of the stack, then the remaining
    layers from its top; the paper does not grow depth.
    Paper: Samragh et al. 2024, section 3, and the authors' code (apple/ml-hypercloning).
    Function preserving: in width, with or without noise, in all architectures. Stacking does not preserve the function. Widths
    that are no multiples of the source's are refused, as in the paper.
    Claim: OPT-1.3B, Pythia-1.4B and OLMo-2.9B reach the final mean accuracy of scratch 2.2 to 4 times faster (54.5 to 75 %
    saved), the source free.
    Defaults: symmetric, which the paper ranks first. With noise, which it finds as good: without noise or dropout, copies have
    equal gradients and stay equal. The authors' code leaves noise out unless asked. The noise is 10 dB below the weights, as in
    the paper. The code scales the noise of each block to exactly this power; here it is the expected power. Where the decoder is
    tied to the embeddings, the code divides the decoder's output by n; here the norm in front of it is divided.
    Costs beyond training: copying only. The optimizer's state is new, and the learning rate follows the run's schedule from its
    start.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2409.12903"
    miniature: ClassVar[dict[str, Any]] = {"target.width": 32}
    form: Literal["symmetric", "diagonal"] = "symmetric"
    noisy: bool = True
    snr: float = 10.0  # of the weights to the noise, in dB

    def phases(self, task: Task) -> Phases:
        small, large = task.source_config, task.target_config
        refuse_broken_ratios(small, large)
        weights, maps = task.read(task.source), tiling(small, large)
        wide = widen(weights, maps)
        if self.form == "diagonal":
            wide = apart(wide, maps)
        if self.noisy:
            wide = {
                name: replace(weight, value=self.noised(weight, weights[name], maps, task.rng)) for name, weight in wide.items()
            }
        yield Phase(model=task.model_from(deepen(wide, stack_and_top(small.layers, large.layers))))

    def noised(self, grown: Weight, old: Weight, maps: Maps, rng: torch.Generator) -> Tensor:
        """The grown value with noise that cancels between the copies of an input."""
        copies = map_of(maps, grown, grown.value.dim() - 1)
        if not grown.consumes or grown.role == "norm" or not isinstance(copies, Select):
            return grown.value
        number = copies.copy_number()
        pairs = (int(number.max()) + 1) // 2
        if not pairs:
            return grown.value
        drawn = torch.randn(*grown.value.shape[:-1], pairs, old.value.shape[-1], generator=rng)
        signs = torch.where(number < 2 * pairs, 1 - 2 * (number % 2), 0)  # the last copy of an odd number has no partner
        noise = drawn[..., (number // 2).clamp(max=pairs - 1), copies.index] * signs
        power = old.value.square().mean((-2, -1), keepdim=True) * 10 ** (-self.snr / 10)
        return grown.value + noise.to(power) * power.sqrt() / (1 if self.form == "diagonal" else int(number.max()) + 1)


def refuse_broken_ratios(small: ModelConfig, large: ModelConfig) -> None:
    """Raise UsageError unless every width of the target is a multiple of the source's."""
    for key in ("width", "heads", "key_value_heads", "ffn"):
        old, new = getattr(small, key), getattr(large, key)
        if new % old:
            raise UsageError(
                f"hypercloning copies units n times: target's {key} = {new} must be a multiple of the source's {old}"
            )
