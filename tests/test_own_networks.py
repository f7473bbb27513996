"""Networks that are not of this package: what does not fit is refused in one line, when built or first called."""

import pytest
import torch
import torch.nn.functional as F
from helpers import Own
from torch import nn

from unnoise import continuous, discrete, sde
from unnoise.shared.errors import UsageError
from unnoise.shared.gaussian.dequantization import VariationalDequantization
from unnoise.shared.gaussian.guidance import ClassifierGuided, ClassifierLoss, NoisyClassifier
from unnoise.shared.networks import MLP, UNet
from unnoise.shared.quantization import Quantization
from unnoise.shared.time_inputs import step_index, thousandth_index

T = 1000
TABLE = continuous.Tabulated(continuous.linear_betas(T))
X, K = torch.randn(4, 2, 6, 6, generator=torch.Generator().manual_seed(0)), 5
TOKENS = torch.randint(0, K, (3, 7), generator=torch.Generator().manual_seed(0))
MASKED, UNIFORM = discrete.Absorbing(K, discrete.LogLinearNoise()), discrete.Uniform(K, discrete.linear(T, 1e-4, 0.02))


class Output:
    def __init__(self, sample):
        self.sample = sample


def logits(states=K):
    """A fixed network of tokens."""
    return lambda x, time: F.one_hot(x, K + 1)[..., :states].float()


FORMS = {
    "an object with .sample": (lambda y: Output(y), r"of type Output.*net\(x, time, \*\*cond\)\.sample"),
    "a tuple": (lambda y: (y, 1), r"of type tuple.*net\(x, time, \*\*cond\)\[0\]"),
    "a dict": (lambda y: {"logits": y}, r"a dict of logits.*\['logits'\]"),
    "an empty dict": (lambda y: {}, "an empty dict"),
    "none": (lambda y: None, "returned None instead of a tensor"),
    "another object": (lambda y: "y", "of type str"),
    "integers": (lambda y: y.long(), "returned torch.int64 instead of floating-point numbers"),
    "complex numbers": (lambda y: y.to(torch.complex64), "returned torch.complex64"),
    "another device": (lambda y: y.to("meta"), "on meta for an input on cpu"),
}
SHAPES = {
    "half the size": lambda y: y[..., ::2, ::2],
    "one number an image": lambda y: y.mean((2, 3), keepdim=True),
    "one image": lambda y: y[:1],
    "flat": lambda y: y.flatten(1),
    "no channels": lambda y: y[:, 0],
    "one more axis": lambda y: y[None],
    "a number": lambda y: y.mean(),
}
CALLS = {
    "sampler": lambda d: continuous.DDIM(d)(X, steps=2),
    "simple": lambda d: continuous.DenoisingLoss.simple(d)(X),
    "flow": lambda d: sde.DenoisingLoss.flow_matching(d)(X),
    "bound": lambda d: continuous.VariationalBound(continuous.Clipped(d), Quantization(17), terms=2)(X.clamp(-1, 1)),
    "likelihood": lambda d: sde.ChangeOfVariables(d.on(sde.VP()), integrator=sde.FixedSteps())(X),
}


def one_line(error, words=""):
    assert "\n" not in str(error.value)
    assert error.match(words)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("form", [*FORMS, *SHAPES])
def test_outputs_that_are_not_read_are_refused(call, form):
    make, words = (
        FORMS[form]
        if form in FORMS
        else (SHAPES[form], r"the network returned shape \(.*for x_t \(4, 2, 6, 6\): .*\(4, 2, 6, 6\)$")
    )
    with pytest.raises(UsageError) as error:
        CALLS[call](continuous.Learned(Own(lambda x, time: make(x)), TABLE))
    one_line(error, f".*{words}")


