"""Why maps of positive rules look like their input: closed forms beside simulated layers, as a table and a figure.

python examples/alignment_theory.py --out alignment.png
python examples/alignment_theory.py --inputs 64 --widths 64 256 --trials 8 --out small.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from captum_learnprop.evaluation.alignment_theory import (
    COEFFICIENTS,
    alignment,
    alignment_of_fraction,
    band,
    best_fraction,
    simulated,
    simulated_orthogonal,
)
from captum_learnprop.plot import save_figure, theory_curves

FRACTIONS = (0.5, 0.4, 0.27, 0.2, 0.1, 0.05, 0.02)


def main() -> None:
    """Simulate, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=512, help="of each layer")
    parser.add_argument("--widths", type=int, nargs="+", default=[256, 1024, 2048, 4096], help="units")
    parser.add_argument("--trials", type=int, default=48, help="layers drawn for each point")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("alignment_theory.png"), help="the figure")
    options = parser.parse_args()
    torch.set_num_threads(1)
    d, draws = options.inputs, {"trials": options.trials, "seed": options.seed}
    widths: dict[str, list[tuple[int, float, float, float]]] = {}
    print("coefficients   units  closed form  simulated")
    for name in COEFFICIENTS:
        for m in options.widths:
            mean, half = band(simulated(m, d, name, **draws))
            widths.setdefault(name, []).append((m, alignment(m, d, name), mean, half))
            print(f"{name:12} {m:7d}  {alignment(m, d, name):11.3f}  {mean:.3f} +- {half:.3f}")
    m = options.widths[-1]
    fractions = []
    for p in FRACTIONS:
        mean, half = band(simulated(m, d, fraction=p, **draws))
        fractions.append((p, alignment_of_fraction(p, m, d), mean, half))
        print(f"share {p:6.2f} {m:7d}  {alignment_of_fraction(p, m, d):11.3f}  {mean:.3f} +- {half:.3f}")
    orthogonal: dict[str, list[tuple[int, float, float, float]]] = {}
    for name in COEFFICIENTS:
        for m in (d // 4, d // 2, d):
            measured, closed = simulated_orthogonal(m, d, name, trials=min(options.trials, 16), seed=options.seed)
            mean, half = band(measured)
            orthogonal.setdefault(name, []).append((m, float(closed.mean()), mean, half))
            print(f"{name:12} {m:7d}  {float(closed.mean()):11.3f}  {mean:.3f} +- {half:.3f}  (orthogonal rows)")
    print(f"the share of units that aligns best: {best_fraction():.3f}")
    print(f"figure in {save_figure(theory_curves(widths, fractions, orthogonal), options.out)}")


if __name__ == "__main__":
    main()
