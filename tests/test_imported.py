"""What a user does with pretrained checkpoints: import, sample, evaluate, train on, export."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import peer_state
from PIL import Image
from pretrained_helpers import refused
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from unnoise.continuous import (
    DDIM,
    Clipped,
    CosineBetas,
    Heun,
    Hybrid,
    Learned,
    OutputError,
    Tabulated,
    VariationalBound,
    cosine_betas,
    linear_betas,
    velocity,
    zero_terminal,
)
from unnoise.discrete import Absorbing, Categorical, ContinuousBound, LogLinearNoise, Uniform
from unnoise.experiments import load, pretrained
from unnoise.experiments.cli import main
from unnoise.experiments.code_lengths import Bound, Exact
from unnoise.experiments.parts import part
from unnoise.experiments.pretrained.exporting import Flags, as_options, bring
from unnoise.experiments.pretrained.imported import imported, objective
from unnoise.experiments.time_grids import Karras, even
from unnoise.sde import EDM, DenoisingLoss, SubVP
from unnoise.shared.gaussian.guidance import ClassifierLoss
from unnoise.shared.networks import DiT, UNet
from unnoise.shared.networks.unet_variants import DDPM
from unnoise.shared.quantization import Quantization
from unnoise.shared.random import Streams
from unnoise.shared.time_inputs import step_index
from unnoise.shared.training import Trainer, Training

FLAGS = (
    "--image-size=16",
    "--num-head-channels=16",
    "--use-new-attention-order=False",
    "--noise-schedule=linear",
    "--diffusion-steps=1000",
    "--rescale-timesteps=False",
)

TEXT = {"parameterization": "subs", "time_conditioning": False, "noise": "loglinear", "length": 24}
TEXT_FLAGS = [f"--{name.replace('_', '-')}={value}" for name, value in TEXT.items()]


def mdlm(folder):
    torch.save({"state_dict": peer_state("mdlm_dit")}, folder / "mdlm.ckpt")
    return folder / "mdlm.ckpt"


def classifier(folder):
    torch.save(peer_state("guided_diffusion_classifier"), folder / "classifier.pt")
    return folder / "classifier.pt"


def unet(shape=(3, 8, 8), **more):
    torch.manual_seed(0)
    network = UNet(shape, 32, (1,), 1, (), variant=DDPM, **more)
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.02)
    return network


def known(denoiser, scale, shape):
    denoiser.quantization, denoiser.shape = scale, shape
    return denoiser.eval()


RANGE = part(Clipped, low=-1.0, high=1.0)
CHAIN = part(DDIM), even, RANGE, Bound(100, clip=RANGE)
FLOW = part(Heun), Karras(), None, Exact(1e-5)


def test_objectives_and_samplers_are_those_of_the_process():
    betas, shape = cosine_betas(10), (3, 8, 8)
    network = unet()
    for denoiser, loss, parts, steps in (
        (Learned(network, Tabulated(betas)), DenoisingLoss, CHAIN, 10),
        (Learned(network, Tabulated(linear_betas(1000))), DenoisingLoss, CHAIN, 50),
        (Learned(network, Tabulated(zero_terminal(betas)), velocity), DenoisingLoss, CHAIN, 10),
        (Learned(unet(outputs=2), Tabulated(betas)), Hybrid, CHAIN, 10),
        (Learned(network, CosineBetas(10)), DenoisingLoss, CHAIN, 10),
        (Learned(network, SubVP()), DenoisingLoss, FLOW, 18),
        (Learned(network, EDM(), sigma_data=0.5), DenoisingLoss, FLOW, 18),
    ):
        made = imported(known(denoiser, Quantization(), shape))
        assert type(objective(denoiser)) is loss
        assert (made.sampler, made.spacing, made.clip, made.code_length) == parts
        assert (made.sampling_steps, made.classes, made.data.needs) == (steps, None, ())
    assert objective(
        known(Learned(network, Tabulated(zero_terminal(betas)), velocity), Quantization(), shape)
    ).weight == OutputError(velocity)
    assert imported(known(Learned(network, SubVP()), Quantization(), (3, 64, 64))).sampling_steps == 40
    for transition in (Absorbing(5, LogLinearNoise()), Uniform(6, LogLinearNoise())):
        text = known(
            Categorical(DiT(6, 4, 8, 1, 2, outputs=transition.categories), transition),
            Quantization(transition.categories),
            (4,),
        )
        assert type(objective(text)) is ContinuousBound
        assert (imported(text).data.vocabulary, imported(text).data.text.length) == (transition.categories, 4)
    classified = imported(known(Learned(unet(classes=3, null_label=False), SubVP()), Quantization(), shape))
    assert classified.conditions(torch.arange(5))["label"].tolist() == [0, 1, 2, 0, 1]
    assert classified.with_data("folder").data.images.classes == 3
    upsampler = imported(known(Learned(unet(image=3), SubVP()), Quantization(), shape))
    refused(lambda: upsampler.conditions(torch.arange(2)), "needs image too")


def test_an_imported_run_goes_on(tmp_path):
    """Training goes on from the imported weights with a new optimizer, and its checkpoint is like any other."""
    bring(str(mdlm(tmp_path)), tmp_path / "run", Flags(**TEXT))
    checkpoint = load(tmp_path / "run")
    assert all(map(torch.equal, checkpoint.objective.parameters(), checkpoint.average.parameters()))
    before = [p.clone() for p in checkpoint.objective.parameters()]
    trainer = Trainer(checkpoint.objective, Training(steps=1, warmup=0, learning_rate=1e-3), folder=tmp_path / "run")
    trainer.fit([{"x0": torch.arange(24)[None] % 17}] * 2, resume=True)
    assert load(tmp_path / "run").step == 1
    assert any(
        not torch.equal(a, b) for a, b in zip(before, load(tmp_path / "run").objective.parameters(), strict=True)
    )


def run(capsys, *arguments):
    try:
        status = main([str(a) for a in arguments])
    except SystemExit as stop:
        status = stop.code
    out = capsys.readouterr()
    return status, out.out, out.err


@pytest.fixture
def tiny(tmp_path):
    """A diffusers folder that samples in no time, of a network with three classes."""
    betas = cosine_betas(10)
    return pretrained.export(
        Learned(unet(classes=3, null_label=False), Tabulated(betas), time_input=step_index), tmp_path / "tiny"
    )


def test_import_sample_evaluate_export(capsys, tmp_path, tiny):
    out = tmp_path / "run"
    status, out_text, err = run(capsys, "import", tiny, out)
    assert status == 0, err
    for line in (
        "format       diffusers",
        "network      UNet, ",
        "schedule     Tabulated of 10 steps, sigma / alpha from 0.1",
        "prediction   noise",
        "time input   step_index",
        "data         256 quantization levels in [-1, 1]",
        "size         3x8x8",
        "conditions   label",
        f"next: unnoise sample {out}    unnoise evaluate {out} --data NAME",
    ):
        assert line in out_text
    status, out_text, err = run(capsys, "sample", out, "--count", 4, "--out", tmp_path / "a.png")
    assert status == 0, err
    assert "4 samples in 10 network evaluations" in out_text
    assert f"s by DDIM of the classes 0, 1, 2 in turn: {tmp_path / 'a.png'}" in out_text
    assert "s by DDIM of the classes 0, 1: " in run(capsys, "sample", out, "--count", 2, "--out", tmp_path / "b.png")[1]
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.mode == "RGB"
        assert min(picture.size) >= 16
    denoiser, guided = pretrained.load(out), classifier(tmp_path)

    status, out_text, err = run(capsys, "export", out, tmp_path / "out")
    assert status == 0, err
    x, label = torch.randn(2, 3, 8, 8), torch.tensor([0, 2])
    again = pretrained.load(tmp_path / "out")
    with torch.no_grad():
        assert torch.equal(again(x, torch.tensor(0.5), label=label), denoiser(x, torch.tensor(0.5), label=label))

    for arguments, words in (
        (("import", tiny, out), "has a checkpoint already"),
        (("import", out, tmp_path / "other"), "is a checkpoint of this package already"),
        (("export", out, tmp_path / "out"), "is not an empty folder"),
        (("import", tiny, tmp_path / "b", "--sde", "vp"), "do not take --sde"),
        (("import", tiny, tmp_path / "b", "--tokenizer", "t.json"), "is a model of images"),
        (("import", tmp_path / "none", tmp_path / "b"), "there is no file"),
        (
            ("import", guided, tmp_path / "b"),
            "do not determine --num-heads (or --num-head-channels), --noise-schedule, --diffusion-steps, "
            "--rescale-timesteps, and",
        ),
        (("import", guided, tmp_path / "b"), "such as --num-heads 4, --noise-schedule cosine, --diffusion-steps 4000"),
        (("export", guided, tmp_path / "b", "--image-size", 0), "--image-size 0: give a whole number"),
        (("import", guided, tmp_path / "b", "--sde", "vp"), "(flags that they take: --image-size, --num-heads,"),
        (("sample", tiny), "import one with `unnoise import`"),
        (
            ("sample", tmp_path / "empty" / "run"),
            "train one with `unnoise train`, or import one with `unnoise import`",
        ),
        (("evaluate", out), "comes without data: give --data NAME"),
        (
            ("evaluate", out, "--data", "digits"),
            "shape (1, 8, 8) and 17 quantization levels, and this network needs (3, 8, 8) and 256",
        ),
    ):
        status, _, err = run(capsys, *arguments)
        assert (status, err.count("\n"), words in err) == (2, 1, True), err
    status, _, err = run(capsys, "import", tiny, tmp_path / "b", "--fir", "perhaps")
    assert (status, "'perhaps' for argument '--fir'" in err, "Traceback" in err) == (2, True, False)
    assert not (tmp_path / "b").exists()


def test_flags_in_errors_become_options_and_paths_stay():
    message = (
        "a/image_size=3/num_heads.pt: give image_size=64, sde='vp', precond=... or num_head_channels, and length=1024"
    )
    assert as_options(message) == (
        "a/image_size=3/num_heads.pt: give --image-size 64, --sde vp, --precond ... or --num-head-channels, "
        "and --length 1024"
    )
    for message, expected in (
        ("fir, length and continuous are words", "fir, length and continuous are words"),
        ("""which is sde="vp", "subvp" or 've', and continuous=True or False: x""", SAYS + ": x"),
        (
            """with sde="vp", "subvp" or 've', and continuous=True or False, such as """
            "pretrained.load(path, sde='vp', continuous=True)",
            LOADS,
        ),
        ("give precond='edm', 'vp', 'iddpm'", "give --precond edm, --precond vp, --precond iddpm"),
        ("skip_rescale=True: as in most", "--skip-rescale True: as in most"),
        ("sigma_min=1e-05, sigma_max=3.0 without use", "--sigma-min 1e-05, --sigma-max 3.0 without use"),
        ("EDM checkpoints do not take sde, fir: leave it out (flags that they take: noise, n_heads)", TAKES),
        (
            "give uniform, noise, n_heads as in its training, such as noise='x'",
            "give --uniform, --noise, --n-heads as in its training, " + SUCH,
        ),
        ('config.json has "time_conditioning": False, and the other "n_heads": 3', None),
        ("the configuration has time_conditioning 3: it is true or false", None),
    ):
        assert as_options(message) == (expected or message)
    assert as_options("beta_start=0.1, beta_end", ()) == "beta_start=0.1, beta_end"


SAYS = "which is --sde vp, --sde subvp or --sde ve, and --continuous True or --continuous False"
LOADS = SAYS.replace("which is", "with") + ", such as --sde vp, --continuous True"
TAKES = "EDM checkpoints do not take --sde, --fir: leave it out (flags that they take: --noise, --n-heads)"
SUCH = "such as --noise x"


def test_assumptions_name_options_and_are_printed_by_export_too(capsys, tmp_path, tiny):
    """Entries of diffusers' configurations, which has no flags, stay what they are."""
    settings = json.loads((tiny / "scheduler/scheduler_config.json").read_text())
    settings = {k: v for k, v in settings.items() if k not in ("trained_betas", "variance_type")} | {
        "beta_schedule": "linear"
    }
    (tiny / "scheduler/scheduler_config.json").write_text(json.dumps(settings))
    message = (
        "assumed      scheduler_config.json leaves out entries, for which the library's defaults are used: "
        "beta_start=0.0001, beta_end=0.02, variance_type='fixed_small'\n"
    )
    for command in ("import", "export"):
        status, out, err = run(capsys, command, tiny, tmp_path / command)
        assert status == 0, err
        assert message in out
    settings["beta_start"] = "none"
    (tiny / "scheduler/scheduler_config.json").write_text(json.dumps(settings))
    for command in ("import", "export"):
        assert "beta_start='none'" in run(capsys, command, tiny, tmp_path / "b")[2]
        assert "do not take --beta-start: leave" in run(capsys, command, tiny, tmp_path / "b", "--beta-start", 0.1)[2]
    state = {k: v[:3] if k.startswith("out.2.") else v for k, v in peer_state("improved_diffusion_unet").items()}
    torch.save(state, tmp_path / "model.pt")
    flags = [*FLAGS, "--predict-xstart=False"]
    message = (
        "assumed      the code length uses the variance beta_t (sigma_small False); samples of DDIM do not depend on it"
    )
    assert message in run(capsys, "import", tmp_path / "model.pt", tmp_path / "m", *flags)[1]
    peer = (
        "--beta-schedule=linear",
        "--beta-start=0.1",
        "--beta-end=0.3",
        "--num-diffusion-timesteps=10",
        "--image-size=16",
    )
    torch.save(peer_state("ddim_model"), tmp_path / "ddim.ckpt")
    status, out, err = run(capsys, "import", tmp_path / "ddim.ckpt", tmp_path / "ddim", *peer)
    assert (status, "assumed      --rescaled True: " in out) == (0, True), err


