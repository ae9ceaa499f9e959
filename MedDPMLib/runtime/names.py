"""Which devices and precisions can be chosen? Names alone: listing them does not import PyTorch."""

from __future__ import annotations

#: "auto" uses an NVIDIA GPU if there is one that computes correctly, otherwise the CPU. One of several GPUs is chosen
#: by its number: "cuda:1".
DEVICES = ("auto", "cpu", "cuda", "mps")

#: "auto" uses the fastest one that the device computes correctly.
PRECISIONS = ("auto", "float32", "bfloat16", "float16")

#: Short names of precisions that are common elsewhere.
SHORT_PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
