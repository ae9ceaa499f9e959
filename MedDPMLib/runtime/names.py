"""Which devices and precisions can be asked for? Names alone: whoever lists them needs no PyTorch."""

from __future__ import annotations

#: "auto" takes an NVIDIA GPU if there is one that computes correctly, else the CPU. Of several GPUs one is named with
#: its number: "cuda:1".
DEVICES = ("auto", "cpu", "cuda", "mps")

#: "auto" takes the fastest one that the device computes correctly.
PRECISIONS = ("auto", "float32", "bfloat16", "float16")

#: Short names of precisions that are common elsewhere.
SHORT_PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
