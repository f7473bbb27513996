"""Text-to-image models of the size of a CPU, with the cross-attention and guidance of GLIDE (Nichol et al. 2021).

GLIDE (arXiv 2112.10741) encodes a caption with a transformer; all attention layers of the U-Net also attend to its
states, and the last state is added to the time embedding. Captions are dropped for a share of the training examples,
for classifier-free guidance. Its images are those of 250 million pairs; these are 2,176 icons of OpenMoji.
"""

from __future__ import annotations

from dataclasses import replace

from ...continuous import DDIM, Cosine
from ...shared.gaussian.denoiser import Clipped
from ...shared.gaussian.guidance import ClassifierFree
from ...shared.gaussian.prediction import velocity
from ...shared.networks import CaptionEncoder, UNet
from ...shared.training import Training
from ..code_lengths import Bound
from ..gaussian import GaussianLoss, GaussianRecipe
from ..image_data import Images
from ..parts import part
from . import settings

UNET = part(UNet, width=32, multipliers=(1, 2, 4), blocks=1, attention=(4,), heads=4)
"""A U-Net of 3 M parameters with attention at 8 x 8."""


def captions() -> GaussianRecipe:
    """32 x 32 icons from their captions; one to two hours on two cores."""
    training = Training(
        steps=6000, learning_rate=1e-3, warmup=100, cooldown=2000, ema=0.998, watch_every=1000, save_every=500
    )
    return GaussianRecipe(
        data=Images("openmoji32", batch=32, caption_length=24),
        network=UNET.changed(tokens=part(CaptionEncoder, width=64, depth=2, heads=4)),
        schedule=Cosine(),
        predicts=velocity,
        loss=GaussianLoss(drop_caption=0.1),
        sampler=part(DDIM),
        sampling_steps=50,
        clip=part(Clipped),
        guidance=part(ClassifierFree, w=2.0),
        code_length=Bound(terms=None, steps=64),
        training=training,
    )


def groups() -> GaussianRecipe:
    """32 x 32 icons of 11 groups, such as flags and food; one to two hours on two cores."""
    data, loss = Images("openmoji32", batch=32, classes=11), GaussianLoss(drop_label=0.1)
    return replace(captions(), data=data, network=UNET, loss=loss)


def smoke() -> GaussianRecipe:
    """A test of a few seconds that every part of the recipe runs."""
    encoder = part(CaptionEncoder, width=8, depth=1, heads=2)
    network = part(UNet, width=8, multipliers=(1,), blocks=1, attention=(), heads=1, tokens=encoder)
    data = Images("openmoji32", batch=16, caption_length=12, vocabulary=300)
    return replace(captions(), **settings.smoke(data=data, network=network), code_length=Bound(terms=None, steps=4))
