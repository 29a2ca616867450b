"""What is explained of a model's output: an entry of each row, or a function of whatever the model returns.

`selecting` chooses and checks entries by captum's conventions. A `TargetFunction` is for all else: several labels, a
region of a segmentation, a detection, the similarity to an embedding, a predicted number. `captum_learnprop.explain`
takes one as ``target=``; `Asking` puts one behind a model, as a module that any method can explain with ``target=0``.
"""

from captum_learnprop.targets.asking import Asking
from captum_learnprop.targets.functions import Called, Detection, Labels, Region, Similarity, TargetFunction, Value
from captum_learnprop.targets.naming import label_number
from captum_learnprop.targets.selecting import require_finite, select_target
from zennit_rules._moved import renamed

__all__ = [
    "Asking", "Called", "Detection", "Labels", "Region", "Similarity", "TargetFunction", "Value", "label_number",
    "require_finite", "select_target",
]  # fmt: skip

__getattr__ = renamed(__name__, {"select": "select_target", "finite": "require_finite"})