@pytest.mark.parametrize("form", FORMS)
def test_every_caller_of_a_network_refuses_them(form):
    make, words = FORMS[form]
    classifier = NoisyClassifier(Own(lambda x, time: make(x.mean((2, 3)))), sde.VP())
    label = torch.zeros(4, dtype=torch.int64)
    energies = [Own(lambda x, time: make(x.sum((1, 2, 3)))), sde.Potential(Own(lambda x, time: make(x)))]
    real = continuous.Learned(UNet((2, 6, 6), 8, (1,), 1), TABLE)
    dequantizer = VariationalDequantization(Quantization(17), Own(lambda x, time: make(x)))
    calls = [
        lambda: ClassifierLoss(classifier)(X, label=label),
        lambda: continuous.DDIM(ClassifierGuided(real, classifier))(X, steps=2, label=label),
        *(lambda e=e: sde.DenoisingLoss.score_matching(sde.EnergyDenoiser(e, sde.VP()))(X) for e in energies),
        lambda: dequantizer(torch.zeros(4, 2, 6, 6, dtype=torch.int64)),
        *(
            lambda p=p: discrete.CrossEntropy(discrete.Categorical(Own(lambda x, time: make(logits()(x, time))), p))(
                TOKENS
            )
            for p in (MASKED, UNIFORM)
        ),
        lambda: discrete.ContinuousBound(
            discrete.ScoreEntropyDenoiser(Own(lambda x, time: make(logits()(x, time))), MASKED)
        )(TOKENS),
    ]
    for call in calls:
        with pytest.raises(UsageError) as error:
            call()
        one_line(error, f".*{words}")


def test_classifiers_of_other_shapes_and_labels():
    wide = NoisyClassifier(Own(lambda x, time: x), sde.VP())
    with pytest.raises(
        UsageError, match=r"returned shape \(4, 2, 6, 6\) for 4 examples: make it return a logit for each class"
    ):
        wide(X, 0.5)
    classifier = NoisyClassifier(Own(lambda x, time: x.mean((2, 3))), sde.VP())
    expected = ClassifierLoss(classifier).at(
        X, torch.full((4,), 0.5), label=torch.tensor([0, 1, 1, 0]), generator=torch.Generator()
    )
    narrow = torch.tensor([0, 1, 1, 0], dtype=torch.uint8)
    found = ClassifierLoss(classifier).at(X, torch.full((4,), 0.5), label=narrow, generator=torch.Generator())
    assert torch.equal(found.total, expected.total)
    for label, words in (
        (torch.tensor([0, 1, 2, 0]), "label is 0 to 2, but the classifier has classes 0 to 1"),
        (torch.tensor([0.0, 1, 1, 0]), "give integers"),
        (torch.tensor([0, 1]), r"give integers \(4,\)"),
        (1, "label=1: give integers"),
    ):
        with pytest.raises(UsageError, match=words):
            ClassifierLoss(classifier)(X, label=label)


@pytest.mark.parametrize("process", [MASKED, UNIFORM], ids=["mask", "uniform"])
def test_the_vocabulary_is_last(process):
    """An output in another order is refused with what turns it, and turned so it is what it should be."""
    expected = discrete.Categorical(Own(logits()), process)(TOKENS, 0.5)
    for make in (discrete.Categorical, discrete.ScoreEntropyDenoiser):
        if make is discrete.ScoreEntropyDenoiser and process.steps:
            continue
        denoiser = make(Own(lambda x, time: logits()(x, time).movedim(-1, 1)), process)
        with pytest.raises(UsageError) as error:
            denoiser(TOKENS, 0.5)
        one_line(error, r".*returned \(3, 5, 7\) for x_t \(3, 7\).*the vocabulary last: return out.movedim\(1, -1\)")
    turned = Own(lambda x, time: logits()(x, time).movedim(-1, 1).movedim(1, -1))
    assert torch.equal(discrete.Categorical(turned, process)(TOKENS, 0.5), expected)


