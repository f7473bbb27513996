"""Released checkpoints: `load(path_or_hub_name)` recognises the format and gives a denoiser that is ready to use.

| format | recognised by | what it does not say, and is asked for |
| --- | --- | --- |
| a run or checkpoint of this package | `checkpoint.json` | nothing |
| diffusers folder with a `UNet2DModel` | its `config.json` | nothing: both configurations say all |
| ermongroup/ddim, pesser/pytorch_diffusion | names of tensors | `beta_schedule`, `beta_start`, `beta_end`,
`num_diffusion_timesteps`: | | | | known for the released paths; `image_size`: known for the sizes that were released |
| improved-diffusion, guided-diffusion | names of tensors | `image_size`, `num_heads` or `num_head_channels`,
`use_new_attention_order`, | | | | `noise_schedule`, `diffusion_steps`, `rescale_timesteps`, `predict_xstart`, and
`learn_sigma` where the | | | | channels in and out fit both: known for the released file names; of classifiers heads
and the schedule alone | | score_sde | names of tensors | `sde`, `continuous`, `image_size`, `beta_min`, `beta_max`:
known for the released paths; `num_scales` of | | | | a chain without noise levels |
| NCSNv2 | names of tensors | `image_size`: known for the sizes that were released |
| EDM | class in the pickle, names of tensors | of a state dict alone: `precond` and its `sigma_data`, or `beta_d`,
`beta_min` and `M`, or | | | | `sigma_min` and `sigma_max`: known for the released names; `num_head_channels` of an ADM
that is not the released one | | MDLM, SEDD | names of tensors, `config.json` | of MDLM `parameterization` and
`time_conditioning`, of SEDD `uniform` and | | | | `scale_by_sigma`, of both `noise` with its ends, `length`, and
`n_heads` of a file without rotary rates: known | | | | for the released sizes and where a configuration says it |
"""

from .diffusers_export import export
from .hub import push
from .loading import load

__all__ = ["export", "load", "push"]