def test_what_is_trained_here_is_written_for_diffusers(capsys, tmp_path):
    """Fed `thousandths` on a table of 100 steps, as this package's runs are by default."""
    wide = ("--network.variant", "ddpm", "--network.width", 32, "--data.classes", "None", "--training.steps", 2)
    status, _, err = run(capsys, "train", "ddpm-smoke", *wide, "--out", tmp_path / "run")
    assert status == 0, err
    status, _, err = run(capsys, "export", tmp_path / "run", tmp_path / "out")
    assert status == 0, err
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([1, 100]).double() / 100
    with torch.no_grad():
        assert torch.equal(pretrained.load(tmp_path / "out")(x, t), pretrained.load(tmp_path / "run")(x, t))
    assert run(capsys, "train", "ddpm-smoke", "--training.steps", 2, "--out", tmp_path / "plain")[0] == 0
    status, _, err = run(capsys, "export", tmp_path / "plain", tmp_path / "b")
    assert status == 2
    assert "as after training here with --network.variant ddpm --network.width 32, 64, 96" in err
    assert not (tmp_path / "b").exists()


def test_evaluation(capsys, tmp_path):
    """Bits/dim on held-out images of the network's kind, which are those of its bound."""
    generator, out = torch.Generator().manual_seed(0), tmp_path / "run"
    for split in ("train", "test"):
        (tmp_path / "images" / split).mkdir(parents=True)
        for n in range(2):
            pixels = torch.randint(0, 256, (8, 8, 3), generator=generator, dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(tmp_path / "images" / split / f"{n}.png")
    model = Learned(unet(), Tabulated(cosine_betas(10)), time_input=step_index)
    assert (
        run(capsys, "import", pretrained.export(model, tmp_path / "tiny"), out, "--data", tmp_path / "images")[0] == 0
    )
    status, out_text, err = run(capsys, "evaluate", out, "--seed", 3)
    assert status == 0, err
    found = json.loads((out / "evaluation.json").read_text())
    assert found["kind"] == "upper bound"
    experiment = load(out).experiment
    images = experiment.load("test")
    bound = VariationalBound(Clipped(pretrained.load(out)), Quantization())
    code = bound(Quantization().continuous(images.k), generator=Streams(3, range(len(images.k))))
    assert abs(found["bits_per_dim"] - float(code.bits_per_dim(192).mean())) < 1e-9


def test_classes_are_those_of_the_network(capsys, tmp_path, tiny):
    """Another set's number of classes is no option of an imported run: the set is refused."""
    for label in "abcd":
        (tmp_path / "images" / "test" / label).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / "test" / label / "0.png")
    assert run(capsys, "import", tiny, tmp_path / "run")[0] == 0
    err = run(capsys, "evaluate", tmp_path / "run", "--data", tmp_path / "images")[2]
    assert (
        "this network has 3 classes, numbered as in its training: give --data with images of these classes (classes=3: "
        in err
    )
    assert "has 4 classes" in err