def test_the_vocabulary_is_last_of_images_too():
    x, right = torch.randint(0, K, (2, 3, 4, 6)), lambda x, time: F.one_hot(x, K).float()
    orders = {
        r"movedim\(2, -1\)": lambda x, time: right(x, time).movedim(-1, 2),
        r"movedim\(1, -1\)": lambda x, time: right(x, time).movedim(-1, 1),
        r"unflatten\(1, \(3, 5\)\)\.movedim\(2, -1\)": lambda x, time: right(x, time).movedim(-1, 2).flatten(1, 2),
    }
    for words, order in orders.items():
        with pytest.raises(UsageError, match=words):
            discrete.CrossEntropy(discrete.Categorical(Own(order), UNIFORM))(x)
    unflattened = Own(lambda x, time: right(x, time).movedim(-1, 2).flatten(1, 2).unflatten(1, (3, 5)).movedim(2, -1))
    assert torch.equal(
        discrete.Categorical(unflattened, UNIFORM)(x, 0.5), discrete.Categorical(Own(right), UNIFORM)(x, 0.5)
    )
    with pytest.raises(UsageError, match=r"returned \(2, 3, 4, 6, 5\).*reads two numbers at each position"):
        discrete.CrossEntropy(discrete.Categorical(Own(right), UNIFORM, head=discrete.logistic))(x)


class NoTime(nn.Module):
    def __init__(self):
        super().__init__()
        self.quantization = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return x


class Conditional(nn.Module):
    def forward(self, x, time, label, style=None):
        return x if x.is_floating_point() else logits()(x, time)


@pytest.mark.parametrize("network", [NoTime(), nn.Linear(2, 2), lambda x, time: x, None])
def test_networks_that_take_no_time_are_refused_when_built(network):
    builders = [
        lambda n: continuous.Learned(n, TABLE),
        lambda n: discrete.Categorical(n, UNIFORM),
        lambda n: discrete.ScoreEntropyDenoiser(n, MASKED),
        lambda n: NoisyClassifier(n, TABLE),
        lambda n: sde.EnergyDenoiser(n, TABLE),
        lambda n: VariationalDequantization(Quantization(17), n),
    ]
    for build in builders:
        with pytest.raises(UsageError, match=r"called as network\(x, time, \*\*conditions\)"):
            build(network)
    with pytest.raises(UsageError, match=r"Identity takes \(input\), but is called as"):
        continuous.Learned(nn.Identity(), TABLE)(X, 0.5)  # a placeholder may be built, and not be called


@pytest.mark.parametrize(
    ("cond", "words"),
    [
        ({}, "Conditional needs the condition label: give label="),
        (
            {"label": 0, "caption": 1},
            r"Conditional takes no condition caption \(it takes label, style\): leave it out; for guidance",
        ),
        ({"style": 0}, "needs the condition label"),
    ],
)
def test_conditions_are_named(cond, words):
    for call in (
        lambda: continuous.DenoisingLoss.simple(continuous.Learned(Conditional(), TABLE))(X, **cond),
        lambda: discrete.CrossEntropy(discrete.Categorical(Conditional(), UNIFORM))(TOKENS, **cond),
    ):
        with pytest.raises(UsageError) as error:
            call()
        one_line(error, words)
    own = continuous.Learned(UNet((2, 6, 6), 8, (1,), 1), TABLE)
    with pytest.raises(UsageError, match="UNet takes no condition caption"):
        continuous.DenoisingLoss.simple(own)(X, caption=torch.zeros(4))
    with pytest.raises(UsageError, match=r"label is a ndarray: give a tensor, such as torch.as_tensor\(label\)"):
        continuous.DenoisingLoss.simple(continuous.Learned(MLP(3, 8, classes=2), TABLE))(
            torch.randn(2, 3), label=torch.zeros(2).numpy()
        )


