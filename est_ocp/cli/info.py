"""``est-ocp info``: a model's size, part by part."""

from __future__ import annotations

import argparse
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the subcommand."""
    parser.add_argument("config", help="training config, e.g. configs/s2ef/est_8layer.yml")
    parser.add_argument("overrides", nargs="*", help="Hydra overrides, e.g. model=eqv2_31m")


def run(arguments: argparse.Namespace) -> int:
    """Print the table."""
    from est_ocp.cli.config import instantiate, resolve

    config = resolve(arguments.config, arguments.overrides)
    model = instantiate(config.runner.train_eval_unit.model, "the model")
    print(describe(model))
    return 0


def describe(model: Any) -> str:
    """Return the text that ``est-ocp info`` prints for a model."""
    from est_ocp.cli.parts import count_parts

    parts = count_parts(model)
    width = max(len(name) for name in parts) + 2
    lines = [f"{'part':<{width}}{'parameters':>14}", "-" * (width + 14)]
    lines += [f"{name:<{width}}{count:>14,}" for name, count in parts.items()]
    total = sum(p.numel() for p in model.parameters())
    buffers = sum(b.numel() for b in model.buffers())
    lines += ["-" * (width + 14), f"{'total':<{width}}{total:>14,}"]
    lines += [f"{'constants (buffers)':<{width}}{buffers:>14,}", ""]
    lines += [f"points: {text}" for text in sphere_rules(model)]
    return "\n".join(lines)


def sphere_rules(model: Any) -> list[str]:
    """Return one line for each set of points on the sphere and kind of module that uses it."""
    from est_ocp.sphere import SphereRule, make_rule

    found: dict[str, int] = {}
    for module in model.modules():
        rules = [v for v in vars(module).values() if isinstance(v, SphereRule)]
        name = getattr(module, "rule_name", None)
        if name is not None:
            kind, _, size = name.rpartition("-")
            rules += [make_rule(kind, int(size))] if size.isdigit() else []
        for rule in rules:
            text = (
                f"{rule.num_points} points, exact to degree {rule.degree} ({rule.name}), in "
                f"{type(module).__name__}"
            )
            found[text] = found.get(text, 0) + 1
    return [f"{text}, {count} times" for text, count in found.items()]