def test_classifiers_and_text(capsys, tmp_path):
    status, out_text, err = run(capsys, "import", classifier(tmp_path), tmp_path / "classifier", *FLAGS)
    assert status == 0, err
    assert "prediction   log p(label)" in out_text
    assert "ClassifierGuided(denoiser, pretrained.load(" in out_text
    assert type(load(tmp_path / "classifier").objective) is ClassifierLoss
    assert "a classifier of noisy images, which has no samples" in run(capsys, "sample", tmp_path / "classifier")[2]
    assert "cannot be written for diffusers" in run(capsys, "export", tmp_path / "classifier", tmp_path / "d")[2]

    status, out_text, err = run(capsys, "import", mdlm(tmp_path), tmp_path / "text", *TEXT_FLAGS)
    assert status == 0, err
    assert "Absorbing of 18 states" in out_text
    assert "data         17 tokens\n" in out_text
    status, out_text, err = run(
        capsys, "sample", tmp_path / "text", "--count", 3, "--steps", 4, "--out", tmp_path / "ids.txt"
    )
    assert status == 0, err
    assert "token ids, one line for each sample" in out_text
    ids = [[int(i) for i in line.split()] for line in Path(tmp_path / "ids.txt").read_text().splitlines()]
    assert [len(row) for row in ids] == [24, 24, 24]
    assert all(0 <= i < 17 for row in ids for i in row)
    assert "has no text or no tokenizer" in run(capsys, "evaluate", tmp_path / "text", "--data", "shakespeare")[2]


