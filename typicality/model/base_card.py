"""The model card of a pretrained base."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def base_card(summary: Mapping[str, Any]) -> str:
    """Return a Markdown card from the record of `typicality pretrain` (training.json)."""
    autoencoder, text, denoiser = (summary[part] for part in ("autoencoder", "text_encoder", "denoiser"))
    notes = [f"- {part['note']}" for part in (autoencoder, text, denoiser) if "note" in part]
    settings = json.dumps(summary["settings"], indent=2)
    millions = f"{denoiser['parameters'] / 1e6:.1f} M"
    trained = (
        f"| autoencoder | {autoencoder['steps']} | {autoencoder['seconds']} | see `typicality evaluate autoencoder` |\n"
        f"| text encoder | {text['steps']} | {text['seconds']} | {text['final_loss']} (telling prompts apart) |\n"
        f"| denoiser | {denoiser['steps']} | {denoiser['seconds']} | {denoiser['final_loss']} (noise, squared) |"
    )
    return f"""---
license: apache-2.0
library_name: diffusers
---
# The base model of typicality

A small latent diffusion model of the Stable Diffusion class: AutoencoderKL (factor 4, 8 latent channels),
UNet2DConditionModel ({millions} parameters), a CLIP text model of two layers over single bytes.
It is made to be fine-tuned on labelled images and to measure with, on a CPU and offline, not to draw.

It loads with plain diffusers: `StableDiffusionPipeline.from_pretrained(FOLDER)`. Weights are stored in half precision.

## Data

{denoiser["images"]} latents of drawings and of crops of photographs: Noto emoji of four releases, Twemoji,
national flags, and the photographs that scikit-image, scikit-learn, matplotlib and stdlib ship. Captions name
what is drawn and by whom. **No year of a design and no continent of a flag is in them, and no drawing of an emoji
or a country of the held-out groups of the embedded data sets** (a fixed hash of the group;
`typicality/dataset/split.py`). Sources and licences: NOTICE.

## Training

    python -m typicality.dataset.builtin.build corpus CORPUS
    typicality pretrain CORPUS/corpus.parquet --out MODEL

| part | steps | seconds | last training loss |
|---|---|---|---|
{trained}

{chr(10).join(notes)}

Settings:

```json
{settings}
```

## Licence

Apache-2.0 for the weights; the images behind them have their own terms and authors, listed in NOTICE.
"""