def test_errors_of_the_network_itself_stay_as_they_are():
    def broken(x, time):
        return len(3)

    def unlucky(x, time):
        return [1][2]

    def misshapen(x, time):
        return torch.zeros(2, 3) @ torch.zeros(2, 3)

    for f, kind in ((broken, TypeError), (unlucky, IndexError), (misshapen, RuntimeError)):
        with pytest.raises(kind) as error:
            continuous.DenoisingLoss.simple(continuous.Learned(Own(f), TABLE))(X)
        assert not isinstance(error.value, UsageError)


class Rows(nn.Module):
    """The time by a learned row, as in many tutorials."""

    def __init__(self, rows=T, index=lambda time: time.long(), data=2):
        super().__init__()
        self.steps, self.index, self.data, self.drop = nn.Embedding(rows, data), index, data, nn.Dropout(0.5)
        self.calls = 0

    def forward(self, x, time, **cond):
        self.calls += 1
        torch.rand(1)  # whatever the mode
        row = self.steps(self.index(time))
        h = logits()(x, time) if not x.is_floating_point() else x
        return self.drop(h) + row.reshape(len(x), self.data, *[1] * (h.ndim - 2))[:, : h.shape[1]]


def test_rows_that_do_not_fit_the_time_are_found_before_the_first_step():
    """1000 t runs to 1000, which an embedding of 1000 rows does not have; whatever times the first batch draws."""
    early = torch.full((4,), 0.3, dtype=torch.float64)
    for time_input, fits in ((None, False), (step_index, True), (thousandth_index, True)):
        denoiser = continuous.Learned(Rows(), TABLE, **({} if time_input is None else {"time_input": time_input}))
        if fits:
            continuous.DenoisingLoss.simple(denoiser).at(X, early)
            continuous.DDIM(denoiser.eval())(X, steps=3)
            continue
        with pytest.raises(UsageError) as error:
            continuous.DenoisingLoss.simple(denoiser).at(X, early)
        one_line(
            error,
            "the embedding steps of Rows has 1000 rows, but row 1000 is looked up, where the time input is 1 to 1000: "
            ".*time_input=step_index",
        )
    continuous.DenoisingLoss.simple(continuous.Learned(Rows(T + 1), TABLE)).at(X, early)
    continuous.DenoisingLoss.simple(continuous.Learned(Rows(T, lambda time: time.long() - 1), TABLE)).at(X, early)
    short = continuous.Tabulated(continuous.linear_betas(100))
    with pytest.raises(UsageError, match="has 100 rows, but row 1000 is looked up"):
        continuous.DenoisingLoss.simple(continuous.Learned(Rows(100), short)).at(X, early)
    continuous.DenoisingLoss.simple(continuous.Learned(Rows(100), short, time_input=step_index)).at(X, early)
    with pytest.raises(UsageError, match="has 1000 rows, but row 1000 is looked up"):
        discrete.CrossEntropy(discrete.Categorical(Rows(data=7), UNIFORM)).at(TOKENS, early[:3])
    discrete.CrossEntropy(discrete.Categorical(Rows(data=7), UNIFORM, time_input=step_index)).at(TOKENS, early[:3])
    with pytest.raises(UsageError, match="has 1000 rows, but row 1000 is looked up"):
        sde.DenoisingLoss.score_matching(sde.Learned(Rows(), sde.VP())).at(X, early)


def test_a_table_of_tokens_without_a_row_for_the_mask():
    rows = nn.Embedding(K, K)
    with pytest.raises(
        UsageError,
        match="index out of range in self.: x holds tokens up to 5 .a mask token, if there is one, is the last",
    ):
        discrete.Categorical(Own(lambda x, time: rows(x)), MASKED)(torch.full((2, 3), K), 0.5)
    discrete.Categorical(Own(lambda x, time: rows(x)), UNIFORM)(TOKENS, 0.5)


