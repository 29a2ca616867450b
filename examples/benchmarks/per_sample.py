"""What learning for each sample adds to the rule that it starts from, on photographs.

    learnprop data photos
    python examples/benchmarks/per_sample.py --model efficientnet_lite:0
    python examples/benchmarks/per_sample.py --model efficientnet_lite:0 --rules efficientnet_lite0/gates --steps 4

Scenes and questions are those of ``learnprop evaluate``. Maps before and after are finished alike, with the sign that
they are learned with; differences are paired, their errors those over scenes of two questions each.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from on_photographs import explained, subject_of
from torch import Tensor

from captum_learnprop import LearnedPropagation
from captum_learnprop.benchmark.comparison import standard_error
from captum_learnprop.evaluation import average_precision, class_auc, pointing_game
from captum_learnprop.maps import postprocess
from captum_learnprop.scenes.scenes import Questions
from captum_learnprop.training.defaults import training_defaults
from zennit_rules import RuleSet


def scores(maps: Tensor, questions: Questions) -> dict[str, Tensor]:
    """Returns each score of maps ``(B, *spatial)``, ``(B,)``."""
    return {
        "average precision": average_precision(maps, questions.masks),
        "class AUC": class_auc(maps, questions.masks, questions.other_masks),
        "pointing": pointing_game(maps, questions.masks).double(),
    }


def main() -> None:
    """Prints the scores of the start and of what is learned from it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="efficientnet_lite:0")
    parser.add_argument("--composite", default="learned_gradient")
    parser.add_argument("--rules", help="a rule set to refine: its path, or the name of one that ships")
    parser.add_argument("--steps", type=int, help="learning steps, the default of attribute() where none are given")
    parser.add_argument("--split", default="validation", choices=("validation", "test"))
    parser.add_argument("--questions", type=int, default=48)
    parser.add_argument("--smoothing", type=float, default=0.025)
    given = parser.parse_args()
    subject = subject_of(given.model, Path("out"), tuning_questions=48)
    questions = subject.questions("photos", given.split)[: given.questions]
    rules = None if given.rules is None else RuleSet.load(given.rules, subject.net)
    composite = given.composite if rules is None else rules.composite_name
    method = LearnedPropagation(subject.net, composite, rules)
    sign = training_defaults(composite).sign if rules is None else rules.training["sign"]
    found = {}
    for name, steps in (("start", 0), ("learned", given.steps)):
        began = time.perf_counter()
        attribution = explained(
            lambda images, targets, n=steps: method.attribute(subject.inputs(images), targets, n_steps=n), questions
        )
        seconds = (time.perf_counter() - began) / len(questions.targets)
        found[name] = scores(postprocess(attribution, sign, given.smoothing), questions)
        print(f"{name}: {seconds:.1f} s a question")
    for score, before in found["start"].items():
        after = found["learned"][score]
        error = standard_error(after - before, questions.scenes)
        print(f"{score}: {before.mean():.3f} -> {after.mean():.3f}, {(after - before).mean():+.3f} ± {error:.3f}")


if __name__ == "__main__":
    main()
