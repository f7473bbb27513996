"""Released checkpoints: `load(path_or_hub_name)` recognises the format and gives a denoiser that is ready to use.

| format | recognised by | what it does not say, and is asked for |
| --- | --- | --- |
| a run or checkpoint of this package | `checkpoint.json` | nothing |
| diffusers folder with a `UNet2DModel` | its `config.json` | nothing |
| ermongroup/ddim, pesser/pytorch_diffusion | names of tensors | nothing |
| improved-diffusion, guided-diffusion | names of tensors | heads, order of q, k, v, schedule: known for the released file names |
| score_sde | names of tensors | `sde`, `continuous`: known for the released folders |
| NCSNv2 | names of tensors | nothing |
| EDM | the class in the pickle | nothing |
| MDLM, SEDD | names of tensors, `config.json` | nothing |
"""

from .diffusers import export
from .hub import push
from .loading import load

__all__ = ["export", "load", "push"]