def test_text_with_a_tokenizer(capsys, tmp_path):
    """Seventeen words: samples are written as words, and text is coded token by token."""
    words = {"</s>": 0} | {f"w{n}": n for n in range(1, 17)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="w1"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "text.txt").write_text("".join(f"w{n % 16 + 1} w{n % 7 + 1} w3\n" for n in range(400)))
    out, path = tmp_path / "run", mdlm(tmp_path)
    status, _, err = run(capsys, "import", path, out, *TEXT_FLAGS, "--tokenizer", tmp_path / "tokenizer.json")
    assert status == 0, err
    (tmp_path / "tokenizer.json").unlink()  # the run keeps it
    status, out_text, err = run(capsys, "sample", out, "--count", 2, "--steps", 4, "--out", tmp_path / "words.txt")
    assert status == 0, err
    text = (tmp_path / "words.txt").read_text()
    assert {*text.split()} <= {*words}
    assert "w" in text
    assert "has no text or no tokenizer" in run(capsys, "evaluate", out)[2]
    status, _, err = run(capsys, "evaluate", out, "--data", tmp_path / "text.txt", "--steps", 4)
    assert status == 0, err
    found = json.loads((out / "evaluation.json").read_text())
    assert math.log2(17) - 1 < found["bits_per_token"] < 60
    run_ = load(out).experiment
    other = replace(run_, data=replace(run_.data, vocabulary=18)).with_data(str(tmp_path / "text.txt"))
    refused(lambda: other.load("test"), "the tokenizer has 17 tokens, and the model 18")
