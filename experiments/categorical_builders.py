"""Transitions that depend on the training text, on the number of categories or on a file, as parts of recipes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..discrete import Absorbing, Dense, NoiseSchedule, Transition, cosine, mutual_information, nearest
from ..shared.data import TextDataset
from ..shared.errors import UsageError
from ..shared.serialization import serializable
from .parts import Context, Part, built, part

EXACT, AT_ONCE = 1024, 1000
"""The largest vocabulary whose embeddings are not projected; the number of windows that are counted at a time."""


@serializable("experiments.context_neighbors")
def context_neighbors(text: TextDataset, count: int = 5) -> Tensor:
    """Returns the nearest neighbors of each token, int64 `(K, count)`: tokens that occur in similar contexts.

    Args:
        text: the training text.
        count: number of neighbors of each token.
    """
    return nearest(context_embeddings(text), count)


@serializable("experiments.with_mutual_information")
def with_mutual_information(
    text: TextDataset, categories: int, transition: Part[Transition], steps: int = 1000
) -> Transition:
    """Returns a transition on the mutual-information schedule of the token frequencies (Austin et al. 2021, app. A).

    Args:
        text: the training text.
        categories: the number of categories.
        transition: the transition without its schedule, such as `Uniform()` or `NearestNeighbor(neighbors=...)`.
        steps: the number of steps of the diffusion, T.
    """
    context = Context(text=text, categories=categories)
    fixed = transition.changed(**{name: built(value, context) for name, value in transition.arguments})

    def on(schedule: NoiseSchedule) -> Transition:
        return fixed.changed(schedule=schedule).built(context)

    return on(mutual_information(on, text.frequencies(), steps))


@serializable("experiments.absorbing_gray")
def absorbing_gray(categories: int, schedule: NoiseSchedule | Tensor) -> Absorbing:
    """Returns absorption in the middle quantization level, as D3PM on images (Austin et al. 2021, section 4).

    Args:
        categories: the number of quantization levels.
        schedule: the noise schedule, such as `reciprocal(steps=1000)`.
    """
    return Absorbing(categories, schedule, mask=categories // 2)


@serializable("experiments.from_file")
def from_file(path: str, categories: int, schedule: Tensor | None = None) -> Dense:
    """Returns the chain of transition matrices in a .npy file.

    A table `(T, K, K)` has the matrices of all steps. One matrix R, `(K, K)`, gives
    `Q_n = (1 - beta_n) I + beta_n R`. The data have the first categories; a state more is a mask.

    Args:
        path: the .npy file of real numbers; rows sum to one.
        categories: the number of categories of the data.
        schedule: the betas of one matrix, such as `cosine(steps=100)`; None for `cosine(steps=1000)`.

    Raises:
        UsageError: for a missing file, another shape, and betas beside a table.
    """
    try:
        with Path(path).expanduser().open("rb") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
    except FileNotFoundError:
        raise UsageError(f"there is no file {path}: give a .npy file with transition matrices") from None
    except (ValueError, TypeError, EOFError) as error:
        raise UsageError(f"{path} cannot be read as .npy ({error}): save it with numpy.save") from error
    if not np.issubdtype(array.dtype, np.floating) and not np.issubdtype(array.dtype, np.integer):
        raise UsageError(f"{path} has numbers of type {array.dtype}: give real numbers")
    matrices = torch.from_numpy(array).double()
    if matrices.ndim not in (2, 3) or matrices.shape[-1] != matrices.shape[-2] or matrices.shape[-1] < categories:
        raise UsageError(
            f"{path} has shape {tuple(matrices.shape)}: give one matrix (K, K) or a table (T, K, K), with K at least "
            f"{categories}, the categories of the data"
        )
    if matrices.ndim == 3 and schedule is not None:
        raise UsageError(f"{path} is a table of {len(matrices)} steps, which takes no schedule: leave it out")
    if schedule is not None and not isinstance(schedule, torch.Tensor):
        raise UsageError(
            f"schedule={schedule}: a matrix of a file takes the betas of a table of steps, such as cosine(steps=100)"
        )
    refuse_bad_rows(matrices, path)
    if matrices.ndim == 2:
        betas = cosine(1000) if schedule is None else torch.as_tensor(schedule, dtype=torch.float64)
        identity = torch.eye(len(matrices), dtype=torch.float64)
        matrices = torch.lerp(identity, matrices, betas[:, None, None])
    return Dense(matrices, categories=categories)


def refuse_bad_rows(matrices: Tensor, path: str) -> None:
    """Raises for a matrix of a file with a row that is not a distribution.

    Raises:
        UsageError: with the row, counted from 0, and its sum.
    """
    sums, smallest = matrices.sum(-1), matrices.amin(-1)
    bad = (smallest < 0) | ~((sums - 1).abs() < 1e-9)
    if bool(bad.any()):
        at = tuple(torch.nonzero(bad)[0].tolist())
        row = f"row {at[-1]}" + (f" of matrix {at[0]}" if len(at) > 1 else "")
        raise UsageError(
            f"{path}: {row} has the sum {float(sums[at]):.10g} and the smallest entry {float(smallest[at]):.4g}: each "
            "row must be a distribution, of entries from 0 on and of sum 1 (to 1e-9): divide rows by their sums, in "
            "float64; transpose a matrix whose columns are distributions"
        )


def with_absolute_paths(transition: Part[Transition]) -> Part[Transition]:
    """Returns a transition whose files have absolute paths, independent of the folder."""
    if transition.build is from_file:
        return transition.changed(path=str(Path(transition["path"]).expanduser().resolve()))
    inner = {name: with_absolute_paths(v) for name, v in transition.arguments if isinstance(v, Part)}
    return transition.changed(**inner)


def transition_file(path: str) -> Part[Transition]:
    """Returns the transition of a .npy file as a part."""
    return part(from_file, path=path)


def context_embeddings(text: TextDataset, windows: int = 20_000) -> Tensor:
    """Returns embeddings of the tokens, `(K, d)`, made from the tokens that occur before and after each.

    An embedding is the square roots of the two distributions, so that angles between embeddings compare distributions.
    With more than 1024 tokens it is projected at random to 256 numbers, which hardly changes angles. A token that does
    not occur in these windows has a random embedding, and so arbitrary neighbors.
    """
    from scipy.sparse import coo_array, csr_array  # slow to import

    size, count, source = text.vocabulary, min(windows, len(text.windows)), torch.Generator().manual_seed(0)
    pairs = csr_array((size, size))
    for start in range(0, count, AT_ONCE):
        k = text.windows[start : min(start + AT_ONCE, count)].numpy().astype(np.int64)
        place = k[:, :-1].ravel(), k[:, 1:].ravel()
        pairs = pairs + coo_array((np.ones(len(place[0])), place), (size, size)).tocsr()  # adds up what occurs twice
    roots = [pairs, pairs.T.tocsr()]
    for c in roots:
        c.data = np.sqrt(c.data / np.repeat(c.sum(1), np.diff(c.indptr)))
    if size <= EXACT:
        found = torch.from_numpy(np.concatenate([c.toarray() for c in roots], 1))
    else:
        found = torch.from_numpy(
            sum(c @ torch.randn(size, 256, dtype=torch.float64, generator=source).numpy() for c in roots)
        )
    alone = (found == 0).all(1)
    found[alone] = torch.randn(int(alone.sum()), found.shape[1], dtype=torch.float64, generator=source)
    return found
