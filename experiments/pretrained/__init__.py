"""Checkpoints of other projects: `load(path_or_hub_name)` recognizes the format and returns a ready denoiser.

A model of diffusers that is in memory becomes one by `wrap(unet, scheduler)`.

For each format: how it is recognized, and the settings that it does not contain. These are known where the file has
the name, path or sizes of a checkpoint that its authors published, and are given as flags otherwise
(docs/importing.md).

- Runs and checkpoints of this package: `checkpoint.json`. Nothing is missing.
- Folders of diffusers with a `UNet2DModel`: its `config.json`. Nothing is missing.
- ermongroup/ddim, pesser/pytorch_diffusion: names of tensors. `beta_schedule`, `beta_start`, `beta_end`,
  `num_diffusion_timesteps` (by path), `image_size` (by sizes).
- improved-diffusion, guided-diffusion: names of tensors. `image_size`, `num_heads` or `num_head_channels`,
  `use_new_attention_order`, `noise_schedule`, `diffusion_steps`, `rescale_timesteps`, `predict_xstart`, and
  `learn_sigma` where the numbers of channels leave it open (by file name); for classifiers only the heads and the
  schedule.
- score_sde: names of tensors. `sde`, `continuous`, `image_size`, `beta_min`, `beta_max`, and `num_scales` of a chain
  without noise levels (by path).
- NCSNv2: names of tensors. `image_size` (by sizes).
- EDM: the class in the pickle, or names of tensors. For a state dict `precond`, with `sigma_data`, or `beta_d`,
  `beta_min` and `M`, or `sigma_min` and `sigma_max` (by file name); `num_head_channels` of an ADM of another width
  than the published one.
- MDLM, SEDD: names of tensors and `config.json`. For MDLM `parameterization` and `time_conditioning`, for SEDD
  `uniform` and `scale_by_sigma`, for both `noise` with its ends, `length`, and `n_heads` of a file without rotary
  frequencies (by `config.json`, or by sizes).
"""

from typing import TYPE_CHECKING

from ...shared.lazy import lazily

if TYPE_CHECKING:
    from .diffusers_export import export
    from .hub import push
    from .loading import load
    from .wrapping import wrap

__all__ = ["export", "load", "push", "wrap"]

__getattr__, __dir__ = lazily(
    __name__,
    {"diffusers_export": "export", "hub": "push", "loading": "load", "wrapping": "wrap"},
    ("earlier_recipes", "earlier_runs"),
)
