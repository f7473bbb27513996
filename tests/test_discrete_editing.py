"""Infilling, and text longer than a window."""

import pytest
import torch
from enumeration import JOINT, Both, Given, JointOracle, frequencies, strata
from torch import Tensor, nn

from unnoise.discrete import (
    Absorbing,
    Ancestral,
    Categorical,
    FirstHitting,
    Infilling,
    LogLinearNoise,
    Uniform,
    Unmasking,
    between,
    carried,
    prefix,
    sliding,
    suffix,
)
from unnoise.shared.editing import Inpainting
from unnoise.shared.errors import UsageError
from unnoise.shared.random import Streams, categorical
from unnoise.shared.sampler import counted


def test_where_the_known_part_lies():
    a, b = torch.tensor([[1, 2], [3, 4]]), torch.tensor([[5], [6]])
    known, mask = between(a, b, 5)
    assert known[:, [0, 1, 4]].tolist() == [[1, 2, 5], [3, 4, 6]]
    assert mask.tolist() == [True, True, False, False, True]
    assert prefix(a, 3)[1].tolist() == [True, True, False]
    known, mask = suffix(a[0], 4)
    assert known.shape == (4,)
    assert (known[2:].tolist(), mask.tolist()) == ([1, 2], [False, False, True, True])


@pytest.mark.parametrize("name", ["ancestral", "unmasking", "hitting"])
@pytest.mark.parametrize("place", [0, 1])
def test_the_rest_follows_the_conditional_distribution(name, place):
    """With the exact denoiser, over strata of the time and of the token: the other position given this one."""
    oracle = JointOracle(JOINT, Absorbing(3, LogLinearNoise(eps=0.01)))
    when, what = (torch.stack([u, u], 1) for u in strata(4, 1000))
    sampler, steps, draws = {
        "ancestral": (Ancestral(oracle, last=categorical), 1, (what,)),
        "unmasking": (Unmasking(oracle, last=categorical), 4, (when, what, what)),
        "hitting": (FirstHitting(oracle), 1, (when, what)),
    }[name]
    for token in range(3):
        infilling = Infilling(sampler, torch.tensor([token, token]), torch.tensor([place == 0, place == 1]))
        x = infilling(torch.full((4000, 2), 3), steps=steps, generator=Given(*draws))
        assert (x[:, place] == token).all()
        row = JOINT[token] if place == 0 else JOINT[:, token]
        ours = torch.bincount(x[:, 1 - place], minlength=3).double() / 4000
        torch.testing.assert_close(ours, row / row.sum(), rtol=0, atol=2e-3)


@pytest.mark.parametrize("last", [0, 1])
def test_both_of_three_follow_their_joint_conditional_distribution(last, generator):
    """One token at a time through Infilling: two free positions have the network's own distribution in either order."""
    denoiser = Categorical(Thirds(), Absorbing(2, LogLinearNoise(eps=0)), head=carried)
    x = Infilling(FirstHitting(denoiser), torch.tensor([0, 0, last]), torch.tensor([False, False, True]))(
        shape=(60_000, 3), steps=3, generator=generator
    )
    assert (x[:, 2] == last).all()
    distribution = Thirds.SHARES[:, :, last] / Thirds.SHARES[:, :, last].sum()
    torch.testing.assert_close(frequencies(x[:, :2], 2), distribution.flatten(), rtol=0, atol=0.01)


class Thirds(nn.Module):
    """The exact posterior of three positions that depend on each other; it does not depend on the time."""

    SHARES = torch.tensor([[[0.25, 0.05], [0.05, 0.15]], [[0.02, 0.18], [0.1, 0.2]]], dtype=torch.float64)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        hot = torch.cat([torch.eye(2), torch.ones(1, 2)]).double()[x]
        each = [torch.einsum("abc,na,nb,nc->n" + out, self.SHARES, hot[:, 0], hot[:, 1], hot[:, 2]) for out in "abc"]
        return torch.stack(each, 1).log()


def test_infilled_from_the_prior_and_by_rows(generator):
    denoiser = Categorical(Both(4, 4), Absorbing(3, LogLinearNoise()), head=carried)
    known, mask = torch.tensor([[0, 9], [9, 2], [1, 1]]), torch.tensor([[1, 0], [0, 1], [1, 1]])
    for make in (Ancestral, Unmasking, FirstHitting):
        with counted(denoiser) as evaluations:
            x = Infilling(make(denoiser), known, mask)(shape=(3, 2), steps=2, generator=generator)
        assert (x[0, 0], x[1, 1], *x[2]) == (0, 2, 1, 1)
        assert int(x.max()) < 3
        assert evaluations.calls <= 2


