"""Objects as JSON and back: what can be written, under which name, and what is refused."""

import inspect
import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

import unnoise.experiments  # registers the names of all sub-packages
from unnoise import continuous, sde
from unnoise.shared import serialization
from unnoise.shared.errors import UsageError
from unnoise.shared.gaussian import ClassifierFree, ClassifierLoss, DenoisingLoss, Learned, velocity
from unnoise.shared.networks import MLP
from unnoise.shared.objective import independent
from unnoise.shared.random import categorical, normal_like, rademacher_like
from unnoise.shared.sampler import CorrectorPredictor, PredictorCorrector, Sampler
from unnoise.shared.serialization import current, deserialize, earlier, serializable, serialize


@serializable("test_serialization.Line")
@dataclass(frozen=True)
class Line:
    """A user's dataclass, with a part of its own."""

    slope: float = 1.0
    parts: tuple = ()
    rule: object = None


@serializable("test_serialization.halved")
def halved(x):
    """A user's function."""
    return x / 2


@serializable("test_serialization.Bare")
class Bare:
    """A class without `__init__`."""


@serializable("test_serialization.BareModule")
class BareModule(nn.Module):
    """A module without `__init__`."""


@serializable("test_serialization.Forgets")
class Forgets:
    """A class that does not keep its argument."""

    def __init__(self, width, depth=1):
        self.depth = depth


@dataclass
class Unmarked:
    """A dataclass without a name."""

    slope: float = 1.0


class Own(nn.Module):
    """A network that is not of the package."""

    conditions = ()

    def __init__(self, width=2):
        super().__init__()
        self.layer = nn.Linear(width, width)

    def forward(self, x, time):
        return self.layer(x)


def through_json(value, network=None):
    return deserialize(json.loads(json.dumps(serialize(value))), network)


@pytest.mark.parametrize("value", [None, True, 3, -0.25, "text", (), (1, ("a", None)), [1, 2]])
def test_plain_values_come_back(value):
    found = through_json(value)
    assert found == (tuple(value) if isinstance(value, list) else value)
    assert type(found) is (tuple if isinstance(value, list) else type(value))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool])
def test_tensors_come_back_bit_for_bit(dtype):
    for shape in ((), (3,), (2, 1, 2), (0,)):
        tensor = torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).mul(3).to(dtype)
        found = through_json(tensor)
        assert found.dtype == dtype
        assert found.shape[0:1] == tensor.shape[0:1]
        assert torch.equal(found, tensor)


def test_numpy_numbers_become_python_numbers():
    assert [type(through_json(v)) for v in (np.float32(0.5), np.int64(3), np.bool_(True))] == [float, int, bool]


def test_a_users_dataclass_and_function_come_back():
    line = Line(2.5, (Line(), halved, torch.ones(2, dtype=torch.float64)), velocity)
    written = serialize(line)
    assert written["class"] == "test_serialization.Line"
    assert written["arguments"]["parts"][1] == {"function": "test_serialization.halved"}
    found = through_json(line)
    assert type(found) is Line
    assert (found.slope, found.parts[0], found.rule) == (2.5, Line(), velocity)
    assert found.parts[1] is halved
    assert torch.equal(found.parts[2], line.parts[2])


def test_a_class_without_init_has_no_arguments():
    for kind in (Bare, BareModule):
        assert serialize(kind()) == {"class": f"test_serialization.{kind.__name__}", "arguments": {}}
        assert type(through_json(kind())) is kind


def test_a_class_itself_comes_back():
    line = Line(rule=continuous.DDIM, parts=(Line, Forgets, Bare))
    written = serialize(line)
    assert written["arguments"]["rule"] == {"function": "continuous.DDIM"}
    assert written["arguments"]["parts"][1] == {"function": "test_serialization.Forgets"}
    found = through_json(line)
    assert found.rule is continuous.DDIM
    assert found.parts == (Line, Forgets, Bare)
    with pytest.raises(UsageError, match=r"cannot contain test_serialization\.Unmarked: mark the class or function"):
        serialize(Line(rule=Unmarked))


CONSTRUCTORS = {
    "continuous": "DDIM LMS Ancestral Churned DPMSolver DPMSolverPP DPMSolverPPSingle Heun Renoised UniPC "
    "curved exponential midpoint",
    "discrete": "Ancestral Euler FirstHitting RateCorrector Remasking TauLeaping Unmasking "
    "cosine linear most_likely ordinal reciprocal single",
    "sde": "AnnealedLangevin EulerMaruyama Langevin NoPredictor ProbabilityFlow ReverseDiffusion "
    "Adaptive ExactTrace FixedSteps Hutchinson SciPy TorchDiffEq batch_norms own_norms",
}


