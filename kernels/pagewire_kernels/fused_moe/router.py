"""How a mixture of experts chooses the experts of a token and weighs what they yield."""

from dataclasses import dataclass
from typing import Literal

Scoring = Literal["softmax", "sigmoid", "sparsemixer"]


@dataclass(frozen=True, slots=True)
class RouterSpec:
    """A router: it scores all experts, chooses top_k of them, and weighs each by its score.

    Raises:
        ValueError: more groups or experts are to be chosen than there are, or sparsemixer is asked for groups.
    """

    top_k: int
    """Experts that each token goes through."""
    scoring: Scoring = "softmax"
    """softmax: over all experts; with renormalise it is the softmax over the chosen ones' logits. sigmoid: of each
    expert's logit. sparsemixer: each choice has the softmax over the experts that are left and nearly as good
    (arXiv:2409.12136, as used at inference)."""
    renormalise: bool = False
    """The chosen experts' weights are scaled to sum to 1."""
    scale: float = 1.0
    """Multiplies the weights."""
    min_total: float = 1e-20
    """Least sum that renormalise divides by."""
    num_groups: int = 1
    """Groups of num_experts / num_groups neighbouring experts each; 1: no groups."""
    top_groups: int = 1
    """Groups whose experts may be chosen."""
    group_best: Literal[1, 2] = 2
    """A group is as good as the sum of so many of its best experts."""
    weighs_inputs: bool = False
    """An expert's input is multiplied by its weight, in place of its output."""
    tolerance: float = 0.0
    """sparsemixer: an expert is nearly as good if its logit is below the best one by at most this share of the larger
    of its own magnitude and the best one."""

    def __post_init__(self) -> None:
        if not 1 <= self.top_groups <= self.num_groups:
            raise ValueError(f"{self.top_groups} of {self.num_groups} groups cannot be chosen")
        if self.scoring == "sparsemixer" and (self.num_groups > 1 or self.renormalise):
            raise ValueError("sparsemixer takes no groups and does not renormalise")

    def check(self, num_experts: int) -> None:
        """Raises ValueError if a token cannot choose so many of num_experts experts."""
        group_size = num_experts // self.num_groups
        if num_experts % self.num_groups or (self.num_groups > 1 and group_size < self.group_best):
            raise ValueError(f"{num_experts} experts do not make {self.num_groups} groups")
        if not 1 <= self.top_k <= group_size * self.top_groups:
            raise ValueError(f"{self.top_k} experts cannot be chosen of {group_size * self.top_groups}")