def test_known_symbols_outlast_a_network_that_doubts_them(generator):
    """Without `carried` the last step would draw every position anew."""
    doubtful = Categorical(Both(4, 4), Absorbing(3, LogLinearNoise()))
    known, mask = prefix(torch.tensor([[0]]), 2)
    for token in range(3):
        x = Infilling(Ancestral(doubtful, last=categorical), known + token, mask)(
            shape=(50, 2), steps=3, generator=generator
        )
        assert (x[:, 0] == token).all()


def test_infilling_keeps_the_grid_of_its_sampler():
    sampler = FirstHitting(Categorical(Both(4, 4), Absorbing(3, LogLinearNoise()), head=carried))
    infilling = Infilling(sampler, *prefix(torch.tensor([[0]]), 2))
    torch.testing.assert_close(infilling.times(4), torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0], dtype=torch.float64))


def test_inpainting_keeps_known_symbols_of_other_processes(generator):
    denoiser = Categorical(Both(4, 4), Uniform(4, LogLinearNoise()))
    known, mask = prefix(torch.tensor([[3]]), 2)
    x = Inpainting(Ancestral(denoiser), known.expand(50, 2), mask)(shape=(50, 2), steps=10, generator=generator)
    assert (x[:, 0] == 3).all()
    with pytest.raises(UsageError, match="Infilling is for absorption in an added mask token"):
        Infilling(Ancestral(denoiser), known, mask)
    text = sliding(Ancestral(denoiser), 3, window=2, overlap=1, batch=4, steps=4, generator=generator, fill=Inpainting)
    assert text.shape == (4, 3)


def test_sliding_keeps_overlaps(generator):
    """A network that counts on from its left neighbor: text longer than its window does, across blocks."""

    class Counting(nn.Module):
        def forward(self, x: Tensor, time: Tensor) -> Tensor:
            assert x.shape[1] <= 4
            seen.append(x.clone())
            logits = torch.zeros(*x.shape, 6)
            for i in range(1, x.shape[1]):
                known = x[:, i - 1] < 5
                logits[:, i].scatter_(1, ((x[:, i - 1] + 1) % 5)[:, None], 50.0 * known[:, None])
            return logits

    seen: list[Tensor] = []
    denoiser = Categorical(Counting(), Absorbing(5, LogLinearNoise(eps=0)), head=carried)

    class LeftToRight(Streams):
        """Times fall from left to right: of each run the second numbers, after those of the prior."""

        def uniform(self, shape, dtype, device) -> Tensor:
            u = super().uniform(shape, dtype, device)
            return u.sort(dim=1).values if self.calls % 3 == 2 else u

    blocks = []

    def note(items, total, label):
        blocks.append((total, label))
        return items

    source = LeftToRight(0, range(30))
    text = sliding(FirstHitting(denoiser), 11, window=4, overlap=1, batch=30, steps=4, generator=source, progress=note)
    assert text.shape == (30, 11)
    assert blocks == [(4, "blocks")]
    assert ((text[:, 1:] - text[:, :-1]) % 5 == 1).all()
    assert len(text[:, 0].unique()) == 5
    assert sliding(FirstHitting(denoiser), 3, window=4, overlap=1, batch=2, steps=3, generator=generator).shape == (
        2,
        3,
    )
    assert sliding(FirstHitting(denoiser), 9, window=4, overlap=0, batch=2, steps=4, generator=generator).shape == (
        2,
        9,
    )
    seen.clear()
    text = sliding(Ancestral(denoiser), 8, window=4, overlap=2, batch=3, steps=5, generator=generator)
    starts = [x for x in seen if (x[:, 2:] == 5).all() and (x[:, :2] < 5).all()]
    assert any(torch.equal(x[:, :2], text[:, 2:4]) for x in starts)
    assert any(torch.equal(x[:, :2], text[:, 4:6]) for x in starts)


def test_bad_edits_are_refused_in_one_line():
    denoiser = Categorical(Both(4, 4), Absorbing(3, LogLinearNoise()))
    for call, words in (
        (
            lambda: Infilling(Ancestral(denoiser), torch.tensor([[3, 0]]), torch.tensor([True, False])),
            "known has the token 3",
        ),
        (lambda: Infilling(Ancestral(denoiser), torch.tensor([[1, 0]]), torch.ones(3)), "does not fit a signal"),
        (
            lambda: prefix(torch.zeros(1, 4, dtype=torch.int64), 4),
            "4 known tokens leave no position of length=4 to sample",
        ),
        (lambda: sliding(Ancestral(denoiser), 9, window=2, overlap=2, batch=1, steps=2), "overlap=2"),
    ):
        with pytest.raises(UsageError, match=words):
            call()