@pytest.mark.parametrize("family", CONSTRUCTORS)
def test_samplers_and_their_choices_have_names(family):
    for name in CONSTRUCTORS[family].split():
        thing = getattr(getattr(unnoise, family), name)
        assert serialize(thing) == {"function": f"{family}.{name}"}
        assert through_json(thing) is thing
    for thing in (PredictorCorrector, CorrectorPredictor, categorical, normal_like, rademacher_like):
        assert serialize(thing) == {"function": f"shared.{thing.__name__}"}
        assert through_json(thing) is thing


def test_every_public_sampler_has_a_name():
    for family in (unnoise.continuous, unnoise.discrete, unnoise.sde):
        for thing in vars(family).values():
            if inspect.isclass(thing) and issubclass(thing, Sampler) and not inspect.isabstract(thing):
                assert thing in serialization._NAMES, thing


@pytest.mark.parametrize(
    ("part", "text"),
    [
        (sde.Adaptive(), "Adaptive()"),
        (sde.Adaptive(1e-3, method=sde.bogacki_shampine), None),
        (sde.FixedSteps(), "FixedSteps()"),
        (sde.FixedSteps(sde.heun2), "FixedSteps()"),
        (sde.FixedSteps(sde.rk4), None),
        (sde.SciPy(), "SciPy()"),
        (sde.SciPy("RK23", atol=1e-3), "SciPy(method='RK23', atol=0.001)"),
        (sde.TorchDiffEq(evaluations=50), "TorchDiffEq(evaluations=50)"),
        (sde.Hutchinson(), "Hutchinson()"),
        (sde.Hutchinson(3, normal_like), "Hutchinson(count=3, draw=normal_like)"),
        (sde.ExactTrace(), "ExactTrace()"),
        (sde.angle_coordinates, "AngleCoordinates()"),
        (sde.time_coordinates, "TimeCoordinates()"),
        *(
            (getattr(sde, name), None)
            for name in ("bogacki_shampine", "dormand_prince", "euler", "heun2", "heun3", "midpoint_rule", "rk4")
        ),
    ],
)
def test_parts_of_the_probability_flow_come_back(part, text):
    found = through_json(part)
    assert type(found) is type(part)
    assert found == part
    assert hash(found) == hash(part)
    assert repr(found) == repr(part)
    assert text in (None, repr(part))


def test_a_model_comes_back():
    torch.manual_seed(0)
    model = Learned(MLP(2, 8, 1, classes=3), sde.VP(beta_max=15.0), velocity)
    found = through_json(ClassifierFree(model, 1.5, low=0.1))
    assert (found.w, found.denoiser.schedule, found.denoiser.predicts) == (1.5, sde.VP(beta_max=15.0), velocity)
    found.load_state_dict(ClassifierFree(model, 1.5).state_dict())
    x, t, label = torch.ones(3, 2), torch.tensor(0.5), torch.arange(3)
    assert torch.equal(found(x, t, label=label), ClassifierFree(model, 1.5, low=0.1)(x, t, label=label))


def test_a_network_of_ones_own_is_given_on_reading_and_copied():
    written = json.loads(json.dumps(serialize(Line(parts=(Learned(Own(), sde.VP()), Learned(Own(), sde.VP()))))))
    with pytest.raises(UsageError, match=r"a network of your own, test_serialization\.Own: give it as load\(path, net"):
        deserialize(written)
    network = Own()
    one, other = deserialize(written, network).parts
    assert torch.equal(one.network.layer.weight, network.layer.weight)
    assert len({id(n) for n in (one.network, other.network, network)}) == 3
    with pytest.raises(UsageError, match=r"cannot contain test_serialization\.Own: mark the class"):
        serialize(Line(rule=Own()))  # only an argument called network may be left out


def test_earlier_names_and_arguments_are_read():
    @serializable("test_serialization.New", formerly=("test_serialization.Old", "older"), renamed={"levels": "steps"})
    @dataclass
    class New:
        steps: int
        width: int = 1

    for name in ("test_serialization.Old", "older", "test_serialization.New"):
        old = {"class": name, "arguments": {"levels": 5, "width": 2}}
        assert deserialize(old) == New(5, 2)
        assert current([{"inside": old}]) == [{"inside": serialize(New(5, 2))}]
    assert deserialize(serialize(New(7))) == New(7)

    @serializable("test_serialization.new_rule", formerly="test_serialization.old_rule")
    def new_rule(x):
        return x

    assert deserialize({"function": "test_serialization.old_rule"}) is new_rule
    earlier("test_serialization.Sum", lambda arguments: serialize(Line(arguments["a"] + arguments["b"])))
    assert deserialize({"class": "test_serialization.Sum", "arguments": {"a": 1, "b": 2}}) == Line(3)
    assert type(deserialize(old_classifier_loss("unnoise.shared.guidance.Recognition"))) is ClassifierLoss


