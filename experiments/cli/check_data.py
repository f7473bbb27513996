"""The command `unnoise check-data`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, make_dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from ...shared.progress import bar
from ..check_data import check_data, data_named
from ..image_data import Images
from ..recipes import RECIPES, find
from ..text_data import Text
from .outputs import output_path
from .recipe_options import options_of, with_options, with_parts
from .training import is_run, recipe_named

OUT = "The picture of a batch of images, such as data.png; the text is written beside it, with the ending .txt."


@dataclass(frozen=True)
class CheckData:
    """Shows what a model will be trained on, before it is trained.

    Prints what was read and left out, the range and size of a batch as the network sees it, the quantization levels or
    tokens that occur, the label map with counts, and duplicates of the held-out data among the training data. A batch
    of images is drawn after all augmentation. `unnoise check-data photos --data.size 32 32` takes the settings of the
    data as options, `unnoise check-data ddpm-cifar10` those of a recipe.
    """

    data: tyro.conf.Positional[str]
    """Data of any name that --data.name takes, a recipe such as ddpm-digits, or the folder of a run."""


def options_for(name: str, arguments: Sequence[str]) -> tuple[type, list[str]]:
    """Returns the class of the command with the settings of the data as options, and the arguments that are left."""
    if name in RECIPES or ":" in name or is_run(name):
        recipe = recipe_named(name)
    else:
        column = any(word.startswith("--data.image-column") for word in arguments)
        data = Images(name) if column else data_named(name)
        recipe = replace(find("mdlm-shakespeare" if isinstance(data, Text) else "ddpm-digits"), data=data)
    without = tuple(f.name for f in fields(recipe) if f.name != "data")
    recipe, rest = with_parts(recipe, arguments, without)

    def execute(options: Any) -> None:
        picture = output_path(options.out, (".png",))
        print(check_data(with_options(recipe, options, without), picture, bar), end="")
        print(f"written to {picture.with_suffix('.txt')}")

    out = ("out", Annotated[Path, tyro.conf.arg(help=OUT)], field(default=Path("data.png")))
    cls = make_dataclass("CheckData", [out, *options_of(recipe, without)], namespace={"execute": execute})
    cls.__doc__ = f"Shows what a model will be trained on: {name}."
    return cls, rest
