"""Recipes in checkpoints of earlier versions, in which each paper had a class.

For each class there is a function `a -> changes`, with its arguments `a` and their defaults of then, which returns what
differs from the paper's base recipe of today. What all classes had in common is in `common`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import Any

from torch import nn

from ... import continuous, discrete, sde
from ...shared.errors import UsageError
from ...shared.gaussian.guidance import ClassifierFree
from ...shared.networks import DiT, Encoder, Transformer, UNet, unet_variants
from ...shared.objective import Stratified, independent
from ...shared.sampler import PredictorCorrector
from ...shared.serialization import deserialize, earlier, serialize
from ...shared.time_inputs import thousandths
from ..categorical import CategoricalRecipe
from ..categorical_builders import context_neighbors, with_mutual_information
from ..code_lengths import Bound, Exact, TokenBound
from ..gaussian import GaussianLoss, GaussianRecipe
from ..gaussian_builders import annealed_langevin, churned_heun
from ..papers import (
    classifier_free,
    d3pm_images,
    d3pm_text,
    ddim,
    ddpm,
    edm,
    flow_matching,
    guided_diffusion,
    improved_ddpm,
    inverse_problems,
    mdlm,
    multinomial,
    ncsn,
    progressive_distillation,
    score_sde,
    sedd,
    tauldr,
    udlm,
    upsampling,
)
from ..parts import Part, part
from ..recipe import Recipe
from ..studies import bridge
from ..time_grids import Sections, Spacing, adaptive, even, quadratic, strided, trailing

VARIANTS = {
    name.lower().replace("_", "-"): constant
    for name, constant in vars(unet_variants).items()
    if isinstance(constant, unet_variants.UNetVariant)
}
"""The variants of the U-Net by their names of then, such as `adm-heads`."""
HEADS = {"direct": discrete.direct, "residual": discrete.residual, "logistic": discrete.logistic}
Changes = Callable[[Any], dict[str, Any]]
RENAMED = {"style": "variant", "spread": "dequantize", "neighbours": "neighbors", "budget": "seconds_per_model"}
"""The last names of arguments that had other names in older checkpoints."""


def was(name: str, *modules: str, **defaults: Any) -> Callable[[Callable[[Any], Any]], Callable[[Any], Any]]:
    """Marks a function that returns today's form of the class of an earlier version, of its arguments.

    Args:
        name: the last name of the class in checkpoints, `experiments.NAME`.
        modules: the modules in which it was before.
        defaults: the arguments that a checkpoint can lack, with the values that they had.
    """

    def mark(build: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def convert(arguments: dict[str, Any]) -> dict[str, Any]:
            given = {RENAMED.get(key, key): deserialize(value) for key, value in arguments.items()}
            try:
                return serialize(build(SimpleNamespace(**defaults | given)))
            except (AttributeError, KeyError) as error:
                raise UsageError(
                    f"{name} in the checkpoint does not fit its class of earlier versions: {error}"
                ) from error

        for known in (f"experiments.{name}", *(f"unnoise.experiments.{module}.{name}" for module in modules)):
            earlier(known, convert)
        return build

    return mark


def paper(name: str, module: ModuleType, **defaults: Any) -> Callable[[Changes], Changes]:
    """Marks a function that returns how the recipe of a class differs from the base recipe of a paper."""

    def mark(changes: Changes) -> Changes:
        own = vars(module)
        base: Recipe = own.get("OWN") or own.get("MODEL") or own["recipe_of"]()
        was(name, module.__name__.rpartition(".")[2], **defaults)(
            lambda a: replace(base, **common(base, vars(a)) | changes(a))
        )
        return changes

    return mark


def common(base: Recipe, arguments: dict[str, Any]) -> dict[str, Any]:
    """Returns what the arguments that many classes had in common are today: data, network, code length, ..."""
    names = ("data", "network", "training", "sampling_steps", "dequantize")
    found = {name: arguments[name] for name in names if name in arguments}
    if "text" in arguments:
        found["data"] = arguments["text"]
    if isinstance(base, CategoricalRecipe):
        return found | {"code_length": TokenBound(arguments.get("bound_terms", 100))}
    assert isinstance(base, GaussianRecipe)
    found["time_input"] = base.time_input or thousandths
    if "tolerance" in arguments:
        return found | {"code_length": Exact(arguments["tolerance"])}
    steps = arguments.get("bound_steps")
    return found | {"code_length": Bound(arguments["bound_terms"]) if steps is None else Bound(None, steps)}


def table(a: Any, kind: str = "linear") -> continuous.Tabulated:
    """Returns a table of betas, whose numbers the checkpoints contain: resuming compares them."""
    return continuous.Tabulated(
        continuous.linear_betas(a.steps, a.first_beta) if kind == "linear" else continuous.cosine_betas(a.steps)
    )


def of(a: Any, *names: str) -> dict[str, Any]:
    """Returns some of the arguments by name."""
    return {name: getattr(a, name) for name in names if hasattr(a, name)}


def stratified(a: Any) -> GaussianLoss:
    """Returns the loss at stratified times."""
    return GaussianLoss(times=Stratified(a.time_power))


def spaced(text: str) -> Spacing:
    """Returns a spacing of sampling steps by its text, such as `quad` or `90,60,60,20,20`."""
    if "," in text:
        return Sections(tuple(map(int, text.split(","))))
    return {"": even, "ddim": strided, "quad": quadratic, "trailing": trailing}[text.rstrip("0123456789")]


@was("Network", "images", "experiment", variant="plain")
def _network(a: Any) -> Part[nn.Module]:
    return part(UNet, **vars(a) | {"variant": VARIANTS[a.variant]})


@was("TextNetwork", "texts")
def _text_network(a: Any) -> Part[nn.Module]:
    size = of(a, "width", "depth", "heads", "hidden", "dropout")
    return part(Transformer, **size) if a.kind == "t5" else part(DiT, **size, timed=a.timed)


@was("Classifier", "guided_diffusion", variant="plain")
def _classifier(a: Any) -> guided_diffusion.ClassifierGuidance:
    own = {"variant": VARIANTS[a.variant], "positional": a.variant == "adm"}
    encoder = part(Encoder, **of(a, "width", "blocks"), **own)
    return guided_diffusion.ClassifierGuidance(encoder, **of(a, "classes", "batch", "training"))


@paper("DDPM", ddpm, time_power=0.0)
def _ddpm(a: Any) -> dict[str, Any]:
    times = Stratified(a.time_power) if a.time_power else independent
    variance = {"large": continuous.large, "small": continuous.small}[a.variance]
    return {"schedule": table(a), "variance": variance, "loss": GaussianLoss(times=times)}


@paper("ImprovedDDPM", improved_ddpm, first_beta=1e-4)
def _improved_ddpm(a: Any) -> dict[str, Any]:
    losses = {"simple": GaussianLoss(), "hybrid": improved_ddpm.hybrid(a.vlb), "vlb": improved_ddpm.VLB}
    variance = continuous.large if a.loss == "simple" else continuous.learned_range
    return {"schedule": table(a, a.betas), "loss": losses[a.loss], "variance": variance}


@paper("ImplicitModel", ddim)
def _ddim(a: Any) -> dict[str, Any]:
    return {"schedule": table(a), "sampler": part(continuous.DDIM, eta=a.eta), "spacing": spaced(a.spacing)}


@paper("GuidedDiffusion", guided_diffusion, betas="linear", first_beta=1e-4, spacing="")
def _guided_diffusion(a: Any) -> dict[str, Any]:
    same = {name: a.network[name] for name in ("multipliers", "attention", "heads")}
    figure = replace(a.classifier, classifier=a.classifier.classifier.changed(**same), **of(a, "scales", "ddim_steps"))
    loss = improved_ddpm.hybrid(1 / a.steps)
    return {"schedule": table(a, a.betas), "loss": loss, "spacing": spaced(a.spacing), "figure": figure}


@paper("ClassifierFreeGuidance", classifier_free)
def _classifier_free(a: Any) -> dict[str, Any]:
    loss, variance = GaussianLoss(drop_label=a.drop), continuous.LogInterpolated(a.share)
    return {"loss": loss, "variance": variance, "guidance": part(ClassifierFree, w=a.w)}


@paper("ProgressiveDistillation", progressive_distillation)
def _progressive_distillation(a: Any) -> dict[str, Any]:
    return {"figure": progressive_distillation.Students(**of(a, "until", "stage", "last_two"))}


@paper("Upsampler", upsampling)
def _upsampling(a: Any) -> dict[str, Any]:
    loss, data = improved_ddpm.hybrid(1 / a.steps), replace(a.data, smaller=a.factor)
    return {"schedule": table(a), "loss": loss, "data": data}


@paper("ScoreSDE", score_sde, time_power=1.0, ve_snr=0.16)
def _score_sde(a: Any) -> dict[str, Any]:
    ve, rk45 = sde.VE(a.sigma_min, a.sigma_max, t_last=a.t_last), sde.Adaptive(a.tolerance, a.tolerance)
    samplers = {
        "pc": score_sde.pc(a.snr),
        "cp": score_sde.pc(a.snr, sde.CorrectorPredictor),
        "predictor": part(sde.ReverseDiffusion),
        "euler-maruyama": part(sde.EulerMaruyama),
        "heun": part(sde.ProbabilityFlow),
        "rk45": part(sde.ProbabilityFlow, integrator=rk45),
    }
    likelihood = GaussianLoss(objective=part(sde.MaximumLikelihood), times=Stratified())
    return {
        "time_input": None,  # that of the network
        "schedule": {"vp": sde.VP(t_last=a.t_last), "sub-vp": sde.SubVP(t_last=a.t_last), "ve": ve}[a.sde],
        "loss": likelihood if a.weight == "likelihood" else stratified(a),
        "sampler": samplers[a.method],
        "spacing": adaptive if a.method == "rk45" else even,
        "figure": score_sde.SDESampling(sde.VE(a.sigma_min, a.sigma_max), a.snr, a.ve_snr),
    }


@paper("NCSN", ncsn, refinenet=False)
def _ncsn(a: Any) -> dict[str, Any]:
    own: dict[str, Any] = {}
    if a.refinenet:
        multipliers = a.network["multipliers"]
        dilations = (*(1,) * (len(multipliers) - 2), 2, 4)[-len(multipliers) :]
        own = ncsn.refinenet(width=a.network["width"], multipliers=multipliers, dilations=dilations)
    sampler = part(annealed_langevin, **of(a, "epsilon", "repeats", "denoise"))
    levels = ncsn.levels(a.low, a.high, a.noise_levels)
    return levels | own | {"sampler": sampler, "sampling_steps": a.sampling_steps}


@paper("ElucidatedModel", edm)
def _edm(a: Any) -> dict[str, Any]:
    sizes = {"low": a.churn_low, "high": a.churn_high, "noise": a.churn_noise}
    churned = part(churned_heun, churn=a.churn or 40.0, **sizes)
    return {
        "schedule": sde.EDM(a.sigma_min, a.sigma_max, a.rho, a.mean, a.std),
        "predicts": sde.Preconditioned(a.sigma_data),
        "sampler": churned if a.churn else edm.OWN.sampler,
        "figure": edm.ElucidatedSampling(churned),
    }


@paper("FlowMatchingModel", flow_matching)
def _flow_matching(a: Any) -> dict[str, Any]:
    fixed, alone = {"euler": sde.euler, "midpoint": sde.midpoint_rule, "heun": sde.heun2}, a.solver == "rk45"
    integrator = sde.Adaptive(a.tolerance, a.tolerance) if alone else sde.FixedSteps(fixed[a.solver])
    return {
        "sampler": flow_matching.OWN.sampler.changed(integrator=integrator),
        "spacing": adaptive if alone else even,
    }


@paper("InverseProblems", inverse_problems, time_power=1.0)
def _inverse_problems(a: Any) -> dict[str, Any]:
    figure = inverse_problems.Restoration(**of(a, "noise", "zeta", "iterations", "count"))
    data = replace(a.data, tint=True)
    return {"schedule": sde.VP(t_last=a.t_last), "loss": stratified(a), "data": data, "figure": figure}


@paper("Bridge", bridge)
def _bridge(a: Any) -> dict[str, Any]:
    table, ve = continuous.LinearBetas(start=a.first_beta), sde.VE(a.sigma_min, a.sigma_max)
    figure = bridge.Bridge(table, ve, sde.Preconditioned(a.sigma_data))
    return {"time_input": None, "schedule": sde.VP(t_last=a.t_last), "loss": stratified(a), "figure": figure}


def heads(a: Any) -> dict[str, Any]:
    """Returns head and reverse model of a D3PM."""
    reverse = {"product": discrete.Product, "marginal": discrete.Marginal}[a.reverse]
    return {"head": HEADS[a.head], "reverse": reverse()}


@paper("D3PM", d3pm_images, time_power=1.0)
def _d3pm(a: Any) -> dict[str, Any]:
    kinds = {"gaussian": d3pm_images.gaussian, "uniform": d3pm_images.uniform, "absorbing": d3pm_images.absorbing}
    loss = replace(d3pm_images.loss(a.ce), times=Stratified(a.time_power))
    return heads(a) | {"transition": kinds[a.transition](a.steps), "loss": loss}


@paper("D3PMText", d3pm_text)
def _d3pm_text(a: Any) -> dict[str, Any]:
    near = part(discrete.NearestNeighbor, neighbors=part(context_neighbors, count=a.neighbors))
    kinds = {
        "absorbing": part(discrete.Absorbing),
        "uniform": part(discrete.Uniform),
        "nearest": near,
        "absorbing+nearest": near,
    }
    transition = kinds[a.transition]
    if a.schedule == "mutual-information":
        transition = part(with_mutual_information, transition=transition, steps=a.steps)
    else:
        betas = {"cosine": discrete.cosine, "reciprocal": discrete.reciprocal}[a.schedule]
        transition = transition.changed(schedule=part(betas, steps=a.steps))
    if a.transition == "absorbing+nearest":
        masks = part(discrete.Absorbing, schedule=part(discrete.reciprocal, steps=a.steps))
        transition = part(discrete.Mixture, moves=transition, resampling=masks)
    figure = d3pm_text.TextComparison(a.seconds_per_model, a.measured, a.neighbors)
    return heads(a) | {"transition": transition, "loss": d3pm_images.loss(a.ce), "figure": figure}


@paper("TauLDR", tauldr)
def _tauldr(a: Any) -> dict[str, Any]:
    leaps, corrector = part(discrete.TauLeaping), part(discrete.RateCorrector, repeats=a.correctors)
    corrected = part(PredictorCorrector, predictor=leaps, corrector=corrector)
    loss = replace(tauldr.MODEL.loss, objective=part(discrete.ContinuousBound, ce=a.ce))
    sampler = corrected if a.correctors else leaps
    transition = part(discrete.GaussianTarget, **of(a, "reach", "width"))
    return {"transition": transition, "head": HEADS[a.head], "loss": loss, "sampler": sampler}


@paper("Multinomial", multinomial)
def _multinomial(a: Any) -> dict[str, Any]:
    return {"transition": part(discrete.Uniform, schedule=part(discrete.cosine, steps=a.steps))}


@paper("MDLM", mdlm)
def _mdlm(a: Any) -> dict[str, Any]:
    return {"transition": part(discrete.Absorbing, schedule=discrete.LogLinearNoise(a.eps))}


@paper("SEDD", sedd)
def _sedd(a: Any) -> dict[str, Any]:
    uniform = part(discrete.Uniform, schedule=discrete.GeometricNoise())
    return {"transition": {"absorbing": sedd.MODEL.transition, "uniform": uniform}[a.transition]}


@paper("UDLM", udlm)
def _udlm(a: Any) -> dict[str, Any]:
    return {"transition": part(discrete.Uniform, schedule=discrete.LogLinearNoise(a.eps))}