def test_step_index_feeds_every_row_once():
    rows = []
    network = Own(lambda x, time: rows.append(time) or x)
    denoiser = continuous.Learned(network, TABLE, time_input=step_index)
    denoiser(torch.zeros(T, 1), torch.arange(1, T + 1, dtype=torch.float64) / T)
    assert rows[0].dtype == torch.float32
    assert torch.equal(rows[0].long(), torch.arange(T))


def test_trying_the_ends_leaves_no_trace():
    network = Rows(T + 1).train()
    denoiser, before = continuous.Learned(network, TABLE), torch.get_rng_state()
    continuous.DenoisingLoss.simple(denoiser).at(
        X, torch.full((4,), 0.3, dtype=torch.float64), generator=torch.Generator()
    )
    again = torch.get_rng_state()
    torch.set_rng_state(before)
    continuous.DenoisingLoss.simple(denoiser).at(
        X, torch.full((4,), 0.3, dtype=torch.float64), generator=torch.Generator()
    )
    assert torch.equal(torch.get_rng_state(), again)  # as often drawn from
    assert network.calls == 3
    assert network.drop.training
    assert not network.steps._forward_pre_hooks
    assert all(p.grad is None for p in network.parameters())


@pytest.mark.parametrize(
    ("f", "words"),
    [
        (
            lambda x, time: F.embedding(time, torch.zeros(2000, 1)),
            r"not integers.*float32, here 1 to 1000; index with time.round\(\).long\(\)",
        ),
        (lambda x, time: x * torch.ones(T + 1)[time][:, None, None, None], "not integers"),
        (
            lambda x, time: x * torch.ones(5)[time.long()][:, None, None, None],
            "does not exist.*here 1 to 1000; .*time_input=step_index",
        ),
        (
            lambda x, time: F.linear(time[:, None], torch.zeros(1, 1, dtype=torch.float64)),
            "mixes precisions.*time input is torch.float32",
        ),
    ],
)
def test_what_a_network_does_with_the_time_is_one_line(f, words):
    with pytest.raises(UsageError) as error:
        continuous.DenoisingLoss.simple(continuous.Learned(Own(f), TABLE))(X)
    one_line(error, f".*{words}")


def test_half_precision_and_a_time_that_is_not_cast():
    class Uncast(nn.Module):
        def __init__(self):
            super().__init__()
            self.time = nn.Linear(1, 1)

        def forward(self, x, time):
            return x + self.time(time[:, None])[:, :, None, None]

    continuous.DenoisingLoss.simple(continuous.Learned(Uncast(), TABLE))(X)
    with pytest.raises(
        UsageError,
        match=r"Uncast mixes precisions.*bfloat16.*the time input is torch.float32: cast what is computed from",
    ):
        continuous.DenoisingLoss.simple(continuous.Learned(Uncast().bfloat16(), TABLE))(X)


def test_a_network_says_that_it_takes_no_condition():
    """Guidance by a classifier passes its label on, unless the network lists what it takes."""
    classifier = NoisyClassifier(Own(lambda x, time: x.mean((2, 3))), TABLE)
    plain, label = Own(lambda x, time: x), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(
        UsageError, match=r"Own takes no condition label .*give the network the attribute conditions = \(\)"
    ):
        continuous.DDIM(ClassifierGuided(continuous.Learned(plain, TABLE), classifier))(X, steps=2, label=label)
    plain.conditions = ()
    continuous.DDIM(ClassifierGuided(continuous.Learned(plain, TABLE), classifier))(X, steps=2, label=label)


class Labeled(nn.Module):
    """A network that looks up a condition of its own."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(10, 1)

    def forward(self, x, time, y):
        return x + self.table(y)[:, :, None, None]


def test_a_condition_out_of_range_is_named():
    with pytest.raises(UsageError, match="looked up a row that does not exist.*y holds 1 to 10, and the time input"):
        continuous.Learned(Labeled(), TABLE)(torch.zeros(2, 1, 8, 8), 0.5, y=torch.tensor([1, 10]))