def old_classifier_loss(name):
    """Returns a description of earlier versions."""
    classifier = {
        "class": "unnoise.shared.guidance.NoisyClassifier",
        "arguments": {
            "network": serialize(MLP(2)),
            "schedule": serialize(sde.VP()),
            "label": {"function": "unnoise.shared.labels.song_vp"},
        },
    }
    times = {"function": "unnoise.shared.objective.independent"}
    return {"class": name, "arguments": {"denoiser": classifier, "times": times}}


def test_descriptions_of_today_are_not_converted():
    """No earlier name of an argument is the name of an argument today."""
    for name, thing in serialization._KNOWN.items():
        if inspect.isclass(thing):
            today = {"class": name, "arguments": {k: k for k in serialization.arguments_of(thing)}}
            assert current(today) == today, name
        else:
            assert current({"function": name}) == {"function": name}


def test_a_name_stands_for_one_thing():
    with pytest.raises(
        UsageError,
        match=r"the name test_serialization\.Line for test_serialization\.Unmarked already stands for test_serializa",
    ):
        serializable("test_serialization.Line")(Unmarked)
    assert type(through_json(Line())) is Line
    with pytest.raises(UsageError, match=r"cannot contain test_serialization\.Unmarked"):
        serialize(Unmarked())

    def defined():  # as when a cell of a notebook runs twice
        @serializable("test_serialization.Cell")
        class Cell:
            pass

        return Cell

    defined()
    assert type(through_json(defined()())).__name__ == "Cell"


def test_a_name_is_needed():
    for thing in (Unmarked, halved):
        with pytest.raises(UsageError, match=rf'write @serializable\("my_project\.{thing.__name__}"\)'):
            serializable(thing)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: serialize(Forgets(3)),
            "Forgets, which does not keep its constructor argument width: write self.width =",
        ),
        (
            lambda: serialize(Unmarked()),
            r"cannot contain test_serialization\.Unmarked: mark the class or function with",
        ),
        (
            lambda: serialize(lambda x: x),
            r"cannot contain test_serialization\.<lambda>.*<lambda>: mark the class or function",
        ),
        (lambda: serialize({"a": 1}), "cannot contain builtins.dict"),
        (lambda: serialize(Line(rule=np.ones(2))), "cannot contain numpy.ndarray"),
        (
            lambda: serialize(Learned(Own(), sde.VP()).on(sde.VE())),
            "a Learned on another schedule than that of training",
        ),
        (lambda: deserialize({"class": "os.system", "arguments": {}}), "contains os.system, which no imported module"),
        (lambda: deserialize({"function": "os.system"}), "contains os.system, which no imported module defines"),
        (
            lambda: deserialize({"class": "test_serialization.Line", "arguments": {"gradient": 1}}),
            r"test_serialization\.Line in the checkpoint does not fit its class in this version: .*gradient",
        ),
    ],
)
def test_what_is_refused(make, words):
    with pytest.raises(UsageError, match=words) as error:
        make()
    assert "\n" not in str(error.value)


def test_names_that_collide_are_refused():
    with pytest.raises(UsageError, match=r"formerly='sde.VP' of .*Line is the name of .*VP in checkpoints"):
        serializable("my.other_line", formerly="sde.VP")(Line)
    with pytest.raises(UsageError, match=r"renamed=\{'rule': ...\} of .*Line: rule is an argument today"):
        serializable("my.other_line", renamed={"rule": "other"})(Line)


def test_a_weight_of_the_score_is_not_taken_for_one_of_x_0():
    old = {"class": "unnoise.sde.objectives.ScoreMatching", "arguments": {"denoiser": None, "times": None}}
    for weight, now in (("sigma_squared", "snr"), ("g_squared", "likelihood_weight")):
        arguments = old["arguments"] | {"weight": {"function": f"unnoise.sde.objectives.{weight}"}}
        assert current(old | {"arguments": arguments}) == {
            "class": "gaussian.DenoisingLoss",
            "arguments": {"denoiser": None, "times": None, "weight": {"function": f"gaussian.{now}"}},
        }
    own = old | {"arguments": old["arguments"] | {"weight": {"function": "my.weight"}}}
    with pytest.raises(UsageError, match="the weight my.weight of the error of the score.* alpha.2 / sigma.4"):
        deserialize(own)


def test_times_are_not_taken_for_a_weight():
    with pytest.raises(TypeError, match="positional"):
        DenoisingLoss(Learned(Own(), sde.VP()), independent)
